# SPDX-License-Identifier: Apache-2.0
"""Every effect of a scenario, crossed with every fault and with what may happen while the operator is away.

A clean run of a scenario lists its effects. A point is (effect, fault, meanwhile): the scenario is run again, the fault
strikes at just that effect, something happens, an operator is at work again, and all has to come to rest as it should.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice, product, starmap

from tests.simulation.clock import run_virtual
from tests.simulation.effects import Effect
from tests.simulation.libvirt_xml import text_of
from tests.simulation.qemu import Process
from tests.simulation.world import World

FAULTS = (
    "kill-before",
    "kill-after",
    "drop-request",
    "drop-reply",
    "raise-after-success",
    "late=5",
    "late=45",
    "stall=20",
)
KILLING = ("kill-before", "kill-after", "late=5", "late=45")
AWAY_SECONDS = 2.0
CUT_SECONDS = 120.0
DISK = {
    "name": "root",
    "pool": "shared",
    "size": "1Gi",
    "source": {"type": "Blank", "blank": {"whenRetained": "Ignore"}},
}


CHECKPOINTS = {
    "first": "<domaincheckpoint><name>first</name></domaincheckpoint>",
    "second": "<domaincheckpoint><name>second</name><parent><name>first</name></parent></domaincheckpoint>",
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """`prepare` brings the world to rest, `act` is what a person then does, `goal` what has to come of it."""

    name: str
    prepare: Callable[[World], Awaitable[None]]
    act: Callable[[World], object]
    goal: Callable[[World], bool]
    stride: int = 1
    """Of so many points one is run: a number that divides neither faults nor what happens meanwhile, so all meet."""


@dataclass(frozen=True, slots=True)
class Point:
    """Where a fault strikes, and what happens meanwhile."""

    effect: Effect
    fault: str
    meanwhile: str

    def __str__(self) -> str:
        return f"{self.fault} at {self.effect}, meanwhile {self.meanwhile}"


# Scenarios ------------------------------------------------------------------------------------------------------------


async def _nothing(world: World) -> None:
    await world.settle(20)


async def _running(world: World) -> None:
    world.vm("web", disks=[DISK])
    await world.running("web")
    await world.settle(90)


async def _with_checkpoints(world: World) -> None:
    """Libvirt forgets checkpoints when a domain moves."""
    await _running(world)
    world.host_of("web").records[world.uuid("web")].checkpoints.update(CHECKPOINTS)
    await world.settle(90)


async def _with_two_disks(world: World) -> None:
    world.vm("web", disks=[DISK, DISK | {"name": "data", "deletionPolicy": "Delete"}])
    await world.running("web")
    await world.settle(90)


async def _halted(world: World) -> None:
    await _running(world)
    world.edit("vm", "web", runStrategy="Halted")
    await world.run_until(lambda: world.ready("web") and not world.process("web"))
    await world.settle(30)


def _runs(world: World) -> bool:
    return bool(world.get("vm", "web") and world.ready("web") and world.process("web"))


def _off(world: World) -> bool:
    return world.ready("web") and not world.process("web")


def _restarted(world: World) -> bool:
    process = world.process("web") if _runs(world) else None
    return process is not None and 'request="again"' in text_of(process.live)


def _moved(world: World) -> bool:
    return _runs(world) and world.host_of("web").name == "h1"


def _gone(world: World) -> bool:
    return world.get("vm", "web") is None


def _migrated(world: World) -> bool:
    conditions = world.status("go", "vmmig").get("conditions", [])
    ended = any(each["type"] == "Finished" and each["status"] == "True" for each in conditions)
    return ended and _runs(world)


def _carried_over(world: World) -> bool:
    return _migrated(world) and world.host_of("web").records[world.uuid("web")].checkpoints == CHECKPOINTS


def _migrate(world: World) -> object:
    return world.apply("vmmig", "go", {"vmRef": {"name": "web"}}, namespace="default")


async def _with_a_local_disk(world: World) -> None:
    world.vm("web", disks=[DISK | {"pool": "local"}])
    await world.running("web")
    await world.settle(90)


async def _agreed(world: World) -> None:
    """It cannot be moved, and may be off while its host is evacuated."""
    world.vm("web", disks=[DISK | {"pool": "local"}], evacuation="ShutOff")
    await world.running("web")
    await world.settle(90)


async def _off_meanwhile(world: World) -> None:
    await _agreed(world)
    _maintain(world, "Evacuate")
    await world.run_until(lambda: _evacuated(world))
    await world.settle(90)


def _maintain(world: World, maintenance: str) -> object:
    return world.edit("hv", world.status("web")["host"], maintenance=maintenance)


def _evacuated(world: World) -> bool:
    return world.status("web").get("reason") == "Evacuated" and not world.process("web")


def _migrate_with_its_disk(world: World, **spec: object) -> object:
    copy = {"type": "Full", "disks": ["root"]}
    return world.apply("vmmig", "go", {"vmRef": {"name": "web"}, "storageCopy": copy} | spec, namespace="default")


def _copy_and_stop(world: World) -> object:
    """It is copied slowly, and somebody stops it, whether it has got that far or not."""

    def stop() -> None:
        if world.get("vmmig", "go") is not None:
            world.edit("vmmig", "go", abort="Requested")

    world.effects.later(20.0, stop)
    return _migrate_with_its_disk(world, policy={"bandwidth": "1Mi"})


def _move(world: World) -> object:
    return world.edit("vm", "web", runStrategy="Always", placement={"host": "h1"})


SCENARIOS = (
    Scenario("create", _nothing, lambda w: w.vm("web", disks=[DISK]), _runs),
    Scenario("start", _halted, lambda w: w.edit("vm", "web", runStrategy="Always"), _runs),
    Scenario("stop", _running, lambda w: w.edit("vm", "web", runStrategy="Halted"), _off),
    Scenario("restart", _running, lambda w: w.edit("vm", "web", power={"request": "again"}), _restarted),
    Scenario("reschedule", _halted, _move, _moved),
    Scenario("delete", _with_two_disks, lambda w: w.delete("vm", "web"), _gone),
    Scenario("migrate", _with_checkpoints, _migrate, _carried_over, stride=11),
    Scenario("evacuate", _agreed, lambda w: _maintain(w, "Evacuate"), _evacuated, stride=5),
    Scenario("return", _off_meanwhile, lambda w: _maintain(w, "Off"), _runs, stride=5),
    Scenario("copy", _with_a_local_disk, _migrate_with_its_disk, _migrated, stride=13),
    Scenario("copy stopped", _with_a_local_disk, _copy_and_stop, _migrated, stride=17),
)


# What happens meanwhile -----------------------------------------------------------------------------------------------

Goal = Callable[[World], bool]


class Pointless(Exception):
    """What was to happen meanwhile cannot happen at this point: there is nothing to happen to."""


def _guest_off(world: World, goal: Goal, effect: Effect) -> Goal:
    _the_process(world).power_off()
    return goal


def _qemu_killed(world: World, goal: Goal, effect: Effect) -> Goal:
    _the_process(world).kill()
    return goal


def _the_process(world: World) -> Process:
    process = world.process("web") if world.get("vm", "web") else None
    if process is None:
        raise Pointless
    return process


def _host_cut(world: World, goal: Goal, effect: Effect) -> Goal:
    host = world.hosts[_host(world, effect)]
    host.cut()
    world.effects.later(CUT_SECONDS, host.restore)
    return goal


def _host(world: World, effect: Effect) -> str:
    """The host that an effect is on, else the one that the VM may be on."""
    candidates = world.status("web").get("candidates", [])
    named = [name for name in world.hosts if effect.name.startswith(f"{name} ")]
    return str(named[0] if named else candidates[0]["hypervisor"] if candidates else "h2")


def _host_cordoned(world: World, goal: Goal, effect: Effect) -> Goal:
    name = _host(world, effect)
    if (goal is _moved and name == "h1") or goal is _evacuated:
        raise Pointless
    world.edit("hv", name, maintenance="Cordon")
    return goal


def _another_operator(world: World, goal: Goal, effect: Effect) -> Goal:
    """Two operators are at work, each taking itself for the only one."""
    if not world.lives[-1].alive:
        raise Pointless
    world.start()
    return goal


def _edited(world: World, goal: Goal, effect: Effect) -> Goal:
    found = world.get("vm", "web")
    if found is None or found["metadata"].get("deletionTimestamp"):
        raise Pointless
    world.edit("vm", "web", memory={"size": "128Mi"})
    return goal


def _deleted(world: World, goal: Goal, effect: Effect) -> Goal:
    if world.get("vm", "web") is None or goal is _gone:
        raise Pointless
    world.delete("vm", "web")
    return _gone


def _made_again(world: World, goal: Goal, effect: Effect) -> Goal:
    """Deleted, and created anew under the same name as soon as the API server lets one."""
    found = world.get("vm", "web")
    first = found["metadata"]["uid"] if found else ""

    def again(*_: object) -> None:
        if again in world.api.changed and world.get("vm", "web") is None:
            world.api.changed.remove(again)
            world.effects.later(0.0, lambda: world.vm("web", disks=[DISK]))

    world.api.changed.append(again)
    if found is not None:
        world.delete("vm", "web")
    again()
    return lambda w: _runs(w) and (w.get("vm", "web") or {})["metadata"]["uid"] != first


MEANWHILE: dict[str, Callable[[World, Goal, Effect], Goal]] = {
    "nothing": lambda world, goal, effect: goal,
    "guest off": _guest_off,
    "QEMU killed": _qemu_killed,
    "host cut": _host_cut,
    "host cordoned": _host_cordoned,
    "another operator": _another_operator,
    "spec edited": _edited,
    "deleted": _deleted,
    "made again": _made_again,
}


# Running --------------------------------------------------------------------------------------------------------------


def clean(scenario: Scenario) -> list[Effect]:
    """The effects of a run in which nothing goes wrong; Events, Leases and figures of Hypervisors aside."""

    async def run() -> list[Effect]:
        async with World() as world:
            world.start()
            await scenario.prepare(world)
            before = len(world.writes())
            scenario.act(world)
            await world.run_until(lambda: scenario.goal(world), 120, scenario.name)
            effects = [each for each in world.writes()[before:] if " status hv " not in each.name]
            await world.rest()
            return effects

    return run_virtual(run())


def points(scenario: Scenario, effects: list[Effect]) -> Iterator[Point]:
    """The points of a scenario."""
    return islice(starmap(Point, product(effects, FAULTS, MEANWHILE)), 0, None, scenario.stride)


def pair(point: Point) -> tuple[str, str]:
    """What a point does to what, whichever the host: (action, fault)."""
    words = point.effect.name.split()
    return " ".join(words[1:] if words[0] in ("h1", "h2") else words), point.fault


async def _strike(world: World, scenario: Scenario, point: Point) -> None:
    world.start()
    await scenario.prepare(world)
    fault = world.fault(point.effect, point.fault)
    scenario.act(world)
    await world.run_until(lambda: fault.reached, 120, str(point))
    if point.fault in KILLING:
        await world.settle(AWAY_SECONDS / 2)
    goal = MEANWHILE[point.meanwhile](world, scenario.goal, point.effect)
    if point.fault in KILLING:
        await world.settle(AWAY_SECONDS / 2)
        world.start()
    await world.run_until(lambda: goal(world), 1500, str(point))
    await world.rest()


def run(scenario: Scenario, point: Point) -> bool:
    """Runs one point; False when it is pointless. AssertionError when something does not hold."""

    async def main() -> bool:
        async with World() as world:
            try:
                await _strike(world, scenario, point)
            except Pointless:
                return False
            return True

    return run_virtual(main())


def outcomes(scenario: Scenario, points: Iterable[Point]) -> Iterator[tuple[Point, str]]:
    """Runs points on all CPUs, and yields each that is not pointless with what does not hold, "" where all does."""
    with ProcessPoolExecutor() as pool:
        yield from filter(None, pool.map(partial(_outcome, scenario.name), points, chunksize=8))


def _outcome(name: str, point: Point) -> tuple[Point, str] | None:
    (scenario,) = [each for each in SCENARIOS if each.name == name]
    try:
        return (point, "") if run(scenario, point) else None
    except AssertionError as error:
        return point, str(error) or repr(error)
