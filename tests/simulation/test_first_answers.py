# SPDX-License-Identifier: Apache-2.0
"""People moved a VM while no operator looked: the next one asks every host before it believes that the VM is off."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulation import libvirt_xml
from tests.simulation.harness import in_world
from tests.simulation.machine import Machine
from tests.simulation.test_disasters import reason, running
from tests.simulation.world import World

pytestmark = pytest.mark.simulation


async def stage(world: World, **spec: Any) -> tuple[Machine, Machine]:
    """The host on which a VM runs, and another one."""
    home = world.hosts[await running(world, **spec)]
    return home, next(host for host in world.hosts.values() if host is not home)


def off(world: World, home: Machine) -> None:
    """The operator ends, and then the VM's process."""
    world.kill()
    home.process(world.uuid("web")).end("Crashed")


async def moved(world: World, **spec: Any) -> tuple[Machine, Machine]:
    """Where a VM ran until its operator ended, and where somebody made it run since. The old definition is left."""
    home, other = await stage(world, **spec)
    off(world, home)
    world.invariants.protocol = False
    uuid = world.uuid("web")
    definition = home.records[uuid].persistent
    assert definition is not None
    await other.define(libvirt_xml.text_of(definition))
    await other.create(uuid, paused=False)
    return home, other


@in_world()
async def test_a_vm_that_was_moved_is_not_started_where_it_was_before_the_other_host_was_asked(world: World) -> None:
    home, other = await moved(world)
    other.freeze()
    world.start()
    await world.settle(8)
    told = world.condition("vm", "web")
    assert told["reason"] == "HostNotAsked"
    assert f"Hypervisor {other.name} is unknown: it is being connected to" in told["message"]
    other.thaw()
    await world.run_until(lambda: world.status("web")["host"] == other.name, 60)
    await world.run_until(lambda: world.uuid("web") not in home.records, 200)
    assert world.host_of("web") is other


@in_world()
async def test_a_vm_that_was_moved_is_not_deleted_before_the_other_host_was_asked(world: World) -> None:
    _, other = await moved(world, disks=[{"name": "root", "pool": "shared", "size": "1Gi", "deletionPolicy": "Delete"}])
    other.freeze()
    world.delete("vm", "web")
    world.start()
    await world.settle(8)
    assert world.storages["shared"].files, "the disk of a process that runs"
    other.thaw()
    await world.gone("web", 300)
    assert not world.storages["shared"].files
    assert not other.records


@in_world(hosts=3)
async def test_a_host_that_fell_silent_while_no_operator_looked_keeps_starts_waiting_for_seconds(world: World) -> None:
    home, silent = await stage(world)
    off(world, home)
    silent.cut()
    world.start()
    took = await world.run_until(lambda: world.process("web"), 60)
    assert world.settings.connect_timeout_seconds - 1 < took < world.settings.connect_timeout_seconds + 5
    await world.running("web", 60)
    assert reason(world, silent.name, "hv") == "Unreachable"


@in_world(hosts=3)
async def test_a_host_that_hangs_at_its_first_answers_keeps_starts_waiting_no_longer(world: World) -> None:
    """It takes the connection, and then says nothing: that is found out by the keep-alive, 20 s later."""
    home, silent = await stage(world)
    off(world, home)

    class Taken(list[Any]):
        """Connections; the host hangs when it has taken one."""

        def append(self, connection: Any) -> None:
            """As of a list."""
            super().append(connection)
            silent.freeze()

    silent.connections = Taken(silent.connections)
    world.start()
    took = await world.run_until(lambda: world.process("web"), 60)
    assert world.settings.connect_timeout_seconds - 3 < took < world.settings.connect_timeout_seconds + 5


@in_world(hosts=3)
async def test_a_host_that_was_silent_before_keeps_nobody_waiting(world: World) -> None:
    home, silent = await stage(world)
    silent.cut()
    await world.run_until(lambda: reason(world, silent.name, "hv") == "Unreachable", 120)
    off(world, home)
    world.start()
    assert await world.run_until(lambda: world.process("web"), 60) < 3


@in_world(hosts=3)
async def test_a_new_vm_waits_for_no_host_that_fell_silent_while_no_operator_looked(world: World) -> None:
    await world.settle(60)
    world.kill()
    world.hosts["h3"].cut()
    world.vm("web", placement={"host": "h1"})
    world.start()
    assert await world.run_until(lambda: world.process("web"), 60) < 5
