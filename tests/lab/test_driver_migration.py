# SPDX-License-Identifier: Apache-2.0
"""Live migration through the driver on real QEMU: what both hosts show in each of its phases, and after each fault.

The states asserted here are what decisions about migrations rest on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import pytest

from homeostat.api import actions as act
from homeostat.hosts.driver import MIGRATE_UNSAFE, OPERATION_ABORTED, OPERATION_INVALID, HostError, HostUnreachable
from homeostat.hosts.migration import MigrationAborted, MigrationRefused
from tests.lab import Lab
from tests.lab.driving import driving, eventually
from tests.lab.moving import Move, moving

pytestmark = pytest.mark.lab

RUNS, COPIES = ("Running", "Booted", True, ""), ("Running", "Booted", True, "Out")
LEAVING, STALE = ("Paused", "Migration", True, "Out"), ("Paused", "Migration", True, "")
COMING, ARRIVED = ("Paused", "Migration", False, "In"), ("Running", "Migrated", True, "")
STOCK = 2


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab.up(f"move-{os.getpid()}", hosts=3)
    try:
        yield lab
    finally:
        lab.down()


def drilled(
    lab: Lab, drill: Callable[[Move], Awaitable[None]], source: int = 0, target: int = 1, pool: str = "shared"
) -> None:
    """Run a drill on a running VM; CPUs of it never ran on two hosts at once."""

    async def run() -> None:
        async with moving(lab, source, target, pool) as move:
            await drill(move)
            lab.assert_never_two(move.one.uuid)

    asyncio.run(asyncio.wait_for(run(), 60))


# Without a fault


def test_a_vm_is_moved_and_leaves_nothing_behind(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await move.begin()
        assert await move.seen() == (COPIES, COMING)
        assert (move.qemus(), move.definitions(), move.running()) == ((True, True), (True, False), (True, False))
        await move.switch()
        assert await move.outcome() is None
        assert await move.seen() == (None, ARRIVED)
        assert (move.qemus(), move.definitions(), move.running()) == ((False, True), (False, True), (False, True))

    drilled(lab, drill)


def test_a_vm_is_moved_over_tls(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        move.request = replace(move.request, peer=move.hosts[1].uri_tls_peer, tls=True, max_downtime_ms=60_000)
        await move.source.connection.migrate(move.one.uuid, move.request)
        assert await move.seen() == (None, ARRIVED)

    drilled(lab, drill)


def test_a_paused_start_is_resumed_on_the_target(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await move.begin(start_paused=True)
        await move.switch()
        assert await move.outcome() is None
        assert await move.seen() == (None, ("Paused", "User", True, ""))
        assert move.running() == (False, False)
        await move.target.do(act.Resume("", move.one.uuid))
        assert await move.seen() == (None, ("Running", "Unpaused", True, ""))
        assert move.running() == (False, True)

    drilled(lab, drill)


def test_progress_can_be_read_and_steered(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await move.begin()
        first = await move.until_job(lambda out: out.remaining > 0)
        later = await move.until_job(lambda out: out.processed > first.processed)
        assert later.elapsed > first.elapsed
        assert 64 << 20 <= later.total < 80 << 20
        assert (later.iteration, later.page_size, later.max_downtime) == (1, 4096, 20)
        await move.source.connection.set_migration_speed(move.one.uuid, 100)
        dirty = await move.until_job(lambda out: out.iteration > 2 and out.dirty_rate > 0)
        assert dirty.bytes_per_second > 8 << 20
        await move.source.connection.set_max_downtime(move.one.uuid, 60_000)
        assert await move.outcome() is None

    drilled(lab, drill)


def test_an_abort_leaves_it_where_it_is(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await move.begin()
        await move.source.connection.abort_job(move.one.uuid)
        error = await move.outcome()
        assert isinstance(error, MigrationAborted)
        assert error.code == OPERATION_ABORTED
        await move.until((RUNS, None))
        assert (move.qemus(), move.definitions(), move.running()) == ((True, False), (True, False), (True, False))
        with pytest.raises(HostError) as caught:
            await move.source.connection.abort_job(move.one.uuid)
        assert caught.value.code == OPERATION_INVALID

    drilled(lab, drill)


def test_a_call_given_up_on_goes_on_without_its_client(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await move.begin()
        assert move.call is not None
        move.call.cancel()
        await asyncio.wait([move.call])
        await move.source.connection.close()
        await move.connect()
        assert await move.seen() == (COPIES, COMING)
        await move.switch()
        await move.until((None, ARRIVED))

    drilled(lab, drill)


# Refusals


def test_what_is_not_begun_is_refused_in_words(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        for changes, code, words in (
            ({"unsafe": False}, MIGRATE_UNSAFE, "Unsafe migration"),
            ({"peer": "qemu+tcp://198.51.100.250/system"}, 38, "Network is unreachable"),
            ({"peer": "qemu+tcp://nobody.invalid/system"}, 38, "Unable to resolve"),
            ({"peer": move.hosts[1].uri_tls}, 38, "CA certificate"),
            ({"peer": move.hosts[0].uri_tcp}, 1, "to the same host"),
            ({"compression": "zip"}, 8, "compression"),
        ):
            with pytest.raises(MigrationRefused, match=words) as caught:
                await move.source.connection.migrate(move.one.uuid, replace(move.request, **changes))
            assert caught.value.code == code
            assert await move.seen() == (RUNS, None)
        await move.begin()
        with pytest.raises(MigrationRefused, match="another migration job") as caught:
            await move.source.connection.migrate(move.one.uuid, move.request)
        assert caught.value.code == OPERATION_INVALID
        await move.source.connection.abort_job(move.one.uuid)
        await move.outcome()

    drilled(lab, drill)


def test_a_disk_that_the_target_does_not_have_ends_it_before_it_is_copied(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        volume = move.one.volume("root")
        (move.hosts[1].pool_path("default") / volume).unlink()
        with pytest.raises(HostError, match="No such file") as caught:
            await move.source.connection.migrate(move.one.uuid, move.request)
        assert not isinstance(caught.value, HostUnreachable)
        await move.until((RUNS, None))
        assert move.running() == (True, False)

    drilled(lab, drill, pool="default")


# The answer to Finish is lost


async def _lose_answer(move: Move) -> HostError:
    """The target lets the CPUs run, and the source never hears of it."""
    move.hosts[1].mute(move.hosts[0])
    await move.switch()
    error = await move.outcome()
    assert type(error) is HostError, "it says nothing certain"
    assert (error.code, error.domain) == (1, 7)
    return error


def test_a_lost_answer_with_an_image_lock_leaves_the_source_paused(lab: Lab) -> None:
    """Row 6."""

    async def drill(move: Move) -> None:
        await move.begin()
        await _lose_answer(move)
        await move.until((STALE, ARRIVED))
        assert (move.qemus(), move.definitions(), move.running()) == ((True, True), (True, True), (False, True))
        await move.source.do(act.Destroy("", move.one.uuid))
        await move.source.do(act.Undefine("", move.one.uuid))
        assert await move.seen() == (None, ARRIVED)
        assert move.running() == (False, True)

    drilled(lab, drill)


def test_a_stale_source_that_relabels_is_destroyed_without_harm_to_the_disk(lab: Lab) -> None:
    """A stock host gives disks back to root when a domain ends: not those we made, which the target has open."""

    async def drill(move: Move) -> None:
        before = move.disk()
        assert before[:2] == move.source.facts.disk_owner != (0, 0)
        await move.begin()
        await _lose_answer(move)
        await move.until((STALE, ARRIVED))
        await move.source.do(act.Destroy("", move.one.uuid))
        await move.source.do(act.Undefine("", move.one.uuid))
        assert move.disk() == before
        assert (move.qemus(), move.running()) == ((False, True), (False, True))

    drilled(lab, drill, source=STOCK)


def test_a_lost_answer_without_a_lock_has_it_run_twice(lab: Lab) -> None:
    """Row 11: nothing but the lock keeps the source from going on."""

    async def run() -> None:
        async with moving(lab, pool="default") as move:
            await move.begin()
            await _lose_answer(move)
            await move.until((("Running", "MigrationCanceled", True, ""), ARRIVED))
            assert move.running() == (True, True)
            with pytest.raises(AssertionError, match="while those of"):
                lab.assert_never_two(move.one.uuid)
            await move.source.do(act.Suspend("", move.one.uuid))
            assert await move.seen() == (("Paused", "User", True, ""), ARRIVED)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_lost_answer_of_a_paused_start_never_runs_twice(lab: Lab) -> None:
    """Row 23, without a lock."""

    async def drill(move: Move) -> None:
        await move.begin(start_paused=True)
        await _lose_answer(move)
        await move.until((("Running", "MigrationCanceled", True, ""), ("Paused", "User", True, "")))
        assert move.running() == (True, False)
        await move.target.do(act.Destroy("", move.one.uuid))
        await move.target.do(act.Undefine("", move.one.uuid))
        assert await move.seen() == (("Running", "MigrationCanceled", True, ""), None)

    drilled(lab, drill, pool="default")


# Daemons that die


def test_the_sources_daemon_dies_in_mid_copy(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await move.begin()
        move.hosts[0].kill_libvirtd()
        assert isinstance(await move.outcome(), HostUnreachable)
        await eventually(lambda: move.qemus() == (True, False), "the target lets go of it")
        move.hosts[0].start_libvirtd()
        await move.connect()
        await move.until((RUNS, None))
        assert move.running() == (True, False)
        await move.source.connection.migrate(
            move.one.uuid, replace(move.request, bandwidth_mib_s=0, max_downtime_ms=60_000)
        )
        assert await move.seen() == (None, ARRIVED)

    drilled(lab, drill)


def test_the_sources_daemon_dies_after_the_target_took_over(lab: Lab) -> None:
    """Row 6."""

    async def drill(move: Move) -> None:
        await move.begin()
        move.hosts[1].mute(move.hosts[0])
        await move.switch()
        await move.until((LEAVING, ARRIVED))
        move.hosts[0].kill_libvirtd()
        move.hosts[0].start_libvirtd()
        await move.connect()
        await move.until((STALE, ARRIVED))
        assert move.running() == (False, True)

    drilled(lab, drill)


def test_the_sources_daemon_dies_before_the_target_was_told_to_take_over(lab: Lab) -> None:
    """Row 8, then 7: the target ends what nobody asks it to finish, and the source may go on."""

    async def drill(move: Move) -> None:
        await move.begin()
        move.hosts[1].refuse(move.hosts[0])
        await move.switch()
        await move.until((LEAVING, COMING))
        await asyncio.sleep(1)  # killed while it still copies, libvirt lets the guest go on by itself
        move.hosts[0].kill_libvirtd()
        move.hosts[0].start_libvirtd()
        await move.connect()
        assert await move.seen() == (STALE, COMING)
        await move.until((STALE, None), seconds=40)
        assert (move.qemus(), move.definitions(), move.running()) == ((True, False), (True, False), (False, False))
        await move.source.do(act.Resume("", move.one.uuid))
        assert move.running() == (True, False)

    drilled(lab, drill)


def test_the_targets_daemon_dies_in_mid_copy(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await move.begin()
        move.hosts[1].kill_libvirtd()
        error = await move.outcome()
        assert type(error) is HostError
        await eventually(lambda: move.qemus() == (True, False), "its QEMU ends with the stream")
        move.hosts[1].start_libvirtd()
        await move.connect()
        await move.until((RUNS, None))
        assert move.running() == (True, False)

    drilled(lab, drill)


def test_the_targets_daemon_dies_at_the_switchover(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await move.begin()
        move.hosts[1].refuse(move.hosts[0])
        await move.switch()
        await move.until((LEAVING, COMING))
        move.hosts[1].kill_libvirtd()
        error = await move.outcome()
        assert type(error) is HostError
        move.hosts[1].start_libvirtd()
        await move.connect()
        seen = await move.until((("Running", "MigrationCanceled", True, ""), None), (STALE, None))
        assert move.qemus() == (True, False), seen

    drilled(lab, drill)


def test_the_targets_daemon_restarts_after_the_move(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await move.begin()
        await move.switch()
        await move.outcome()
        move.hosts[1].kill_libvirtd()
        move.hosts[1].start_libvirtd()
        await move.connect()
        assert await move.seen() == (None, ARRIVED)

    drilled(lab, drill)


# QEMUs and networks that die


def test_the_targets_qemu_dies_in_mid_copy(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await move.begin()
        move.hosts[1].kill_qemu(move.one.uuid)
        assert type(await move.outcome()) is HostError
        await move.until((RUNS, None))
        assert move.running() == (True, False)

    drilled(lab, drill)


def test_the_sources_qemu_dies_in_mid_copy(lab: Lab) -> None:
    """Row 16: the VM is down."""

    async def drill(move: Move) -> None:
        await move.begin()
        move.hosts[0].kill_qemu(move.one.uuid)
        assert type(await move.outcome()) is HostError
        await move.until((("Shutoff", "Crashed", True, ""), None))
        assert (move.qemus(), move.definitions()) == ((False, False), (True, False))

    drilled(lab, drill)


def test_the_stream_breaks_in_mid_copy(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await move.begin()
        move.hosts[0].part(move.hosts[1])
        assert type(await move.outcome()) is HostError
        await move.until((RUNS, None))
        assert move.running() == (True, False)

    drilled(lab, drill)


def test_the_target_hangs_in_mid_copy(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await move.begin()
        move.hosts[1].freeze_libvirtd()
        error = await move.outcome()
        assert type(error) is HostError
        assert (error.code, error.domain) == (1, 7)
        move.hosts[1].thaw_libvirtd()
        await move.connect()
        await move.until((RUNS, None))

    drilled(lab, drill)


# Post-copy

HALF, OTHER_HALF = ("Paused", "Postcopy", True, "Out"), ("Running", "Postcopy", True, "In")
BROKEN, OTHER_BROKEN = ("Paused", "PostcopyFailed", True, "Out"), ("Running", "PostcopyFailed", True, "In")


async def _in_post_copy(move: Move) -> None:
    await move.begin(post_copy=True, post_copy_mib_s=8)
    await move.source.connection.start_post_copy(move.one.uuid)
    await move.until((HALF, OTHER_HALF))
    assert move.running() == (False, True)


def test_post_copy_runs_on_the_target_and_cannot_be_aborted(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await _in_post_copy(move)
        with pytest.raises(HostError) as caught:
            await move.source.connection.abort_job(move.one.uuid)
        assert caught.value.code == OPERATION_INVALID
        assert await move.seen() == (HALF, OTHER_HALF)
        assert await move.outcome() is None
        await move.until((None, ARRIVED))

    drilled(lab, drill)


def test_post_copy_without_its_source_has_lost_its_memory(lab: Lab) -> None:
    """Row 21."""

    async def drill(move: Move) -> None:
        await _in_post_copy(move)
        move.hosts[0].kill_qemu(move.one.uuid)
        assert type(await move.outcome()) is HostError
        await move.until((("Shutoff", "Crashed", True, ""), OTHER_BROKEN))
        await move.target.do(act.Destroy("", move.one.uuid))
        await move.until((("Shutoff", "Crashed", True, ""), ("Shutoff", "Destroyed", True, "")))

    drilled(lab, drill)


def test_post_copy_without_its_target_has_lost_its_memory(lab: Lab) -> None:
    """Row 22."""

    async def drill(move: Move) -> None:
        await _in_post_copy(move)
        move.hosts[1].kill_qemu(move.one.uuid)
        assert type(await move.outcome()) is HostError
        await move.until((BROKEN, ("Shutoff", "Crashed", True, "")))
        await move.source.do(act.Destroy("", move.one.uuid))
        await move.until((("Shutoff", "Destroyed", True, ""), ("Shutoff", "Crashed", True, "")))

    drilled(lab, drill)


@pytest.mark.parametrize("restarted", [(), (0,), (1,)], ids=["", "source", "target"])
def test_post_copy_is_resumed_when_the_network_is_back(lab: Lab, restarted: tuple[int, ...]) -> None:
    async def drill(move: Move) -> None:
        await _in_post_copy(move)
        move.hosts[0].part(move.hosts[1])
        assert type(await move.outcome()) is HostError
        await move.until((BROKEN, OTHER_BROKEN))
        for number in restarted:
            move.hosts[number].kill_libvirtd()
            move.hosts[number].start_libvirtd()
            await move.connect()
            await move.until((BROKEN, OTHER_BROKEN))
        move.hosts[0].unfilter()
        await move.source.connection.resume_post_copy(move.one.uuid, replace(move.request, post_copy_mib_s=0))
        await move.until((None, ARRIVED))

    drilled(lab, drill)


def test_a_job_that_is_no_migration_is_told_apart(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        async with driving(move.hosts[0].uri_tcp):
            assert await move.source.connection.job("00000000-0000-4000-8000-000000000000") is None
            await move.source.do(act.Destroy("", move.one.uuid))
            assert await move.source.connection.job(move.one.uuid) is None

    drilled(lab, drill)
