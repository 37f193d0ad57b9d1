# SPDX-License-Identifier: Apache-2.0
"""The simulated migration by itself: whatever happens at whatever point, it ends in a state that real hosts show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from homeostat.hosts.driver import Connection, HostError
from homeostat.hosts.migration import MigrationRequest, Out
from tests.simulation.bench import UUID, Bench, bench, domain
from tests.simulation.clock import run_virtual
from tests.simulation.hypervisor import Record
from tests.simulation.machine import Machine
from tests.simulation.migration import POINTS
from tests.simulation.qemu import Guest, Process

pytestmark = pytest.mark.simulation

Row = tuple[str, str, bool] | None
SLOW = MigrationRequest("qemu+tcp://h2/system", unsafe=True, bandwidth_mib_s=4, max_downtime_ms=20)
QUICK = replace(SLOW, bandwidth_mib_s=0, max_downtime_ms=60_000)


@dataclass
class Two:
    """A running domain on h1, and a connection to h1."""

    bench: Bench
    source: Connection
    here: Machine
    there: Machine

    def rows(self) -> tuple[Row, Row]:
        """What both machines' libvirts know of it."""
        found = [(one.state, one.reason, one.persistent is not None) if one else None for one in self.records()]
        return found[0], found[1]

    def records(self) -> list[Record | None]:
        """Its records on both machines."""
        return [machine.records.get(UUID) for machine in (self.here, self.there)]

    def processes(self) -> list[Process]:
        """Its QEMU processes."""
        return self.bench.world.ledger.running(UUID)


@asynccontextmanager
async def two(*, locks: bool = True, **guest: Any) -> AsyncIterator[Two]:
    """A running domain that writes to its memory all the time."""
    async with bench(locks=locks) as made:
        here, there = made.world.hosts.values()
        here.pools["shared"].storage.put("root")
        here.guests["web"] = there.guests["web"] = Guest(**{"dirty_mib_s": 1000.0, **guest})
        source = await made.connect("h1")
        await source.define(domain(UUID, "web", f"{here.pools['shared'].path}/root"))
        await source.create(UUID, paused=False)
        yield Two(made, source, here, there)


def kill(machine: Machine) -> None:
    """SIGKILL to every QEMU of a machine."""
    for process in machine.processes():
        process.kill()


def for_a_while(begin: Callable[[], None], end: Callable[[], None], seconds: float, one: Two) -> None:
    """A fault that passes."""
    begin()
    one.bench.world.effects.later(seconds, end)


FAULTS: dict[str, Callable[[Two], None]] = {
    "source-daemon": lambda one: one.here.restart_daemon(),
    "target-daemon": lambda one: one.there.restart_daemon(),
    "source-qemu": lambda one: kill(one.here),
    "target-qemu": lambda one: kill(one.there),
    "source-off": lambda one: one.here.reboot(40),
    "target-off": lambda one: one.there.reboot(40),
    "cut": lambda one: for_a_while(one.there.cut, one.there.restore, 50, one),
    "blip": lambda one: for_a_while(one.there.cut, one.there.restore, 5, one),
    "frozen": lambda one: for_a_while(one.there.freeze, one.there.thaw, 50, one),
    "muted": lambda one: one.there.mute(),
    "refused": lambda one: one.there.refuse(),
}


@pytest.mark.parametrize("paused", [False, True], ids=["", "paused"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("point", POINTS)
def test_it_ends_in_a_state_that_real_hosts_show(point: str, fault: str, paused: bool) -> None:
    async def test() -> None:
        async with two() as one:
            one.here.at[point] = lambda: FAULTS[fault](one)
            call = asyncio.create_task(one.bench.refused(one.source.migrate(UUID, replace(QUICK, start_paused=paused))))
            await asyncio.sleep(150)
            assert call.done()
            assert not one.here.at, "the point was never reached"
            seen, processes = one.rows(), one.processes()
            assert seen in STATES, seen
            assert all(record.doing is None for record in one.records() if record)
            if len(processes) > 1:
                assert seen[0] in (STALE, BACK)
                assert sum(process.cpus_since is not None for process in processes) == (seen != (STALE, WAITS))
            one.bench.world.check()

    run_virtual(test())


STAYS, STALE, BACK = ("Running", "Booted", True), ("Paused", "Migration", True), ("Running", "MigrationCanceled", True)
CRASHED, OFF = ("Shutoff", "Crashed", True), ("Shutoff", "Unknown", True)
ARRIVED, WAITS = ("Running", "Migrated", True), ("Paused", "User", True)
STATES = {
    *((None, there) for there in (ARRIVED, WAITS, CRASHED, OFF)),
    *((here, None) for here in (STAYS, STALE, BACK, CRASHED, OFF)),
    *((STALE, there) for there in (ARRIVED, WAITS, CRASHED, OFF)),
    *((BACK, there) for there in (WAITS, CRASHED, OFF)),
    *((off, there) for off in (CRASHED, OFF) for there in (ARRIVED, WAITS)),
}
"""(source, target): what the lab has shown, and hosts that lost their power."""


@pytest.mark.parametrize("fault", FAULTS)
def test_post_copy_keeps_both_halves_or_arrives(fault: str) -> None:
    async def test() -> None:
        async with two() as one:
            request = replace(SLOW, post_copy=True, post_copy_mib_s=2)
            call = asyncio.create_task(one.bench.refused(one.source.migrate(UUID, request)))
            await asyncio.sleep(5)
            await one.source.start_post_copy(UUID)
            await asyncio.sleep(2)
            FAULTS[fault](one)
            await asyncio.sleep(150)
            assert call.done()
            seen = one.rows()
            running = [process for process in one.processes() if process.cpus_since is not None]
            assert all(process.host == "h2" for process in running), "the source holds half of its memory"
            assert seen in ((None, ARRIVED), (("Shutoff", "Migrated", True), ARRIVED)) or {
                "PostcopyFailed",
                "Crashed",
                "Unknown",
            } & {s[1] for s in seen if s}, seen
            one.bench.world.check()

    run_virtual(test())


def test_without_a_lock_a_lost_answer_has_it_run_twice() -> None:
    async def test() -> None:
        async with two(locks=False) as one:
            one.there.mute()
            with pytest.raises(HostError):
                await one.source.migrate(UUID, QUICK)
            assert one.rows() == (BACK, ARRIVED)
            assert [v for v in one.bench.world.effects.violations if "run twice" in v]
            one.bench.world.effects.violations.clear()

    run_virtual(test())


def test_the_policy_decides_whether_a_busy_guest_converges() -> None:
    async def test() -> None:
        async with two(dirty_mib_s=100.0) as one:
            slow = replace(SLOW, bandwidth_mib_s=40)
            call = asyncio.create_task(one.source.migrate(UUID, slow))
            await asyncio.sleep(600)
            job = await one.source.job(UUID)
            assert isinstance(job, Out)
            assert job.iteration > 100
            assert job.dirty_rate == 100 * 256
            assert not call.done()
            await one.source.set_max_downtime(UUID, 2000)
            await call
        async with two(dirty_mib_s=100.0) as one:
            await one.source.migrate(UUID, replace(slow, auto_converge=True))
            assert one.rows() == (None, ARRIVED)

    run_virtual(test())


def test_a_guest_that_powers_off_on_the_way_is_off_where_it_was_and_after_it_where_it_is() -> None:
    async def test() -> None:
        async with two(off_after=20.0) as one:
            with pytest.raises(HostError):
                await one.source.migrate(UUID, SLOW)
            assert one.rows() == (("Shutoff", "Shutdown", True), None)
        async with two(off_after=20.0) as one:
            await one.source.migrate(UUID, QUICK)
            await asyncio.sleep(30)
            assert one.rows() == (None, ("Shutoff", "Shutdown", True))

    run_virtual(test())
