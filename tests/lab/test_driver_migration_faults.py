# SPDX-License-Identifier: Apache-2.0
"""Live migration through the driver when daemons, QEMUs and networks end in the middle of it; and post-copy."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from homeostat.api import actions as act
from homeostat.hosts.driver import OPERATION_INVALID, OPERATION_TIMEOUT, HostError, HostUnreachable
from tests.lab import Host, Lab
from tests.lab.driving import eventually
from tests.lab.host import STREAMS
from tests.lab.moving import ARRIVED, COMING, COPIES, LEAVING, RUNS, STALE, Move, drilled, look
from tests.lab.processes import run

pytestmark = pytest.mark.lab
HOSTS = 3


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
        await move.until_job(lambda out: out.remaining == 0)
        await asyncio.sleep(1)  # killed while it still copies, libvirt lets the guest go on by itself
        move.hosts[0].kill_libvirtd()
        # It waits for seconds, and a daemon may take as long to start.
        assert await look(move.target.connection, move.one.uuid) == COMING
        move.hosts[0].start_libvirtd()
        await move.connect()
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
        # Unpaused: the last of its memory was still on its way, and QEMU went on before libvirt told it to.
        goes_on = [("Running", reason, True, "") for reason in ("MigrationCanceled", "Unpaused")]
        seen = await move.until(*((source, None) for source in (*goes_on, STALE)))
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


def test_a_qemu_that_hangs_takes_up_one_question(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await move.begin()
        move.hosts[0].freeze_qemu(move.one.uuid)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await move.source.connection.job(move.one.uuid)
        async with asyncio.timeout(30):  # with QEMU it would wait for ever
            with pytest.raises(HostError) as caught:
                await move.source.connection.job(move.one.uuid)
            assert caught.value.code == OPERATION_TIMEOUT
            row = await move.source.connection.domain(move.one.uuid)
            assert row is not None
            assert row.state == "Running"
        move.hosts[0].thaw_qemu(move.one.uuid)
        for _attempt in range(100):
            with contextlib.suppress(HostError):
                await move.source.connection.job(move.one.uuid)
                break
            await asyncio.sleep(0.05)
        await move.until((COPIES, COMING))
        await move.switch()
        assert await move.outcome() is None

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


FORGOTTEN = ("Shutoff", "Migrated", True, "")
"""What libvirt leaves on the source when QEMU went on by itself: it forgets that the definition was to go."""
OVER = ((None, ARRIVED), (FORGOTTEN, ARRIVED))


async def _in_post_copy(move: Move) -> None:
    await move.begin(post_copy=True, post_copy_mib_s=8)
    await move.source.connection.start_post_copy(move.one.uuid)
    await move.until((HALF, OTHER_HALF))
    assert move.running() == (False, True)


async def _broken(move: Move) -> None:
    """In post-copy, with the streams between the hosts cut and both having seen it."""
    await _in_post_copy(move)
    move.hosts[0].part(move.hosts[1])
    assert type(await move.outcome()) is HostError
    await move.until((BROKEN, OTHER_BROKEN))


async def _resume(move: Move) -> None:
    await move.source.connection.resume_post_copy(move.one.uuid, replace(move.request, post_copy_mib_s=0))


async def _resuming(move: Move) -> asyncio.Task[None]:
    """A call in mid-air: the target is ready, and what the source's libvirt sends there to connect is lost."""
    source, target = move.hosts
    target.swallow(source)
    source.unfilter()
    call = asyncio.create_task(_resume(move))
    await eventually(lambda: _connects(source), "the source to connect")
    return call


def _connects(host: Host) -> bool:
    """Whether the host tries to connect to where migrations come in."""
    folder = Path(f"/proc/{host.processes()[0].pid}/net")
    lines = [line.split() for name in ("tcp", "tcp6") for line in (folder / name).read_text().splitlines()[1:]]
    first, last = (int(port) for port in STREAMS.split(":"))
    return any(words[3] == "02" and first <= int(words[2].rpartition(":")[2], 16) <= last for words in lines)


def test_post_copy_runs_on_the_target_and_cannot_be_aborted(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        await _in_post_copy(move)
        with pytest.raises(HostError, match="post-copy") as caught:
            await move.source.connection.abort_job(move.one.uuid)
        assert caught.value.code == OPERATION_INVALID
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
        # libvirt 9.0 may hold the source's job for ever, so that its definition cannot be removed.
        move.hosts[0].kill_libvirtd()

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
    """As the operator does, it is asked for again as long as both halves are shown as broken."""

    async def drill(move: Move) -> None:
        await _broken(move)
        for number in restarted:
            move.hosts[number].kill_libvirtd()
            move.hosts[number].start_libvirtd()
            await move.connect()
            await move.until((BROKEN, OTHER_BROKEN))
        move.hosts[0].unfilter()
        while (await move.until((BROKEN, OTHER_BROKEN), *OVER, seconds=40))[0] == BROKEN:
            with contextlib.suppress(HostError):
                await _resume(move)
        assert move.running() == (False, True)

    drilled(lab, drill)


def test_a_resume_that_fails_by_libvirts_word_goes_on_by_itself(lab: Lab) -> None:
    """The target's libvirt is asked how it went before its QEMU has taken the connection, and says that it failed."""

    async def drill(move: Move) -> None:
        await _broken(move)
        target = move.hosts[1]
        call = await _resuming(move)
        target.freeze_qemu(move.one.uuid)
        target.unfilter()
        with pytest.raises(HostError, match="failed in post-copy phase"):
            await call
        assert await move.seen() == (BROKEN, OTHER_BROKEN)
        with pytest.raises(HostError, match="still running"):
            await _resume(move)
        target.thaw_qemu(move.one.uuid)
        await move.until((FORGOTTEN, ARRIVED))
        assert (move.qemus(), move.running()) == ((False, True), (False, True))

    drilled(lab, drill)


def test_a_resume_into_a_silent_network_takes_up_the_question_for_the_job_and_nothing_else(lab: Lab) -> None:
    """The source's libvirt itself connects to the target's QEMU, and asks its own nothing until TCP gives up."""

    async def drill(move: Move) -> None:
        await _broken(move)
        call = await _resuming(move)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await move.source.connection.job(move.one.uuid)
        row = await move.source.connection.domain(move.one.uuid)
        assert row is not None
        assert (row.state, row.reason) == ("Paused", "PostcopyFailed")
        move.hosts[1].unfilter()
        with contextlib.suppress(HostError):
            await call
        await move.until(*OVER, seconds=40)

    drilled(lab, drill)


def test_a_source_that_ends_between_the_break_and_the_targets_answer_is_held_by_its_daemon(lab: Lab) -> None:
    """Row 21, and libvirt 9.0 forgets to end the job: the definition cannot be removed until libvirtd is restarted."""

    async def drill(move: Move) -> None:
        await _in_post_copy(move)
        source, target = move.hosts
        target.freeze_libvirtd()
        source.part(target)
        await eventually(lambda: "post-copy failed" in source.virsh("domstate", "--reason", move.one.uuid), "the break")
        source.kill_qemu(move.one.uuid)
        target.thaw_libvirtd()
        assert type(await move.outcome()) is HostError
        await move.until((("Shutoff", "Crashed", True, ""), OTHER_BROKEN))
        undefine = ("virsh", "-q", "-c", source.uri_tcp, "undefine", move.one.uuid)
        run("timeout", "5", *undefine, check=False)
        assert move.definitions() == (True, True)
        source.kill_libvirtd()
        source.start_libvirtd()
        run(*undefine)
        assert move.definitions() == (False, True)

    drilled(lab, drill)


def test_what_is_off_or_not_there_has_no_job(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        assert await move.source.connection.job(move.one.uuid) is None
        assert await move.target.connection.job(move.one.uuid) is None
        await move.source.do(act.Destroy("", move.one.uuid))
        assert await move.source.connection.job(move.one.uuid) is None

    drilled(lab, drill)
