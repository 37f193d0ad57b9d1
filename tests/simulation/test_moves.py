# SPDX-License-Identifier: Apache-2.0
"""Live migrations by the real controllers in a simulated world: a step is asked for until it is seen."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from homeostat.decide.migration_case import CallEnded
from homeostat.reconcile.calls import Calls
from tests.simulation.effects import Effect
from tests.simulation.harness import in_world
from tests.simulation.qemu import Guest
from tests.simulation.test_disasters import running
from tests.simulation.world import World

pytestmark = pytest.mark.simulation


def move(world: World, **spec: Any) -> None:
    world.apply("vmmig", "go", {"vmRef": {"name": "web"}} | spec, namespace="default")


def reason_at_end(world: World) -> str:
    done = world.condition("vmmig", "go", "Finished").get("status") == "True"
    return str(world.status("go", "vmmig").get("reason", "")) if done else ""


@pytest.mark.parametrize("fault", ["", "drop-request", "kill-before", "kill-after", "drop-reply"])
@in_world()
async def test_post_copy_is_begun_though_its_request_is_lost_or_the_operator_dies_before_it(
    world: World, fault: str
) -> None:
    for host in world.hosts.values():
        host.default_guest = Guest(dirty_mib_s=4000)
    home = await running(world)
    struck = world.fault(Effect("default_web", f"{home} start_post_copy", 1), fault) if fault else None
    move(world, policy={"mode": "PostCopy", "bandwidth": "8Mi"})
    if struck is not None:
        await world.run_until(lambda: struck.reached, 120)
        if fault.startswith("kill"):
            await world.settle(2)
            world.start()
    await world.run_until(lambda: reason_at_end(world), 400)
    assert reason_at_end(world) == "Migrated"
    assert world.host_of("web").name != home
    await world.rest()


@pytest.mark.parametrize("writer", ["vm", "candidates"])
@in_world()
async def test_nothing_comes_to_the_target_before_the_vm_names_the_migration_and_the_target(
    world: World, writer: str
) -> None:
    home = await running(world)
    (target,) = (host for host in world.hosts.values() if host.name != home)

    def recorded() -> bool:
        status = world.status("web")
        known = target.name in [candidate["hypervisor"] for candidate in status["candidates"]]
        return known and status.get("migration", {}).get("name") == "go"

    def check(effect: Effect) -> None:
        if world.uuid("web") in target.records and not recorded():
            world.effects.violated(f"the VM came to {target.name} before its status said so: {world.status('web')}")

    world.effects.on_executed.append(check)
    lost = [
        world.fault((f"PATCH status vm by homeostat-{writer}", number), "drop-request", on="default/web")
        for number in range(1, 7)
    ]
    move(world)
    await world.run_until(lambda: all(fault.reached for fault in lost), 400)
    await world.run_until(lambda: world.uuid("web") in target.records and recorded(), 400)
    world.effects.on_executed.remove(check)
    await world.run_until(lambda: reason_at_end(world), 400)
    assert reason_at_end(world) == "Migrated"
    await world.rest()


@pytest.mark.parametrize(
    ("fault", "meanwhile"),
    [
        (fault, "")
        for fault in ("drop-request", "kill-before", "kill-after", "drop-reply", "raise-after-success", "late=40")
    ]
    + [("", "kill the operator"), ("", "restart the source's daemon"), ("late=40", "restart the source's daemon")],
)
@in_world()
async def test_a_broken_post_copy_goes_on_when_the_network_is_back_whatever_becomes_of_its_request(
    world: World, fault: str, meanwhile: str
) -> None:
    for host in world.hosts.values():
        host.default_guest = Guest(dirty_mib_s=4000)
    home = await running(world)
    source = world.hosts[home]
    move(world, policy={"mode": "PostCopy", "bandwidth": "8Mi"})
    await world.run_until(lambda: world.status("go", "vmmig").get("reason") == "PostCopying", 200)
    target = world.hosts[world.status("go", "vmmig")["target"]]
    both = (source.find(world.uuid("web")).process, target.find(world.uuid("web")).process)
    target.part()
    await world.run_until(lambda: world.status("go", "vmmig").get("reason") == "PostCopyInterrupted", 60)
    if meanwhile == "kill the operator":
        world.kill()
        world.start()
    elif meanwhile:
        source.stop_daemon()
        await world.settle(5)
        source.start_daemon()
    await world.settle(100)
    assert (source.find(world.uuid("web")).process, target.find(world.uuid("web")).process) == both
    assert reason_at_end(world) == ""
    struck = world.fault((f"{home} resume_post_copy", 1), fault) if fault else None
    target.unfilter()
    if struck is not None:
        await world.run_until(lambda: struck.reached, 120)
        if fault.startswith(("kill", "late")):
            await world.settle(2)
            world.start()
    await world.run_until(lambda: reason_at_end(world), 400)
    assert reason_at_end(world) == "Migrated"
    assert world.host_of("web") is target
    assert world.process("web") is both[1]
    await world.rest()


def test_a_call_that_fails_in_a_way_nobody_foresaw_has_ended() -> None:
    async def broken() -> None:
        raise ValueError("storage copy None of disks ('a',)")

    async def scenario() -> tuple[list[tuple[str, str]], bool, CallEnded | None]:
        done: list[tuple[str, str]] = []
        calls, key = Calls(done.append), ("shop", "go")
        calls.begin(key, broken())
        for _ in range(5):
            await asyncio.sleep(0)
        return done, calls.calling(key), calls.ended(key)

    done, calling, ended = asyncio.run(scenario())
    assert (done, calling) == ([("shop", "go")], False)
    assert ended is not None and re.search("storage copy", ended.message) and not ended.refused
