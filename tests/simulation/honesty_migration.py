# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D103 - the name of a probe is its sentence
"""Probes of live migration: what both hosts show in its phases, and after what can happen between them.

The guest writes to its memory all the time, and the stream is slow: nothing ends before the probe lets it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from homeostat.hosts.driver import OPERATION_FAILED, Connection
from homeostat.hosts.migration import MigrationRequest, Out
from tests.simulation.honesty_rig import Rig, Seen, code, domain_xml, probe


@dataclass
class Moving:
    """A domain that is being moved from the first machine to the second."""

    rig: Rig
    number: str
    there: Connection
    request: MigrationRequest
    call: asyncio.Task[int] | None = None

    async def begin(self, **changes: Any) -> None:
        """Begin; returns in mid-copy."""
        self.request = replace(self.request, **changes)
        self.call = asyncio.create_task(code(self.rig.host.migrate(self.number, self.request)))
        for _ in range(200):
            job = await self.rig.host.job(self.number)
            if isinstance(job, Out) and job.processed:
                return
            await asyncio.sleep(0.05)

    async def switch(self) -> None:
        """Let it come to its switchover."""
        await self.rig.host.set_migration_speed(self.number, 1000)
        await self.rig.host.set_max_downtime(self.number, 60_000)

    async def left(self) -> None:
        """Wait until the first machine has stopped the CPUs to let the second one go on."""
        await self.rig.until(self._paused)

    async def _paused(self) -> bool:
        row = await self.rig.host.domain(self.number)
        return row is not None and row.state == "Paused"

    async def outcome(self) -> int:
        """The code of the call's error."""
        assert self.call is not None
        return await self.call

    async def again(self) -> None:
        """Connect to both machines anew."""
        await self.rig.again()
        self.there = await self.rig.connect(self.rig.two)

    async def side(self, host: Connection) -> Any:
        """State, reason, persistent and job on one machine."""
        job = await host.job(self.number)
        row = await host.domain(self.number)
        return row and (row.state, row.reason, row.persistent, type(job).__name__)

    async def seen(self) -> Seen:
        """Both sides once they have been the same for a while, and where there are processes and running CPUs."""
        before, same = None, 0
        for _ in range(450):
            now = [await self.side(self.rig.host), await self.side(self.there)]
            same = same + 1 if now == before else 0
            if same == 10:
                break
            before = now
            await asyncio.sleep(0.1)
        machines = (self.rig.one, self.rig.two)
        processes = [await machine.qemus(self.number) for machine in machines]
        return [*now, *processes, *[await machine.running(self.number) for machine in machines]]

    async def until(self, state: str, reason: str) -> None:
        """Wait until the second machine shows this."""
        for _ in range(450):
            side = await self.side(self.there)
            if side and side[:2] == (state, reason):
                return
            await asyncio.sleep(0.05)


async def moving(rig: Rig, *, own: bool = False) -> Moving:
    """A running domain with a disk on common storage, or on storage that only looks common."""
    number, name = rig.fresh()
    rig.files.append(f"{name}.raw")
    pool = rig.one.own_pool if own else rig.one.pool
    for machine in (rig.one, rig.two):
        await machine.restless(name, pool, f"{name}.raw")
    path = f"{(await rig.host.pool(pool)).path}/{name}.raw"
    await rig.host.define(domain_xml(number, name, path))
    await rig.host.create(number, paused=False)
    await rig.one.writes(number)
    await asyncio.sleep(2)
    request = MigrationRequest(rig.two.uri, unsafe=True, bandwidth_mib_s=4, max_downtime_ms=20)
    return Moving(rig, number, await rig.connect(rig.two), request)


@probe
async def moving_a_domain(rig: Rig) -> Seen:
    move = await moving(rig)
    await move.begin()
    middle = await move.seen()
    await move.switch()
    return [middle, await move.outcome(), await move.seen()]


@probe
async def moving_a_domain_with_checkpoints(rig: Rig) -> Seen:
    move = await moving(rig)
    first, second = [_checkpoint("first"), _checkpoint("second", "first")]
    seen: Seen = [await code(rig.host.redefine_checkpoint(move.number, xml)) for xml in (second, first, second)]
    seen += [await _checkpoints(rig.host, move), await _checkpoints(move.there, move)]
    await move.begin()
    await move.switch()
    seen += [await move.outcome(), await _checkpoints(rig.host, move), await _checkpoints(move.there, move)]
    seen += [await code(move.there.redefine_checkpoint(move.number, xml)) for xml in (first, first, second)]
    seen.append(await _checkpoints(move.there, move))
    await move.there.destroy(move.number)
    seen.append(await _checkpoints(move.there, move))
    return [*seen, await code(move.there.undefine(move.number)), await _checkpoints(move.there, move)]


def _checkpoint(name: str, parent: str = "") -> str:
    inner = f"<parent><name>{parent}</name></parent>" if parent else ""
    disks = f"<disks><disk name='vda' checkpoint='bitmap' bitmap='{name}'/></disks>"
    return f"<domaincheckpoint><name>{name}</name>{inner}<creationTime>1</creationTime>{disks}</domaincheckpoint>"


async def _checkpoints(host: Connection, move: Moving) -> Any:
    """Those of the domain by name, and whether the list of domains says that there are any."""
    found = await host.checkpoints(move.number)
    listed = [row.checkpoints for row in await host.domains() if row.uuid == move.number]
    return found and [each.name for each in found], listed


@probe
async def moving_to_where_it_is_defined(rig: Rig) -> Seen:
    move = await moving(rig)
    text = await rig.host.xml(move.number, inactive=True)
    assert text is not None
    await move.there.define(text)
    await move.begin()
    middle = await move.seen()
    await rig.host.abort_job(move.number)
    return [middle, await move.outcome(), await move.seen()]


@probe
async def moving_and_starting_paused(rig: Rig) -> Seen:
    move = await moving(rig)
    await move.begin(start_paused=True)
    await move.switch()
    seen = [await move.outcome(), await move.seen(), await code(move.there.resume(move.number))]
    return [*seen, await move.seen()]


@probe
async def moving_what_is_paused(rig: Rig) -> Seen:
    move = await moving(rig)
    await rig.host.suspend(move.number)
    await move.begin()
    seen: Seen = [await move.seen()]
    await rig.host.abort_job(move.number)
    seen.extend((await move.outcome(), await move.seen()))
    await move.begin()
    await rig.two.mute()
    await move.switch()
    return [*seen, await move.outcome(), await move.seen()]


@probe
async def moving_what_is_paused_on_the_way(rig: Rig) -> Seen:
    move = await moving(rig)
    await move.begin()
    await rig.host.suspend(move.number)
    await move.switch()
    return [await move.outcome(), await move.seen()]


@probe
async def moves_that_are_not_begun(rig: Rig) -> Seen:
    move = await moving(rig)
    wrong: list[dict[str, Any]] = [
        {"unsafe": False},
        {"peer": rig.one.uri},
        {"peer": "qemu+tcp://nobody.invalid/system"},
    ]
    seen = [await code(rig.host.migrate(move.number, replace(move.request, **each))) for each in wrong]
    peers = (rig.two.uri, rig.one.uri, "qemu+tcp://nobody.invalid/system")
    seen += [await code(rig.host.reach(move.number, peer)) for peer in peers]
    await move.begin()
    seen.append(await code(rig.host.migrate(move.number, move.request)))
    seen.append(await code(rig.host.reach(move.number, rig.two.uri)))
    await rig.host.abort_job(move.number)
    return [*seen, await move.outcome(), await move.seen()]


@probe
async def steering_what_does_not_move(rig: Rig) -> Seen:
    move = await moving(rig)
    number = move.number
    calls = (rig.host.abort_job, rig.host.start_post_copy)
    seen = [await code(call(number)) for call in calls] + [await code(rig.host.set_max_downtime(number, 100))]
    await move.begin()
    seen.append(await code(rig.host.start_post_copy(number)))
    await rig.host.abort_job(number)
    await move.outcome()
    await rig.host.destroy(number)
    seen += [await code(call(number)) for call in calls] + [await code(rig.host.set_max_downtime(number, 100))]
    return [*seen, await rig.host.job(number), await code(rig.host.migrate(number, move.request))]


@probe
async def changing_what_is_moved(rig: Rig) -> Seen:
    move = await moving(rig)
    await move.begin()
    number, host, there = move.number, rig.host, move.there
    mark = "<vm note='on the way'/>"
    calls = (
        host.set_metadata(number, mark, live=True),
        host.undefine(number),
        host.resume(number),
        host.shutdown(number, agent=False),
        there.set_metadata(number, mark, live=True),
        there.resume(number),
        there.suspend(number),
    )
    seen: Seen = await asyncio.gather(*map(code, calls))
    await host.abort_job(number)
    return [*seen, await move.outcome(), await move.seen()]


@probe
async def a_target_without_the_disk(rig: Rig) -> Seen:
    move = await moving(rig, own=True)
    await move.there.refresh_pool(rig.two.own_pool)
    await move.there.delete_volume(rig.two.own_pool, rig.files[-1])
    return [await code(rig.host.migrate(move.number, move.request)), await move.seen()]


@probe
async def destroying_and_stopping_what_is_moved(rig: Rig) -> Seen:
    stopped = await moving(rig)
    await stopped.begin()
    seen = [await code(rig.host.suspend(stopped.number)), await stopped.seen()]
    await rig.host.abort_job(stopped.number)
    seen += [await stopped.outcome(), await stopped.seen()]
    ended = await moving(rig)
    await ended.begin()
    seen += [await code(rig.host.destroy(ended.number)), await ended.outcome(), await ended.seen()]
    return seen


@probe
async def the_answer_to_finish_is_lost(rig: Rig) -> Seen:
    move = await moving(rig)
    await move.begin()
    await rig.two.mute()
    await move.switch()
    seen = [await move.outcome(), await move.seen()]
    await rig.two.unfilter()
    seen += [await code(rig.host.resume(move.number)) != 0, await move.seen()]
    await move.there.destroy(move.number)
    return [*seen, await code(rig.host.resume(move.number)), await move.seen()]


@probe
async def the_answer_to_finish_is_lost_without_a_lock(rig: Rig) -> Seen:
    move = await moving(rig, own=True)
    await move.begin()
    await rig.two.mute()
    await move.switch()
    return [await move.outcome(), await move.seen()]


@probe
async def the_answer_to_finish_of_a_paused_start_is_lost(rig: Rig) -> Seen:
    move = await moving(rig)
    await move.begin(start_paused=True)
    await rig.two.mute()
    await move.switch()
    return [await move.outcome(), await move.seen()]


@probe
async def the_sources_daemon_dies_in_mid_copy(rig: Rig) -> Seen:
    move = await moving(rig)
    await move.begin()
    await rig.one.restart_daemon()
    seen = [await move.outcome() != 0]
    await move.again()
    return [*seen, await move.seen()]


@probe
async def the_sources_daemon_dies_after_finish(rig: Rig) -> Seen:
    move = await moving(rig)
    await move.begin()
    await rig.two.mute()
    await move.switch()
    await move.until("Running", "Migrated")
    await rig.one.restart_daemon()
    await move.again()
    return [await move.seen()]


@probe
async def the_sources_daemon_dies_before_finish(rig: Rig) -> Seen:
    move = await moving(rig)
    await move.begin()
    await rig.two.refuse()
    await move.switch()
    await move.left()
    await asyncio.sleep(2)
    await rig.one.stop_daemon()
    there = await move.side(move.there)  # it waits for seconds, and a daemon may take as long to start
    await rig.one.start_daemon()
    await move.again()
    first = [await move.side(rig.host), there]
    await asyncio.sleep(45)
    return [first, await move.seen()]


@probe
async def the_targets_daemon_dies_in_mid_copy(rig: Rig) -> Seen:
    move = await moving(rig)
    await move.begin()
    await rig.two.stop_daemon()
    seen = [await move.outcome()]
    await rig.two.start_daemon()
    await move.again()
    return [*seen, await move.seen()]


@probe
async def the_targets_daemon_dies_at_the_switchover(rig: Rig) -> Seen:
    move = await moving(rig)
    await move.begin()
    await rig.two.refuse()
    await move.switch()
    await move.left()
    await asyncio.sleep(2)
    await rig.two.stop_daemon()
    seen = [await move.outcome()]
    await rig.two.start_daemon()
    await move.again()
    return [*seen, await move.seen()]


@probe
async def the_daemon_of_where_it_went_restarts(rig: Rig) -> Seen:
    move = await moving(rig)
    await move.begin()
    await move.switch()
    await move.outcome()
    await rig.two.restart_daemon()
    await move.again()
    return [await move.seen()]


@probe
async def a_qemu_dies_in_mid_copy(rig: Rig) -> Seen:
    seen: Seen = []
    for machine in (rig.one, rig.two):
        move = await moving(rig)
        await move.begin()
        await machine.kill_qemu(move.number)
        seen += [await move.outcome() != 0, await move.seen()]
    return seen


@probe
async def the_stream_breaks_in_mid_copy(rig: Rig) -> Seen:
    move = await moving(rig)
    await move.begin()
    await rig.two.part()
    return [await move.outcome() != 0, await move.seen()]


@probe
async def the_target_hangs_in_mid_copy(rig: Rig) -> Seen:
    move = await moving(rig)
    await move.begin()
    await rig.two.freeze_daemon()
    seen = [await move.outcome()]
    await rig.two.thaw_daemon()
    await move.again()
    return [*seen, await move.seen()]


async def _in_post_copy(rig: Rig) -> Moving:
    move = await moving(rig)
    await move.begin(post_copy=True, post_copy_mib_s=4)
    await rig.host.start_post_copy(move.number)
    await move.until("Running", "Postcopy")
    return move


@probe
async def post_copy_breaks_and_goes_on(rig: Rig) -> Seen:
    """Once more if the target's libvirt was asked for the result before its QEMU had taken the connection.

    It then says that what goes on has failed: tests/lab/test_driver_migration_faults.py shows what comes of that.
    """
    for _ in range(5):
        too_early, seen = await _breaks_and_goes_on(rig)
        if not too_early:
            break
    return seen


async def _breaks_and_goes_on(rig: Rig) -> tuple[bool, Seen]:
    """Whether the resume failed by libvirt's word and the VM arrived all the same, and all that is seen."""
    move = await _in_post_copy(rig)
    seen = [await move.seen(), await code(rig.host.abort_job(move.number))]
    await rig.two.part()
    seen += [await move.outcome(), await move.seen()]
    seen.append(await code(rig.host.migrate(move.number, move.request)))
    await rig.two.unfilter()
    resumed = await code(rig.host.resume_post_copy(move.number, replace(move.request, post_copy_mib_s=0)))
    seen += [resumed, await move.seen(), again := await code(rig.host.resume_post_copy(move.number, move.request))]
    if resumed != OPERATION_FAILED or again == 0:
        return False, seen
    await move.until("Running", "Migrated")
    side = await move.side(move.there)
    return side is not None and side[:2] == ("Running", "Migrated"), seen


@probe
async def post_copy_and_a_restart_of_the_sources_daemon(rig: Rig) -> Seen:
    move = await _in_post_copy(rig)
    await rig.one.restart_daemon()
    await move.outcome()
    await move.again()
    seen = [await move.seen()]
    await asyncio.sleep(30)
    return [*seen, await move.seen()]


@probe
async def post_copy_and_a_restart_of_the_targets_daemon(rig: Rig) -> Seen:
    move = await _in_post_copy(rig)
    await rig.two.restart_daemon()
    seen: Seen = [await move.outcome()]
    await move.again()
    seen.append(await move.seen())
    await asyncio.sleep(30)
    return [*seen, await move.seen()]


@probe
async def resuming_what_only_the_source_takes_for_broken(rig: Rig) -> Seen:
    move = await _in_post_copy(rig)
    await rig.two.restart_daemon()
    await move.outcome()
    await move.again()
    seen: Seen = [await move.side(rig.host), await move.side(move.there)]
    seen.append(await code(rig.host.resume_post_copy(move.number, move.request)))
    await asyncio.sleep(25)
    return [*seen, await move.seen()]


@probe
async def a_half_of_post_copy_dies(rig: Rig) -> Seen:
    seen: Seen = []
    for machine in (rig.one, rig.two):
        move = await _in_post_copy(rig)
        await machine.kill_qemu(move.number)
        seen += [await move.outcome() != 0, await move.seen()]
    return seen
