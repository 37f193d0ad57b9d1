# SPDX-License-Identifier: Apache-2.0
"""Migrations that libvirt was not asked for yet, while something comes in between: they end, and touch nothing."""

from __future__ import annotations

import pytest

from homeostat.kube.transport import MERGE_PATCH
from tests.simulation.effects import Effect
from tests.simulation.harness import in_world
from tests.simulation.machine import Machine
from tests.simulation.test_disasters import XML, running
from tests.simulation.test_moves import move, reason_at_end
from tests.simulation.world import World

pytestmark = pytest.mark.simulation


async def stage(world: World) -> tuple[Machine, Machine]:
    """The host on which a VM runs, and the other one."""
    home = world.hosts[await running(world)]
    (other,) = (host for host in world.hosts.values() if host is not home)
    return home, other


def by_hand(world: World) -> None:
    """From here on somebody puts the VM's UUID where it does not belong."""
    world.effects.violated = lambda sentence: None  # type: ignore[method-assign]


def told(world: World) -> str:
    return str(world.condition("vmmig", "go", "Succeeded")["message"])


@in_world()
async def test_a_saved_image_on_the_target_is_named_and_keeps_nothing_waiting(world: World) -> None:
    """The VM was saved there, and started elsewhere when its host was declared off."""
    home, other = await stage(world)
    by_hand(world)
    home.cut()
    home.managed_save(world.uuid("web"))
    await world.settle(60)
    since = world.api.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    world.edit("hv", home.name, outOfService={"since": since, "evidence": "PoweredOff"})
    await world.run_until(lambda: world.process("web") and world.host_of("web") is other, 200)
    world.edit("hv", home.name, outOfService=None)
    home.restore()
    await world.settle(120)
    move(world)
    await world.run_until(lambda: reason_at_end(world), 60)
    assert reason_at_end(world) == "NoTarget"
    assert "spec.managedSave Discard" in told(world)
    world.edit("vm", "web", managedSave={"host": home.name, "action": "Discard"})
    await world.run_until(lambda: world.uuid("web") not in home.records, 300)
    await world.rest()


@in_world()
async def test_a_domain_of_nobody_with_the_vms_uuid_stays_where_it_is(world: World) -> None:
    _, other = await stage(world)
    by_hand(world)
    other.define_by_hand(XML.format(name="mine", uuid=world.uuid("web")))
    await world.settle(60)
    move(world, target={"host": other.name})
    await world.run_until(lambda: reason_at_end(world), 60)
    assert reason_at_end(world) == "NotMigratable"
    assert "a domain that nobody manages" in told(world)
    await world.settle(300)
    assert other.records[world.uuid("web")].name == "mine"


@in_world()
async def test_a_domain_of_nobody_that_appears_after_the_plan_stays_where_it_is(world: World) -> None:
    _, other = await stage(world)
    by_hand(world)

    def appear(effect: Effect) -> None:
        if world.status("go", "vmmig").get("intent") and world.uuid("web") not in other.records:
            other.define_by_hand(XML.format(name="mine", uuid=world.uuid("web")))

    world.effects.on_executed.append(appear)
    move(world)
    await world.run_until(lambda: reason_at_end(world), 300)
    world.effects.on_executed.remove(appear)
    await world.settle(300)
    assert other.records[world.uuid("web")].name == "mine"
    assert world.process("web") is not None


@pytest.mark.parametrize("why", ["annotation", "halted"])
@in_world()
async def test_a_vm_that_is_not_to_be_moved_is_not(world: World, why: str) -> None:
    _, other = await stage(world)
    if why == "annotation":
        annotated = {"metadata": {"annotations": {"homeostat.dev/reconcile": "disabled"}}}
        world.api.patch(world._target("vm", "web", "default"), annotated, MERGE_PATCH)
    else:
        world.edit("vm", "web", runStrategy="Halted")
    move(world)
    await world.run_until(lambda: reason_at_end(world), 60)
    assert reason_at_end(world) == {"annotation": "NotMigratable", "halted": "VMNotRunning"}[why]
    await world.settle(120)
    assert world.uuid("web") not in other.records
    assert (world.process("web") is not None) == (why == "annotation")


@in_world()
async def test_a_target_that_dies_before_it_was_asked_leaves_nothing_to_decide(world: World) -> None:
    home, other = await stage(world)

    def die(effect: Effect) -> None:
        if world.status("go", "vmmig").get("intent"):
            other.power_off()
            world.effects.on_executed.remove(die)

    world.effects.on_executed.append(die)
    move(world)
    await world.run_until(lambda: reason_at_end(world), 300)
    assert reason_at_end(world) == "TargetUnreachable"
    assert world.host_of("web") is home
    world.edit("vm", "web", runStrategy="Halted")
    await world.run_until(lambda: world.process("web") is None, 400)


@pytest.mark.parametrize("lost", [False, True])
@in_world(locks=True)
async def test_a_vm_that_is_deleted_may_abandon_a_host_that_its_migration_waits_for(world: World, lost: bool) -> None:
    """Also one that has the VM by now, while the source stands still: that is not let run beside it."""
    home, other = await stage(world)
    uuid = world.uuid("web")
    if lost:
        home.at["finished"] = other.cut
    move(world, policy={} if lost else {"bandwidth": "1Mi"})
    await world.run_until(lambda: uuid in other.records, 300)
    if not lost:
        other.power_off()
    waits = "TargetMayRun" if lost else "TargetUnknown"
    await world.run_until(lambda: world.status("go", "vmmig")["reason"] == waits, 900)
    world.delete("vm", "web")
    await world.settle(120)
    assert world.get("vm", "web") is not None, "it is not known what runs there"
    world.edit("vm", "web", abandonHosts=[other.name])
    await world.gone("web", 600)
    assert reason_at_end(world) == "Aborted"
    assert uuid not in home.records
