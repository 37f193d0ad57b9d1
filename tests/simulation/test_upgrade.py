# SPDX-License-Identifier: Apache-2.0
"""An operator of another version takes over in the middle of a migration: what it may not find, and what it may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
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
from tests.simulation.world import World

pytestmark = pytest.mark.simulation

KEPT = {"intent", "phase", "reason", "conditions"}
"""All that a status has that an older version has left."""
FIELDS = {camel(name) for name in VirtualMachineMigrationStatus.model_fields} - KEPT


def patch_status(world: World, kind: str, name: str, status: Object) -> None:
    """What kubectl patch --subresource=status --type=merge does."""
    where = replace(world._target(kind, name, "" if kind == "hv" else "default"), subresource="status")
    world.api.patch(where, {"status": status}, MERGE_PATCH)


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


MOMENTS: dict[str, Callable[[Stage, Object], Awaitable[None]]] = {
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


AUTOMATIC = {"answer lost", "source ended", "post-copy"}
"""Confirmed, libvirt lets the source go on when the answer is lost; and post-copy has no such switchover."""
WAYS = [(each, "Automatic") for each in MOMENTS] + [(each, "Confirmed") for each in MOMENTS if each not in AUTOMATIC]


async def stage(world: World, moment: str) -> Stage:
    for host in world.hosts.values():
        host.default_guest = Guest(dirty_mib_s=4000 if moment == "post-copy" else 0)
    home = world.hosts[await running(world)]
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
    process = world.process("web")
    await MOMENTS[moment](there, {"switchover": switchover})
    assert process is not None
    lose(world, *FIELDS)
    assert set(world.status("go", "vmmig")) <= KEPT
    await world.settle(away)
    world.start()
    await ends(there, "Migrated")
    assert len([each for each in world.ledger.processes if each.uuid == world.uuid("web")]) == 2, "moved once"
