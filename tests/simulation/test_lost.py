# SPDX-License-Identifier: Apache-2.0
"""A libvirtd that lost its record of a process, and ends once more in the middle of a start beside it."""

from __future__ import annotations

import pytest

from tests.simulation.harness import in_world
from tests.simulation.machine import Machine
from tests.simulation.test_disasters import reason, running
from tests.simulation.world import World

pytestmark = pytest.mark.simulation


def ends_in_the_start(host: Machine, uuid: str, says: str) -> None:
    """Libvirtd ends in the middle of a start, and says this of the process that was refused, which is not the VM's."""
    host.restart_daemon()
    host.shows(host.records[uuid], "Shutoff", says)


@pytest.mark.parametrize("way_out", ["the process ends", "a person confirms it"])
@pytest.mark.parametrize("says", ["Crashed", "Failed", "Unknown", "Daemon"])
@pytest.mark.parametrize("operator", ["drop-reply", "kill-after"])
@in_world(locks=True)
async def test_a_start_that_broke_off_beside_a_lost_process_does_not_have_the_vm_deleted_under_it(
    world: World, operator: str, says: str, way_out: str
) -> None:
    disk = {"name": "root", "pool": "shared", "size": "1Gi", "deletionPolicy": "Delete"}
    host, uuid = world.hosts[await running(world, disks=[disk])], world.uuid("web")
    struck = world.fault((f"{host.name} create", 1), operator, meanwhile=lambda: ends_in_the_start(host, uuid, says))
    said: list[str] = []
    survivor = host.lose_record(uuid)
    assert survivor is not None
    await world.run_until(lambda: struck.reached, 300)
    world.delete("vm", "web")
    if operator == "kill-after":
        world.start()
    await world.settle(1800)
    assert not survivor.ended
    assert uuid in host.records and world.storages["shared"].files
    assert (reason(world), world.status("web")["domain"]["reason"]) == ("RecordLost", "RecordLost")
    if way_out == "the process ends":
        survivor.kill()
    else:  # whose word is taken, and is wrong
        world.effects.violated = said.append  # type: ignore[method-assign, assignment]
        since = world.api.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        world.edit("vm", "web", confirmedOff={"host": host.name, "since": since})
    await world.gone("web", 700)
    assert [*said] == ([] if survivor.ended else [f"the finalizer of web was removed while {host.name} runs it"])


@in_world(locks=True)
async def test_an_edit_of_the_disks_does_not_take_away_the_lock_that_refuses_a_second_process(world: World) -> None:
    host = world.hosts[await running(world)]
    survivor = host.lose_record(world.uuid("web"))
    assert survivor is not None
    world.edit("vm", "web", disks=[{"name": "other", "pool": "shared", "size": "1Gi"}])
    await world.settle(1800)
    assert not survivor.ended
    assert list(world.ledger.alive) == [survivor]
    survivor.kill()
    await world.running("web", 700)


@in_world(locks=True)
async def test_a_process_that_was_started_by_hand_is_not_deleted_under_when_its_record_is_lost(world: World) -> None:
    disk = {"name": "root", "pool": "shared", "size": "1Gi", "deletionPolicy": "Delete"}
    host, uuid = world.hosts[await running(world, disks=[disk], runStrategy="Manual")], world.uuid("web")
    process = world.process("web")
    assert process is not None
    process.power_off()
    await world.run_until(lambda: reason(world) == "NotRequested", 120)
    await world.settle(60)
    await host.create(uuid, paused=False)
    await world.settle(120)
    survivor = host.lose_record(uuid)
    assert survivor is not None
    await world.settle(60)
    world.delete("vm", "web")
    await world.settle(1800)
    assert not survivor.ended
    assert uuid in host.records and world.storages["shared"].files
    survivor.kill()
    await world.gone("web", 700)
