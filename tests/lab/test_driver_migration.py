# SPDX-License-Identifier: Apache-2.0
"""Live migration through the driver on real QEMU: what both hosts show in each of its phases, and after each fault.

The states asserted here are what decisions about migrations rest on.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from homeostat.api import actions as act
from homeostat.hosts.driver import MIGRATE_UNSAFE, OPERATION_ABORTED, OPERATION_INVALID, HostError, HostUnreachable
from homeostat.hosts.migration import MigrationAborted, MigrationRefused
from tests.lab import Lab
from tests.lab.driving import IMAGES
from tests.lab.moving import ARRIVED, COMING, COPIES, RUNS, STALE, Move, drilled, moving

pytestmark = pytest.mark.lab
HOSTS = 3

STOCK = 2


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
        assert later.elapsed >= first.elapsed
        assert 64 << 20 <= later.total < 80 << 20
        assert (later.iteration, later.page_size, later.max_downtime) == (1, 4096, 20)
        await move.source.connection.set_migration_speed(move.one.uuid, 100)
        await move.until_job(lambda out: out.iteration > 2 and out.dirty_rate > 0 and out.bytes_per_second > 8 << 20)
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


@pytest.mark.parametrize("copy", ["Full", "Incremental"])
def test_a_disk_is_copied_to_where_there_is_none(lab: Lab, copy: str) -> None:
    async def drill(move: Move) -> None:
        volume = move.one.volume("root")
        there = move.hosts[1].pool_path("default") / volume
        if copy == "Full":
            there.unlink()
            await move.target.connection.refresh_pool("default")
        quick = replace(move.request, max_downtime_ms=60_000, copy=copy, copy_disks=("ua-disk-root",))
        await move.source.connection.migrate(move.one.uuid, quick)
        assert await move.seen() == (None, ARRIVED)
        assert (move.hosts[0].pool_path("default") / volume).exists(), "the source keeps its copy"
        move.hosts[1].execute("qemu-img", "dd", "-U", "bs=512", "count=1", f"if={IMAGES}/{volume}", "of=/run/head")
        assert move.hosts[1].outside("/run/head").read_bytes()[510:512] == b"\x55\xaa"

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

    asyncio.run(asyncio.wait_for(run(), 180))


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
