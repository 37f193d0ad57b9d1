# SPDX-License-Identifier: Apache-2.0
"""An operator of another version takes over in the middle of a migration: what it may not find, and what it may."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from homeostat.api.meta import camel
from homeostat.api.migration import MarksStatus, VirtualMachineMigrationStatus
from homeostat.kube.transport import MERGE_PATCH
from tests.simulation.apiserver import Object
from tests.simulation.crash_points import CHECKPOINTS
from tests.simulation.harness import in_world
from tests.simulation.machine import Machine
from tests.simulation.qemu import Guest
from tests.simulation.test_disasters import running
from tests.simulation.test_moves import move, reason_at_end
from tests.simulation.test_rows import Laid, laid, processes
from tests.simulation.world import World

pytestmark = pytest.mark.simulation

KEPT = {"intent", "phase", "reason", "conditions"}
"""All that a status has that an older version has left."""
FIELDS = {camel(name) for name in VirtualMachineMigrationStatus.model_fields} - KEPT


def patch_status(world: World, kind: str, name: str, status: Object, manager: str = "kubectl") -> None:
    """What kubectl patch --subresource=status --type=merge does, or who else writes there."""
    where = replace(world._target(kind, name, "" if kind == "hv" else "default"), subresource="status")
    world.api.patch(where, {"status": status}, MERGE_PATCH, manager)


def lose(world: World, *fields: str) -> Object:
    """Take fields (a dot between two names) out of the migration's status, and return it as it was."""
    before = world.status("go", "vmmig")
    for field in fields:
        outer, _, inner = field.partition(".")
        patch_status(world, "vmmig", "go", {outer: {inner: None} if inner else None})
    return before


@dataclass
class Stage:
    """A VM on its way from one host to another."""

    world: World
    home: Machine
    target: Machine

    async def until(self, reason: str) -> None:
        """Lets time pass until the migration says this, and then has its operator die."""
        await self.world.run_until(lambda: self.world.status("go", "vmmig").get("reason") == reason, 300, reason)
        self.world.kill()

    def when_stored(self, true: Callable[[Object], Any]) -> None:
        """Has the operator die right after it has written such a status."""

        def look(kind: str, before: Object | None, after: Object | None) -> None:
            if after and after["kind"] == "VirtualMachineMigration" and true(after.get("status", {})):
                self.world.api.changed.remove(look)
                self.world.kill()

        self.world.api.changed.append(look)

    async def until_dead(self) -> None:
        """Lets time pass until the operator has died."""
        await self.world.run_until(lambda: not self.world.lives[-1].alive, 300, "the operator's death")


Moment = Callable[[Stage, Object], Awaitable[None]]


async def _planned(stage: Stage, policy: Object) -> None:
    stage.when_stored(lambda status: "intent" in status)
    move(stage.world, policy=policy)
    await stage.until_dead()


async def _asked(stage: Stage, policy: Object) -> None:
    stage.world.fault((f"{stage.home.name} migrate", 1), "late=3")
    move(stage.world, policy=policy)
    await stage.until_dead()


async def _copying(stage: Stage, policy: Object) -> None:
    move(stage.world, policy=policy | {"bandwidth": "1Mi"})
    await stage.world.run_until(lambda: "cost" in stage.world.status("go", "vmmig"), 300)
    stage.world.kill()


async def _at(point: str, stage: Stage, policy: Object) -> None:
    stage.home.at[point] = stage.world.kill
    move(stage.world, policy=policy)
    await stage.until_dead()


async def _answer_lost(stage: Stage, policy: Object) -> None:
    _lose_the_answer(stage)
    stage.when_stored(lambda status: status.get("reason") == "EndingSource")
    move(stage.world, policy=policy)
    await stage.until_dead()


async def _source_ended(stage: Stage, policy: Object) -> None:
    _lose_the_answer(stage)
    stage.world.fault((f"{stage.home.name} destroy", 1), "kill-after")
    move(stage.world, policy=policy)
    await stage.until_dead()


def _lose_the_answer(stage: Stage) -> None:
    def silent() -> None:
        stage.target.mute()
        stage.world.effects.later(100, stage.target.unfilter)

    stage.home.at["finishing"] = silent


async def _post_copy(stage: Stage, policy: Object) -> None:
    move(stage.world, policy=policy | {"mode": "PostCopy", "bandwidth": "8Mi"})
    await stage.until("PostCopying")


async def _aborting(stage: Stage, policy: Object) -> None:
    stage.world.fault((f"{stage.home.name} abort_job", 1), "kill-after")
    move(stage.world, policy=policy | {"bandwidth": "1Mi"})
    await stage.world.settle(15)
    stage.world.edit("vmmig", "go", abort="Requested")
    await stage.until_dead()


async def _timed_out(stage: Stage, policy: Object) -> None:
    stage.world.fault((f"{stage.home.name} abort_job", 1), "kill-after")
    move(stage.world, policy=policy | {"bandwidth": "1Mi", "completionTimeoutSecondsPerGiB": 3})
    await stage.until_dead()


async def _forced(stage: Stage, policy: Object) -> None:
    limits = {"bandwidth": "1Mi", "completionTimeoutSecondsPerGiB": 3, "onTimeout": "ForceComplete"}
    stage.world.fault((f"{stage.home.name} suspend", 1), "kill-after")
    move(stage.world, policy=policy | limits)
    await stage.until_dead()
    stage.world.effects.later(40, lambda: stage.target.process(stage.world.uuid("web")).kill())


async def _over(stage: Stage, policy: Object) -> None:
    stage.home.at["performing"] = stage.target.restart_daemon
    move(stage.world, policy=policy, ttlSecondsAfterFinished=600)
    await stage.world.run_until(lambda: reason_at_end(stage.world), 300)
    stage.world.kill()


async def _volume_made(stage: Stage, policy: Object) -> None:
    stage.world.fault((f"{stage.target.name} create_volume", 2), "kill-after")
    _copy(stage, policy)
    await stage.until_dead()


async def _volume_removed(stage: Stage, policy: Object) -> None:
    stage.world.fault((f"{stage.target.name} delete_volume", 1), "kill-after")
    _copy(stage, policy)
    await stage.until_dead()


async def _no_room(stage: Stage, policy: Object) -> None:
    stage.world.storages[f"{stage.target.name}-local"].full = True
    stage.when_stored(lambda status: "notPrepared" in status.get("marks", {}))
    _copy(stage, policy)
    await stage.until_dead()


def _copy(stage: Stage, policy: Object) -> None:
    move(stage.world, policy=policy, storageCopy={"type": "Full", "disks": ["root"]})


MOMENTS: dict[str, Moment] = {
    "planned": _planned,
    "asked": _asked,
    "copying": _copying,
    "paused": lambda stage, policy: _at("paused", stage, policy),
    "finished": lambda stage, policy: _at("finished", stage, policy),
    "confirmed": lambda stage, policy: _at("confirmed", stage, policy),
    "answer lost": _answer_lost,
    "source ended": _source_ended,
    "post-copy": _post_copy,
}
OTHERS: dict[str, Moment] = {
    "aborting": _aborting,
    "timed out": _timed_out,
    "forced": _forced,
    "over": _over,
    "volume made": _volume_made,
    "volume removed": _volume_removed,
    "no room": _no_room,
}
AUTOMATIC = {"answer lost", "source ended", "post-copy"}
"""Confirmed, libvirt lets the source go on when the answer is lost; and post-copy has no such switchover."""
WAYS = [(each, "Automatic") for each in MOMENTS] + [(each, "Confirmed") for each in MOMENTS if each not in AUTOMATIC]
BUSY = {"post-copy", "timed out", "forced"}
COPIED = {"volume made", "volume removed", "no room"}


async def stage(world: World, moment: str) -> Stage:
    """A VM that runs, whose guest or disk is as the moment needs it."""
    for host in world.hosts.values():
        host.default_guest = Guest(dirty_mib_s=4000 if moment in BUSY else 0)
    disk = {"name": "root", "pool": "local" if moment in COPIED else "shared", "size": "1Gi"}
    size = "4Gi" if moment == "forced" else "64Mi"  # at 1 MiB/s more than the highest downtime limit lets go at once
    home = world.hosts[await running(world, disks=[disk], memory={"size": size})]
    (target,) = (host for host in world.hosts.values() if host is not home)
    return Stage(world, home, target)


async def ends(stage: Stage, *reasons: str) -> None:
    """It ends in one of these ways, the VM is where that says, runs once, and nothing is left over."""
    world = stage.world
    await world.run_until(lambda: reason_at_end(world), 900)
    assert reason_at_end(world) in reasons
    there = stage.target if reason_at_end(world) == "Migrated" else stage.home
    assert world.host_of("web") is there
    await world.run_until(lambda: world.ready("web"), 300)
    await world.rest()


@pytest.mark.parametrize("away", [0, 60])
@pytest.mark.parametrize(("moment", "switchover"), WAYS)
@in_world(locks=True)
async def test_a_status_of_an_older_version_is_gone_on_with(
    world: World, moment: str, switchover: str, away: int
) -> None:
    there = await stage(world, moment)
    await MOMENTS[moment](there, {"switchover": switchover})
    lose(world, *FIELDS)
    assert set(world.status("go", "vmmig")) <= KEPT
    await world.settle(away)
    world.start()
    await ends(there, "Migrated")
    assert len([each for each in world.ledger.processes if each.uuid == world.uuid("web")]) == 2, "moved once"


LOSSES = [
    ("observedGeneration", "copying", "Migrated"),
    ("since", "copying", "Migrated"),
    ("source", "planned", "Migrated"),
    ("source", "copying", "Migrated"),
    ("target", "planned", "Migrated"),
    ("target", "copying", "Migrated"),
    ("policy", "planned", "Migrated"),
    ("policy", "timed out", "TimedOut"),
    ("decision", "copying", "Migrated"),
    ("decision", "answer lost", "Migrated"),
    ("decision", "source ended", "Migrated"),
    ("decision", "post-copy", "Migrated"),
    ("progress", "copying", "Migrated"),
    ("cost", "copying", "Migrated"),
    ("startTime", "copying", "Migrated"),
    ("startTime", "post-copy", "Migrated"),
    ("startTime", "aborting", "Aborted"),
    ("startTime", "answer lost", "Migrated"),
    ("completionTime", "over", "RolledBack"),
    ("lastMessage", "over", "RolledBack"),
    ("marks.notAsked", "planned", "Migrated"),
    ("marks.asked", "asked", "Migrated"),
    ("marks.aborted", "aborting", "Aborted"),
    ("marks.timedOut", "timed out", "RolledBack"),
    ("marks.forceCompleted", "forced", "TimedOut"),
    ("marks.postCopy", "post-copy", "Migrated"),
    ("marks.endedSource", "source ended", "Migrated"),
    ("marks.volumeMade", "volume made", "Migrated"),
    ("marks.volumeRemoved", "volume removed", "Migrated"),
    ("marks.notPrepared", "no room", "StorageNotReady"),
]


@pytest.mark.parametrize(("field", "moment", "reason"), LOSSES)
@in_world(locks=True)
async def test_a_field_that_is_lost_heals(world: World, field: str, moment: str, reason: str) -> None:
    there = await stage(world, moment)
    await {**MOMENTS, **OTHERS}[moment](there, {})
    before = lose(world, field)
    outer, _, inner = field.partition(".")
    assert before[outer][inner] if inner else before[outer], "it was there"
    await world.settle(20)
    world.start()
    await ends(there, reason)
    after = world.status("go", "vmmig")
    if field in ("policy", "source", "target"):
        assert after[field] == before[field]
    await world.settle(600 if moment == "over" else 0)
    assert (world.get("vmmig", "go") is None) == (moment == "over")


Outcome = tuple[str, str, bool]
"""Reason of the migration, state of the VM, and whether somebody is told that memory may be older than disks."""


# What an upgrade has to keep ------------------------------------------------------------------------------------------


async def _confirmed_end(world: World) -> Laid:
    pair = await laid(world, "held", "paused", "Confirmed")
    return await _dies_at(pair, f"{pair.home.name} destroy")


async def _kept_source(world: World) -> Laid:
    pair = await laid(world, "paused", "arrived")
    assert (await pair.until_decided())[0] == "SplitBrain"
    evidence = pair.status()["decision"]["evidence"]
    world.edit("vmmig", "go", resolve={"keep": "KeepSource", "evidence": evidence})
    return await _dies_at(pair, f"{pair.target.name} undefine")


async def _frozen_source(world: World) -> Laid:
    pair = await laid(world, "runs", "arrived")
    await world.run_until(lambda: "frozen" in pair.status().get("marks", {}), 120)
    world.kill()
    pair.target.power_off()
    since = (world.api.now() + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    world.edit("hv", pair.target.name, outOfService={"since": since, "evidence": "PoweredOff"})
    return pair


async def _ran_there(world: World) -> Laid:
    pair = await laid(world, "runs", "off")
    return await _dies_at(pair, f"{pair.target.name} undefine")


async def _forgotten_there(world: World) -> Laid:
    pair = await laid(world, "runs", "lost")
    world.kill()
    return pair


async def _dies_at(pair: Laid, effect: str) -> Laid:
    pair.world.fault((effect, 1), "kill-after")
    await pair.world.run_until(lambda: not pair.world.lives[-1].alive, 900, effect)
    return pair


OLDER = "older than its disks"
MARKED: list[tuple[str, Callable[[World], Awaitable[Laid]], Outcome, Outcome]] = [
    ("marks.endedSource", _confirmed_end, ("Migrated", "Running", False), ("NoOwner", "Moving", False)),
    ("marks.resolved", _kept_source, ("RolledBack", "Running", False), ("RolledBack", "Paused", False)),
    ("marks.frozen", _frozen_source, ("RolledBack", "Running", False), ("RolledBack", "Paused", False)),
    ("marks.targetRan", _ran_there, ("RolledBack", "Running", True), ("RolledBack", "Running", False)),
    ("decision", _forgotten_there, ("ProcessMayBeLeft", "Moving", False), ("RolledBack", "Running", True)),
]


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize(
    ("field", "lay", "kept", "without"), MARKED, ids=lambda each: each if str(each) == each else ""
)
@in_world()
async def test_what_has_to_be_kept_cannot_be_had_otherwise_and_without_it_no_process_is_ended(
    world: World, field: str, lay: Callable[[World], Awaitable[Laid]], kept: Outcome, without: Outcome, lost: bool
) -> None:
    pair = await lay(world)
    before = [host for host, _ in processes(pair)]
    if lost:
        assert lose(world, field)
    await world.settle(30)
    world.start()
    await world.settle(900)
    told = OLDER in world.condition("vmmig", "go", "Succeeded")["message"]
    assert (pair.status()["reason"], world.status("web")["state"], told) == (without if lost else kept)
    assert [host for host, _ in processes(pair)] == before


@pytest.mark.parametrize("lost", [False, True])
@in_world(locks=True)
async def test_without_what_was_recorded_of_checkpoints_they_are_lost_and_nothing_else_is(
    world: World, lost: bool
) -> None:
    there = await stage(world, "copying")
    there.home.records[world.uuid("web")].checkpoints.update(CHECKPOINTS)
    await world.settle(90)
    await _copying(there, {})
    if lost:
        lose(world, "marks.checkpoints")
    world.start()
    await ends(there, "Migrated")
    assert there.target.records[world.uuid("web")].checkpoints == ({} if lost else CHECKPOINTS)


@pytest.mark.parametrize("lost", [False, True])
@in_world()
async def test_without_when_a_volume_was_asked_for_one_that_comes_late_may_be_left(world: World, lost: bool) -> None:
    there = await stage(world, "volume made")
    world.fault((f"{there.target.name} create_volume", 2), "late=55")
    world.fault((f"{there.home.name} migrate", 1), "late=1")
    _copy(there, {"bandwidth": "1Mi"})
    await there.until_dead()
    world.start()
    await there.until_dead()
    world.edit("vmmig", "go", abort="Requested")
    if lost:
        assert lose(world, "marks.volumeMade")["marks"]["volumeMade"]
        world.effects.violated = lambda sentence: None  # type: ignore[method-assign] # "made anew", and so it is
    world.start()
    await world.run_until(lambda: reason_at_end(world), 900)
    await world.settle(60)
    assert reason_at_end(world) == "Aborted"
    assert world.host_of("web") is there.home
    assert bool(world.storages[f"{there.target.name}-local"].files) == lost


@in_world()
async def test_that_a_host_was_heard_when_a_person_answered_is_found_out_anew(world: World) -> None:
    pair = await laid(world, "paused", "arrived")
    assert (await pair.until_decided())[0] == "SplitBrain"
    evidence = pair.status()["decision"]["evidence"]
    world.edit("vmmig", "go", resolve={"keep": "KeepSource", "evidence": evidence})
    pair.world.fault((f"{pair.target.name} destroy", 1), "kill-before")
    await world.run_until(lambda: not world.lives[-1].alive, 900)
    assert lose(world, "marks.resolvedHeard")["marks"]["resolvedHeard"]
    world.start()
    await world.run_until(lambda: reason_at_end(world), 900)
    assert (reason_at_end(world), [host for host, _ in processes(pair)]) == ("RolledBack", [pair.home.name])


FOUND_OUT = {"marks.resolvedHeard"}
PROMISED = {field for field, *_ in MARKED} | {"marks.checkpoints", "marks.volumeMade"}
"""What a version that follows has to read as this one does."""


def test_every_field_of_a_status_is_kept_promised_or_healed() -> None:
    fields = FIELDS - {"marks"} | {f"marks.{camel(name)}" for name in MarksStatus.model_fields}
    assert fields == {field for field, *_ in LOSSES} | PROMISED | FOUND_OUT


def test_the_page_names_what_has_to_be_kept() -> None:
    page = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()
    section = page.partition("## What an upgrade has to keep")[2].partition("\n## ")[0]
    assert {f"status.{field}" for field in PROMISED | KEPT} <= set(re.findall(r"`([\w.]+)`", section))
