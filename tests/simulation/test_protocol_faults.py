# SPDX-License-Identifier: Apache-2.0
"""The operator beside every fault at every boundary of libvirt's protocol of a migration."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.simulation.harness import in_world
from tests.simulation.machine import Machine
from tests.simulation.migration import POINTS
from tests.simulation.qemu import Guest
from tests.simulation.test_disasters import running
from tests.simulation.test_moves import move
from tests.simulation.world import World

pytestmark = pytest.mark.simulation


def _for_a_while(world: World, begin: Callable[[], None], end: Callable[[], None], seconds: float) -> None:
    begin()
    world.effects.later(seconds, end)


def _kill(machine: Machine) -> None:
    for process in machine.processes():
        process.kill()


FAULTS: dict[str, Callable[[World, Machine, Machine], None]] = {
    "source-daemon": lambda world, source, target: source.restart_daemon(),
    "target-daemon": lambda world, source, target: target.restart_daemon(),
    "source-qemu": lambda world, source, target: _kill(source),
    "target-qemu": lambda world, source, target: _kill(target),
    "source-off": lambda world, source, target: source.reboot(40),
    "target-off": lambda world, source, target: target.reboot(40),
    "cut": lambda world, source, target: _for_a_while(world, target.cut, target.restore, 50),
    "blip": lambda world, source, target: _for_a_while(world, target.cut, target.restore, 5),
    "frozen": lambda world, source, target: _for_a_while(world, target.freeze, target.thaw, 50),
    "muted": lambda world, source, target: _for_a_while(world, target.mute, target.unfilter, 100),
    "refused": lambda world, source, target: _for_a_while(world, target.refuse, target.unfilter, 100),
    "operator": lambda world, source, target: (world.kill(), world.start())[0],  # type: ignore[func-returns-value]
}


def _conditions(world: World) -> dict[str, str]:
    return {each["type"]: each["status"] for each in world.status("go", "vmmig").get("conditions", [])}


def _decided(world: World) -> bool:
    says = _conditions(world)
    return "True" in (says.get("Finished"), says.get("Ambiguous"))


async def _drill(world: World, point: str, fault: str, switchover: str) -> tuple[str, str]:
    """(reason, row) that a migration comes to which this fault meets at this point."""
    for host in world.hosts.values():
        host.default_guest = Guest(dirty_mib_s=20)
    home = world.hosts[await running(world)]
    (target,) = (host for host in world.hosts.values() if host is not home)
    home.at[point] = lambda: FAULTS[fault](world, home, target)
    move(world, policy={"switchover": switchover})
    await world.run_until(lambda: _decided(world) and not home.at, 900)
    status, process = world.status("go", "vmmig"), world.process("web")
    if process is not None and status["reason"] in STAYS | {"Migrated"}:
        assert process.host == (target if status["reason"] == "Migrated" else home).name, status["reason"]
    return status["reason"], status["decision"]["row"]


async def _at_rest(world: World, reason: str, row: str) -> None:
    """The VM runs once and nothing is left over; one that a person has to decide about is kept as it is."""
    if _conditions(world)["Ambiguous"] == "True":
        await world.settle(300)
        assert world.ledger.running(world.uuid("web")), "nobody asked for its end"
        assert (world.status("go", "vmmig")["reason"], row) == ("NoOwner", "24b"), "the one case that has no owner"
        return
    assert reason in STAYS | {"Migrated", "VMDown", "MigratedThenOff"}, reason
    await world.run_until(lambda: world.ready("web"), 900)
    await world.rest()


STAYS = {"Refused", "RolledBack"}
EVERYTHING = [(point, fault) for point in POINTS for fault in FAULTS]
SILENT = [each for each in EVERYTHING if each[1] in ("target-daemon", "cut", "blip", "frozen", "muted", "refused")]
"""Where the answer of the target may be lost."""


@pytest.mark.parametrize("switchover", ["Automatic", "Confirmed"])
@pytest.mark.parametrize(("point", "fault"), EVERYTHING)
@in_world(locks=True)
async def test_with_locks_it_runs_once_in_the_end(world: World, point: str, fault: str, switchover: str) -> None:
    await _at_rest(world, *await _drill(world, point, fault, switchover))


@pytest.mark.parametrize(("point", "fault"), EVERYTHING)
@in_world()
async def test_without_locks_a_confirmed_switchover_never_has_it_run_twice(
    world: World, point: str, fault: str
) -> None:
    await _at_rest(world, *await _drill(world, point, fault, "Confirmed"))


@pytest.mark.parametrize(("point", "fault"), SILENT)
@in_world()
async def test_without_locks_one_that_runs_twice_is_frozen_and_named_and_nothing_is_ended(
    world: World, point: str, fault: str
) -> None:
    twice: list[str] = []
    violated = world.effects.violated

    def note(sentence: str) -> None:
        (twice.append if TWICE.search(sentence) else violated)(sentence)

    world.effects.violated = note  # type: ignore[method-assign]
    reason, row = await _drill(world, point, fault, "Automatic")
    if not twice:
        await _at_rest(world, reason, row)
        return
    await world.settle(300)
    assert world.status("go", "vmmig")["reason"] == "SplitBrain"
    assert _conditions(world)["Ambiguous"] == "True"
    both = world.ledger.running(world.uuid("web"))
    assert sorted(process.host for process in both) == ["h1", "h2"]
    assert sum(process.cpus_since is not None for process in both) == 1


TWICE = re.compile("run twice|two writers on one disk")
