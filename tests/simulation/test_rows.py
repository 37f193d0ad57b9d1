# SPDX-License-Identifier: Apache-2.0
"""The operator in rows of the table that no fault of the protocol leads to: both hosts are brought there by hand."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from dataclasses import dataclass

import pytest

from tests.simulation.apiserver import Object
from tests.simulation.harness import in_world
from tests.simulation.hypervisor import Record
from tests.simulation.machine import Machine
from tests.simulation.qemu import Guest, Process
from tests.simulation.test_disasters import running
from tests.simulation.test_moves import move
from tests.simulation.world import World

pytestmark = pytest.mark.simulation


@dataclass
class Laid:
    """A migration that an operator began before it died, and a libvirtd that no longer knows of it."""

    world: World
    home: Machine
    target: Machine

    @property
    def record(self) -> Record:
        """The source's record."""
        return self.home.records[self.world.uuid("web")]

    @property
    def process(self) -> Process:
        """The source's process."""
        return self.home.process(self.world.uuid("web"))

    def lay_target(self, what: str) -> None:
        """What the target shows, while the source's process is there."""
        if what == "absent":
            return
        uuid, before = self.record.uuid, self.process
        record = self.target.incoming(self.record, deepcopy(before.live))
        assert record.process is not None
        record.process.move = before.move = self
        if what == "waits":
            return
        record.doing = None
        if what != "held":
            record.persistent = deepcopy(record.live)
        match what:
            case "held":
                self.target.shows(record, "Paused", "Migration")
            case "paused":
                self.target.shows(record, "Paused", "User")
            case "stuck":
                self.target.shows(record, "Paused", "IOError")
            case "off":
                record.process.end("Shutdown")
            case "lost" | "lost-writer":
                if what == "lost-writer":
                    before.pause()
                    before.hand_over()
                    record.process.activate()
                self.target.shows(record, "Paused", "User")
                self.target.lose_record(uuid)
            case _:
                self._run_on_the_target(record, before, what)

    def _run_on_the_target(self, record: Record, before: Process, what: str) -> None:
        assert record.process is not None
        before.pause()
        before.hand_over()
        record.process.activate()
        record.process.run()
        self.target.shows(record, "Running", "PostcopyFailed" if what == "stranded" else "Migrated")

    def lay_source(self, what: str) -> None:
        """What the source shows."""
        record, process = self.record, self.process
        if what == "runs":
            return
        process.pause()
        match what:
            case "held":
                process.hand_over()
                self.home.shows(record, "Paused", "Migration")
            case "broken":
                self.home.shows(record, "Paused", "PostcopyFailed")
            case "paused":
                self.home.shows(record, "Paused", "User")
            case "lost":
                self.home.lose_record(record.uuid)
            case _:
                record.persistent = None if what == "absent" else record.persistent
                process.end("Migrated" if what == "migrated" else "Shutdown")

    def status(self) -> Object:
        """That of the migration."""
        return self.world.status("go", "vmmig")

    def says(self, type_: str) -> bool:
        """Whether a condition of it is true."""
        return any(each["type"] == type_ and each["status"] == "True" for each in self.status()["conditions"])

    async def until_decided(self) -> tuple[str, str]:
        """(reason, row) once it is over, or a person's to decide."""
        await self.world.run_until(lambda: self.says("Finished") or self.says("Ambiguous"), 900)
        return self.status()["reason"], self.status()["decision"]["row"]

    async def resolve(self, keep: str) -> None:
        """A person's answer to what is seen."""
        evidence = self.status()["decision"]["evidence"]
        self.world.edit("vmmig", "go", resolve={"keep": keep, "evidence": evidence})
        await self.world.run_until(lambda: self.says("Finished"), 900)


async def laid(world: World, source: str, target: str, switchover: str = "Automatic") -> Laid:
    """Two hosts that show this, and an operator that is started then."""
    for host in world.hosts.values():
        host.default_guest = Guest(dirty_mib_s=4000)
    world.storages["shared"].locks, world.storages["shared"].locks_across = True, False
    home = world.hosts[await running(world)]
    (other,) = (host for host in world.hosts.values() if host is not home)
    pair = Laid(world, home, other)
    move(world, policy={"bandwidth": "1Mi", "switchover": switchover})
    await world.run_until(lambda: world.status("go", "vmmig").get("reason") == "Copying", 120)
    await world.settle(5)
    world.kill()
    home.restart_daemon()
    await world.settle(60)
    assert not other.records, "libvirt has rolled it back"
    pair.lay_target(target)
    pair.lay_source(source)
    world.start()
    return pair


def processes(pair: Laid) -> list[tuple[str, bool]]:
    """(host, whether its CPUs run) of each process of the VM."""
    found = pair.world.ledger.running(pair.world.uuid("web"))
    return sorted((process.host, process.cpus_since is not None) for process in found)


HEALS = [
    ("5", "runs", "off", "RolledBack"),
    ("4", "absent", "arrived", "Migrated"),
    ("4", "migrated", "arrived", "Migrated"),
    ("7b", "held", "off", "MigratedThenOff"),
    ("18", "migrated", "absent", "MigratedThenOff"),
    ("18", "migrated", "off", "MigratedThenOff"),
    ("18b", "absent", "off", "MigratedThenOff"),
    ("16", "off", "absent", "VMDown"),
    ("6", "held", "arrived", "Migrated"),
    ("7", "held", "absent", "RolledBack"),
    ("22", "broken", "absent", "VMDown"),
    ("22", "broken", "off", "MigratedThenOff"),
]


def rows_of(world: World) -> set[str]:
    """Will have every row that a decision of the migration in status was in."""
    rows: set[str] = set()

    def note(kind: str, before: Object | None, after: Object | None) -> None:
        row = (after or {}).get("status", {}).get("decision", {}).get("row")
        rows.update([row] if row else [])

    world.api.changed.append(note)
    return rows


@pytest.mark.parametrize(("row", "source", "target", "reason"), HEALS)
@in_world()
async def test_it_ends_by_itself_and_the_vm_runs_once(
    world: World, row: str, source: str, target: str, reason: str
) -> None:
    pair, rows = await laid(world, source, target), rows_of(world)
    assert (await pair.until_decided())[0] == reason
    assert row in rows
    await world.run_until(lambda: world.ready("web"), 900)
    await world.rest()


@pytest.mark.parametrize("tenths", range(0, 10, 3))
@in_world()
async def test_a_process_is_ended_no_sooner_than_its_grace_period_though_records_have_whole_seconds(
    world: World, tenths: int
) -> None:
    await asyncio.sleep(tenths / 10)
    pair = await laid(world, "held", "arrived")
    seconds = await world.run_until(lambda: len(processes(pair)) == 1, 120)
    assert seconds >= world.settings.migration_grace_seconds
    assert (await pair.until_decided())[0] == "Migrated"


ASKS = [
    ("9", "held", "held", "NoOwner", "KeepSource"),
    ("9", "held", "held", "NoOwner", "KeepTarget"),
    ("9b", "runs", "held", "LeftoverProcess", "KeepSource"),
    ("9c", "absent", "held", "NoOwner", "KeepTarget"),
    ("11", "paused", "arrived", "SplitBrain", "KeepTarget"),
    ("11b", "runs", "stuck", "SplitBrain", "KeepSource"),
    ("11c", "runs", "paused", "SplitBrain", "KeepSource"),
    ("21", "absent", "stranded", "MemoryLost", "KeepSource"),
    ("16b", "absent", "absent", "MovedElsewhere", "KeepTarget"),
]


@pytest.mark.parametrize(("row", "source", "target", "reason", "keep"), ASKS)
@in_world()
async def test_a_person_is_asked_and_nothing_is_done_before_and_one_is_left_after(
    world: World, row: str, source: str, target: str, reason: str, keep: str
) -> None:
    pair = await laid(world, source, target)
    before = processes(pair)
    assert await pair.until_decided() == (reason, row)
    await world.settle(600)
    assert processes(pair) == before
    assert pair.says("Ambiguous")
    await pair.resolve(keep)
    await world.run_until(lambda: world.ready("web"), 900)
    await world.rest()


@in_world()
async def test_nothing_is_done_while_the_source_is_unknown_and_the_target_was_there(world: World) -> None:
    pair = await laid(world, "held", "off")
    pair.home.cut()
    await world.run_until(lambda: pair.status()["decision"]["row"] == "15b", 300)
    before = processes(pair)
    await world.settle(900)
    assert processes(pair) == before == [(pair.home.name, False)]
    assert not pair.says("Finished")
    pair.home.restore()
    assert (await pair.until_decided())[0] == "MigratedThenOff"
    await world.run_until(lambda: world.ready("web"), 900)
    await world.rest()


@pytest.mark.parametrize(("row", "source"), [("8", "runs"), ("17", "off")])
@in_world()
async def test_a_target_that_still_waits_is_libvirts_to_end(world: World, row: str, source: str) -> None:
    pair = await laid(world, source, "waits")
    await world.run_until(lambda: pair.status()["decision"]["row"] == row, 300)
    before = processes(pair)
    await world.settle(900)
    assert processes(pair) == before
    pair.target.process(world.uuid("web")).kill()
    assert (await pair.until_decided())[0] == ("RolledBack" if source == "runs" else "VMDown")
    await world.run_until(lambda: world.ready("web"), 900)
    await world.rest()


@pytest.mark.parametrize(
    ("row", "source", "target", "reason"),
    [("25", "paused", "absent", "RolledBack"), ("7d", "absent", "paused", "Migrated")],
)
@in_world()
async def test_what_somebody_paused_stays_so_where_it_is(
    world: World, row: str, source: str, target: str, reason: str
) -> None:
    pair, rows = await laid(world, source, target), rows_of(world)
    before = processes(pair)
    assert (await pair.until_decided())[0] == reason
    assert row in rows
    await world.settle(300)
    assert processes(pair) == before == [((pair.home if source == "paused" else pair.target).name, False)]
    assert world.status("web")["state"] == "Paused"


@pytest.mark.parametrize(("row", "source", "target"), [("27", "runs", "lost"), ("27b", "lost", "arrived")])
@in_world()
async def test_a_process_that_libvirt_may_have_lost_is_never_taken_for_none(
    world: World, row: str, source: str, target: str
) -> None:
    pair = await laid(world, source, target)
    before = processes(pair)
    await world.settle(900)
    assert processes(pair) == before
    assert (pair.status()["decision"]["row"], pair.says("Ambiguous")) == (row, True)


@in_world()
async def test_a_process_that_the_target_lost_outlives_the_source_and_gets_no_second_beside_it(world: World) -> None:
    pair, rows = await laid(world, "held", "lost-writer"), rows_of(world)
    await world.settle(3600)
    assert "7b" in rows
    assert processes(pair) == [(pair.target.name, False)]
