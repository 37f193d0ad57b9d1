# SPDX-License-Identifier: Apache-2.0
"""The API server and the operators themselves fail: nothing runs twice, nothing is removed, all converges again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulation import libvirt_xml
from tests.simulation.harness import in_world
from tests.simulation.test_disasters import running
from tests.simulation.world import World

pytestmark = pytest.mark.simulation


# The API server -------------------------------------------------------------------------------------------------------


@in_world()
async def test_an_api_server_that_is_away(world: World) -> None:
    await running(world)
    world.front.up.clear()
    process = world.process("web")
    assert process is not None
    process.kill()
    await world.settle(300)
    world.front.up.set()
    await world.running("web", 600)
    world.front.hangs = True
    await world.settle(120)
    world.front.hangs = False
    await world.settle(60)
    await world.rest(quiet=700)


@in_world()
async def test_a_deletion_nobody_told_of(world: World) -> None:
    await running(world)
    world.front.connected.clear()
    world.delete("vm", "web")
    world.vm("new")
    world.api.compact()
    world.front.connected.set()
    await world.gone("web", 700)
    await world.run_until(lambda: world.ready("new"), 700)
    await world.rest(quiet=700)


@in_world()
async def test_events_that_never_come(world: World) -> None:
    world.events.lost = world.front.delivery.lost = 1.0
    await running_within_a_resync(world)
    process = world.process("web")
    assert process is not None
    process.kill()
    await world.run_until(lambda: world.process("web") not in (None, process), 60)
    world.edit("vm", "web", runStrategy="Halted")
    await world.run_until(lambda: not world.process("web"), 700)
    world.delete("vm", "web")
    await world.gone("web", 700)
    await world.rest()


async def running_within_a_resync(world: World) -> None:
    world.vm("web")
    await world.running("web", 700)
    await world.settle(90)


@in_world()
async def test_events_that_come_late_twice_and_in_the_wrong_order(world: World) -> None:
    for delivery in (world.events, world.front.delivery):
        delivery.doubled, delivery.reordered, delivery.late = 0.5, 0.5, 20.0
    await running_within_a_resync(world)
    for number in range(5):
        world.edit("vm", "web", power={"request": f"r{number}"})
        await world.settle(7)
    await world.run_until(lambda: world.ready("web") and world.process("web"), 700)
    await world.settle(60)
    await world.rest(quiet=1500)
    process = world.process("web")
    assert process is not None
    assert "r4" in libvirt_xml.text_of(process.live)


@in_world()
async def test_an_etcd_that_was_rolled_back_removes_nothing(world: World) -> None:
    await running(world)
    backup = world.api.snapshot()
    await world.settle(5)
    world.vm("later")
    world.edit("vm", "web", memory={"size": "128Mi"})
    await world.run_until(lambda: world.ready("later") and world.ready("web"), 120)
    await world.settle(60)
    processes = set(world.ledger.alive)
    world.api.restore(backup)
    await world.settle(1500)
    assert set(world.ledger.alive) == processes
    orphans = [each["name"] for host in world.hosts for each in world.status(host, "hv").get("orphans", [])]
    assert orphans == ["default_later"]


@in_world()
async def test_a_status_that_was_lost_starts_nothing_twice(world: World) -> None:
    host = world.hosts[await running(world)]
    world.kill()
    found = world.get("vm", "web")
    assert found is not None
    world.invariants.protocol = False
    del found["status"]
    host.cut()
    world.start()
    await world.settle(600)
    assert len(world.ledger.processes) == 1
    host.restore()
    await world.running("web", 120)
    await world.rest()
    assert len(world.ledger.processes) == 1


# Operators ------------------------------------------------------------------------------------------------------------


@in_world()
async def test_an_operator_that_begins_says_nothing_of_a_host_before_it_knows_its_vms(world: World) -> None:
    """A host whose VMs are not listed yet is not empty, and its domains are nobody's orphans."""
    host = await running(world, disks=[{"name": "root", "pool": "local", "size": "1Mi"}])
    world.edit("hv", host, maintenance="Evacuate")
    await world.run_until(lambda: world.status(host, "hv").get("evacuation", {}).get("remaining") == 1)
    await world.settle(60)
    said = told(world.status(host, "hv"))
    world.kill()
    world.front.lists["virtualmachines"] = 20.0
    seen: list[object] = []
    world.api.changed.append(lambda kind, before, after: seen.append(told((after or {}).get("status", {}))))
    world.start()
    await world.settle(90)
    assert [each for each in seen if each is not None and each != said] == []
    assert world.ready("web")


def told(status: dict[str, Any]) -> object:
    """What a Hypervisor's status says of its VMs."""
    rows = {name: status.get(name) for name in ("allocated", "orphans", "evacuation")}
    return rows if status.get("hostname") and status.get("evacuation", {}).get("remaining") is not None else None


@pytest.mark.parametrize("name", ["define", "create_volume"])
@in_world()
async def test_what_a_dead_operator_asked_for_arrives_after_the_vm_is_gone_and_is_told(world: World, name: str) -> None:
    """Nobody can know of it, so it is not removed: the next VM of that name waits, and says for what."""
    await world.settle(20)
    disk = {"name": "data", "pool": "shared", "size": "1Mi", "deletionPolicy": "Delete"}
    fault = world.fault((f"h. {name}", 1), "late=900")
    world.vm("web", disks=[disk])
    await world.run_until(lambda: fault.reached)
    world.start()
    await world.running("web")
    world.delete("vm", "web")
    await world.gone("web", 600)
    await world.settle(900)
    orphans = [each["name"] for host in world.hosts for each in world.status(host, "hv").get("orphans", [])]
    assert orphans == (["default_web"] if name == "define" else [])
    assert not world.ledger.alive
    world.vm("web", disks=[disk])
    await world.run_until(lambda: world.condition("vm", "web").get("reason") in ("ForeignName", "RetainedDisk"))
    assert ("default_web_data_" if name == "create_volume" else orphans[0]) in world.condition("vm", "web")["message"]


@in_world()
async def test_two_operators_at_once_run_nothing_twice(world: World) -> None:
    world.start()
    world.start()
    for name in ("a", "b", "c", "d"):
        world.vm(name)
    await world.run_until(lambda: all(world.ready(name) for name in "abcd"), 300)
    await world.settle(90)
    for name in "abcd":
        process = world.process(name)
        assert process is not None
        process.kill()
    await world.run_until(lambda: all(world.ready(name) and world.process(name) for name in "abcd"), 300)
    world.edit("vm", "a", runStrategy="Halted")
    world.delete("vm", "b")
    await world.gone("b")
    await world.settle(120)
    await world.rest()


@in_world()
async def test_two_operators_that_hear_nothing_of_hosts_restart_once(world: World) -> None:
    await running(world)
    world.start()
    await world.settle(60)
    world.events.lost = 1.0
    world.edit("vm", "web", power={"request": "again"})
    await world.run_until(lambda: len(world.ledger.processes) == 2 and world.ready("web"), 120)
    second = world.process("web")
    await world.settle(300)
    assert world.process("web") is second, "it was restarted again"
    await world.rest()


@in_world()
async def test_a_hypervisor_with_vms_waits_for_them(world: World) -> None:
    host = world.hosts[await running(world)]
    world.delete("hv", host.name)
    await world.settle(300)
    assert world.get("hv", host.name) is not None
    assert "default/web" in world.status(host.name, "hv")["holds"]
    assert world.process("web") is not None
    world.vm("new", placement={"host": host.name})
    await world.settle(120)
    assert not world.process("new")
    world.delete("vm", "new")
    world.delete("vm", "web")
    await world.run_until(lambda: world.get("hv", host.name) is None, 300)
    await world.rest(quiet=60)
