# SPDX-License-Identifier: Apache-2.0
"""What the operator writes to the API because of a migration: a cap that does not grow with how long it takes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.simulation.harness import in_world
from tests.simulation.qemu import Guest
from tests.simulation.test_disasters import running
from tests.simulation.test_moves import move, reason_at_end
from tests.simulation.world import World

pytestmark = pytest.mark.simulation

TRANSITIONS = 12
"""More than a migration has that comes to its end without trouble: planned, begun, switched over, ended, and let go."""


async def written(world: World, policy: dict[str, Any], seconds: float) -> Counter[str]:
    """Writes by kind from the creation of a migration until its end, and until all that follows from it is over."""
    for host in world.hosts.values():
        host.default_guest = Guest(dirty_mib_s=4000)
    await running(world)
    before = len(world.effects.log)
    move(world, policy=policy)
    began = world.time
    while not reason_at_end(world):
        await world.settle(5)
    assert seconds <= world.time - began < seconds + 120
    await world.settle(120)
    return Counter(effect.name.replace("status ", "").split()[1] for effect in world.effects.log[before:]
                   if effect.name.startswith(("PATCH", "POST", "PUT", "DELETE")))  # fmt: skip


def limits(seconds: int) -> dict[str, Any]:
    """A policy under which a guest that is never done is copied for so long."""
    return {"bandwidth": "1Mi", "completionTimeoutSecondsPerGiB": seconds // 2, "progressTimeoutSeconds": 86400}


@pytest.mark.parametrize(("seconds", "most"), [(10, 5), (60, 13), (3600, 51)])
@in_world()
async def test_a_long_migration_costs_few_writes(world: World, seconds: int, most: int) -> None:
    found = await written(world, limits(seconds), seconds)
    assert found["vmmig"] <= most + TRANSITIONS, found
    assert found["vm"] <= 6, found
    assert found["hv"] <= 6, found
    assert found["events"] <= 8, found


@in_world()
async def test_progress_is_shown_all_the_while(world: World) -> None:
    for host in world.hosts.values():
        host.default_guest = Guest(dirty_mib_s=4000)
    await running(world)
    move(world, policy=limits(3600))
    shown: list[tuple[float, float]] = []
    began = world.time
    while not reason_at_end(world):
        await world.settle(10)
        progress = world.status("go", "vmmig").get("progress")
        if progress:
            shown.append((world.time - began, progress["elapsedSeconds"]))
    assert len({elapsed for _, elapsed in shown}) > 30
    assert all(now - elapsed <= max(5, now / 10) + 15 for now, elapsed in shown[:-1]), shown
