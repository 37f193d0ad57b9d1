# SPDX-License-Identifier: Apache-2.0
"""The life of a VM, from its declaration to its removal, in a world that behaves."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.simulation.harness import in_world
from tests.simulation.hypervisor import Host
from tests.simulation.libvirt_xml import memory_mib
from tests.simulation.qemu import Guest
from tests.simulation.world import World

pytestmark = pytest.mark.simulation


def definitions(world: World, name: str = "web") -> list[Host]:
    """The hosts that have a definition of a VM."""
    uuid = world.uuid(name)
    return [host for host in world.hosts.values() if uuid in host.definitions()]


# Created, kept --------------------------------------------------------------------------------------------------------


@in_world()
async def test_a_declared_vm_runs(world: World) -> None:
    world.vm("web")
    took = await world.run_until(lambda: world.ready("web"))
    assert took < 5
    assert world.process("web") is not None
    assert [host.name for host in definitions(world)] == [world.status("web")["host"]]
    await world.rest(quiet=1500)


@in_world()
async def test_nothing_waits_for_an_event_to_be_written(world: World) -> None:
    await world.settle(20)
    for host in world.hosts.values():
        host.default_guest = Guest(boots=0, obeys=1)
    world.front.lists["events"] = 29.0
    world.vm("web")
    await world.run_until(lambda: world.ready("web"), 5)
    world.edit("vm", "web", runStrategy="Halted")
    await world.run_until(lambda: not world.process("web"), 10)
    world.edit("vm", "web", runStrategy="Always")
    await world.run_until(lambda: world.ready("web"), 10)


@in_world()
async def test_a_start_takes_at_most_three_writes(world: World) -> None:
    await world.settle(20)
    before = len(world.effects.log)
    world.vm("web")
    await world.running("web")
    writes = [e for e in world.effects.log[before:] if e.name.startswith(("PATCH status vm", "PATCH vm"))]
    assert len(writes) <= 3, writes


@pytest.mark.parametrize("how", ["kill", "terminate", "power_off"])
@in_world()
async def test_a_vm_that_went_off_comes_back(world: World, how: str) -> None:
    world.vm("web")
    await world.running("web")
    await world.settle(90)
    first = world.process("web")
    assert first is not None
    getattr(first, how)()
    took = await world.run_until(lambda: world.process("web"))
    assert took <= 3
    await world.rest(quiet=1500)
    assert world.ready("web")


@in_world()
async def test_a_vm_that_keeps_crashing_is_started_less_and_less_often(world: World) -> None:
    for host in world.hosts.values():
        host.default_guest = Guest(crash_after=5)
    world.vm("web")
    await world.settle(1800)
    starts = [each.start for each in world.ledger.processes]
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert 5 < len(starts) < 30, gaps
    assert gaps[-1] > 3 * gaps[0], gaps
    for host in world.hosts.values():
        host.default_guest = Guest()
    await world.run_until(lambda: world.ready("web") and world.process("web"), 1200)


@in_world()
async def test_a_guest_that_reboots_is_left_alone(world: World) -> None:
    world.vm("web")
    await world.running("web")
    await world.settle(90)
    process = world.process("web")
    assert process is not None
    process.reset()
    await world.invariants.quiet(120)
    assert world.process("web") is process


# Stopped --------------------------------------------------------------------------------------------------------------


@in_world()
async def test_a_halted_vm_is_shut_down_and_stays_off(world: World) -> None:
    world.vm("web")
    await world.running("web")
    await world.settle(60)
    world.edit("vm", "web", runStrategy="Halted")
    await world.run_until(lambda: not world.process("web"))
    await world.rest(quiet=1500)
    assert world.ready("web")
    assert world.condition("vm", "web", "Running")["status"] == "False"
    world.edit("vm", "web", runStrategy="Always")
    await world.running("web")
    await world.rest(quiet=1500)


@in_world()
async def test_a_guest_that_is_booting_is_asked_again(world: World) -> None:
    for host in world.hosts.values():
        host.default_guest = Guest(boots=25, obeys=1)
    world.vm("web")
    await world.running("web")
    world.edit("vm", "web", runStrategy="Halted")
    took = await world.run_until(lambda: not world.process("web"), 100)
    assert 20 < took < 45, "asked while it booted, heard afterwards, and was not forced"
    await world.rest()


@in_world()
async def test_a_guest_that_does_not_listen_is_ended_after_its_grace_period(world: World) -> None:
    for host in world.hosts.values():
        host.default_guest = Guest(obeys=None)
    world.vm("web", terminationGracePeriodSeconds=50)
    await world.running("web")
    world.edit("vm", "web", runStrategy="Halted")
    took = await world.run_until(lambda: not world.process("web"), 100)
    assert 49 <= took < 60
    await world.rest(quiet=1500)


@pytest.mark.parametrize("strategy", ["RerunOnFailure", "Manual"])
@in_world(hosts=1)
async def test_a_guest_that_powers_off_for_an_evacuation_that_was_called_off_runs_again(
    world: World, strategy: str
) -> None:
    world.hosts["h1"].default_guest = Guest(boots=0, obeys=40)
    world.vm("web", evacuation="ShutOff", runStrategy=strategy)
    await world.running("web")
    first = world.process("web")
    assert first is not None
    world.edit("hv", "h1", maintenance="Evacuate")
    await world.run_until(lambda: world.condition("vm", "web").get("reason") == "Evacuating")
    await world.settle(10)
    world.edit("hv", "h1", maintenance="Off")
    await world.run_until(lambda: world.condition("vm", "web").get("reason") == "EvacuationEnded")
    assert world.ready("web")
    assert world.process("web") is first
    await world.run_until(lambda: world.process("web") not in (None, first), 120)
    await world.rest(quiet=1500)
    assert world.condition("vm", "web").get("reason") == "Running"
    assert len(world.ledger.processes) == 2


@in_world(hosts=2)
async def test_a_vm_that_waits_to_be_moved_with_its_disk_is_not_shut_off_for_an_evacuation(world: World) -> None:
    disks = [{"name": "root", "pool": "local", "size": "1Gi"}]
    world.edit("hv", "h2", maintenance="Cordon")
    for name in ("first", "second"):
        world.vm(name, disks=disks, evacuation="ShutOff")
    for name in ("first", "second"):
        await world.running(name)
    world.edit("hv", "h2", maintenance="Off")
    world.edit("hv", "h1", migration={"maxOutbound": 1})
    await world.settle(60)
    processes = [world.process(name) for name in ("first", "second")]
    policy = {"bandwidth": "4Mi"}
    for name in ("first", "second"):
        spec = {"vmRef": {"name": name}, "storageCopy": {"type": "Full", "disks": ["root"]}, "policy": policy}
        world.apply("vmmig", name, spec, namespace="default")
    await world.settle(5)
    world.edit("hv", "h1", maintenance="Evacuate")
    await world.run_until(
        lambda: all(world.condition("vmmig", n, "Succeeded").get("status") == "True" for n in ("first", "second")), 3000
    )
    assert {world.host_of(name).name for name in ("first", "second")} == {"h2"}
    assert all(life and life.end is not None for life in processes)
    assert len(world.ledger.processes) == 4, "each ran once on h1, and goes on on h2"


@in_world()
async def test_a_paused_vm_can_be_stopped(world: World) -> None:
    world.vm("web", terminationGracePeriodSeconds=20)
    await world.running("web")
    world.edit("vm", "web", execution="Paused")
    await world.run_until(lambda: (p := world.process("web")) and p.cpus_since is None)
    world.edit("vm", "web", runStrategy="Halted")
    await world.run_until(lambda: not world.process("web"))
    await world.rest(quiet=700)


# Paused ---------------------------------------------------------------------------------------------------------------


@in_world()
async def test_execution_pauses_and_resumes(world: World) -> None:
    world.vm("web", execution="Paused")
    await world.run_until(lambda: world.ready("web"))
    process = world.process("web")
    assert process is not None and process.cpus_since is None
    assert not world.ledger.cpus, "a VM that is to be paused never ran"
    await world.rest(quiet=700)
    world.edit("vm", "web", execution="Running")
    await world.run_until(lambda: world.ready("web") and process.cpus_since is not None)
    world.edit("vm", "web", execution="Paused")
    await world.run_until(lambda: world.ready("web") and process.cpus_since is None)
    assert world.process("web") is process
    await world.rest(quiet=700)


@pytest.mark.parametrize("reason", ["IOError", "User", "Watchdog"])
@in_world()
async def test_a_vm_that_somebody_else_paused_is_not_resumed(world: World, reason: str) -> None:
    world.vm("web")
    await world.running("web")
    world.host_of("web").pause(world.uuid("web"), reason)
    await world.settle(700)
    process = world.process("web")
    assert process is not None and process.cpus_since is None
    assert world.condition("vm", "web")["status"] == "False"
    assert reason in world.condition("vm", "web")["message"]


# Restarted, changed ---------------------------------------------------------------------------------------------------


@in_world()
async def test_a_new_power_request_restarts_once(world: World) -> None:
    world.vm("web")
    await world.running("web")
    await world.settle(60)
    first = world.process("web")
    world.edit("vm", "web", power={"request": "monday"})
    await world.run_until(lambda: world.ready("web") and world.process("web") not in (None, first), 100)
    second = world.process("web")
    await world.rest(quiet=1500)
    assert world.process("web") is second
    assert len(world.ledger.processes) == 2


@in_world()
async def test_a_change_waits_for_the_next_start(world: World) -> None:
    world.vm("web")
    await world.running("web")
    first = world.process("web")
    world.edit("vm", "web", memory={"size": "128Mi"})
    await world.run_until(lambda: world.condition("vm", "web", "RestartRequired").get("status") == "True")
    await world.rest(quiet=700)
    assert world.process("web") is first
    assert any("128 MiB" in each for each in world.status("web")["pendingChanges"])
    world.edit("vm", "web", power={"request": "now"})
    await world.run_until(lambda: world.ready("web") and world.process("web") not in (None, first), 100)
    second = world.process("web")
    assert second is not None and memory_mib(second.live) == 128
    await world.rest(quiet=700)
    assert world.condition("vm", "web", "RestartRequired")["status"] == "False"


@pytest.mark.parametrize(("how", "again"), [("power_off", False), ("kill", True)])
@in_world()
async def test_rerun_on_failure(world: World, how: str, again: bool) -> None:
    world.vm("web", runStrategy="RerunOnFailure")
    await world.running("web")
    await world.settle(90)
    first = world.process("web")
    assert first is not None
    getattr(first, how)()
    await world.settle(120)
    assert bool(world.process("web")) == again
    await world.rest(quiet=1500)
    assert world.ready("web")


@in_world()
async def test_a_finished_vm_stays_finished_when_libvirtd_forgets_why(world: World) -> None:
    world.vm("web", runStrategy="RerunOnFailure")
    await world.running("web")
    await world.settle(90)
    host, process = world.host_of("web"), world.process("web")
    assert process is not None
    process.power_off()
    await world.settle(30)
    host.restart_daemon()
    await world.settle(300)
    assert not world.process("web")
    await world.rest(quiet=700)


@in_world()
async def test_a_manual_vm_starts_when_asked(world: World) -> None:
    world.vm("web", runStrategy="Manual")
    await world.running("web")
    await world.settle(90)
    process = world.process("web")
    assert process is not None
    process.kill()
    await world.settle(120)
    assert not world.process("web")
    await world.rest()
    world.edit("vm", "web", power={"request": "again"})
    await world.running("web")
    world.edit("vm", "web", power={"request": "off", "state": "Stopped"})
    await world.run_until(lambda: not world.process("web"))
    await world.rest(quiet=700)
    assert world.ready("web")


# Deleted --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "left"), [("Retain", 1), ("Delete", 0)])
@in_world()
async def test_a_deleted_vm_leaves_what_its_disks_say(world: World, policy: str, left: int) -> None:
    world.vm("web", disks=[{"name": "root", "pool": "shared", "size": "1Gi", "deletionPolicy": policy}])
    await world.running("web")
    world.delete("vm", "web")
    await world.gone("web")
    assert not any(host.records for host in world.hosts.values())
    assert len(world.storages["shared"].files) == left
    await world.rest(quiet=700)


@in_world()
async def test_a_released_vm_goes_on_running(world: World) -> None:
    world.vm("web", deletionPolicy="Release")
    await world.running("web")
    process = world.process("web")
    world.delete("vm", "web")
    await world.gone("web")
    await world.settle(700)
    assert process is not None and not process.ended


@in_world()
async def test_a_vm_deleted_before_it_ever_ran_leaves_nothing(world: World) -> None:
    for host in world.hosts.values():
        host.cut()
    world.vm("web")
    await world.settle(5)
    world.delete("vm", "web")
    await world.gone("web")
    for host in world.hosts.values():
        host.restore()
    await world.rest()
    assert not world.storages["shared"].files


@in_world()
async def test_a_namespace_with_running_vms_goes(world: World) -> None:
    world.api.create_namespace("team")
    for name in ("a", "b", "c"):
        world.vm(name, namespace="team")
    await world.run_until(lambda: all(world.ready(name, namespace="team") for name in ("a", "b", "c")))
    world.delete("namespace", "team")
    await world.run_until(lambda: world.get("namespace", "team") is None, 300)
    assert not world.ledger.alive
    await world.rest(quiet=700)


@in_world()
async def test_hands_off(world: World) -> None:
    world.vm("web")
    await world.running("web")
    process = world.process("web")
    assert process is not None
    world.edit("vm", "web", metadata={"annotations": {"homeostat.dev/reconcile": "disabled"}})
    await world.settle(5)
    process.kill()
    await world.settle(300)
    assert not world.process("web")
    world.delete("vm", "web")
    await world.settle(300)
    assert world.get("vm", "web") is not None
    world.edit("vm", "web", metadata={"annotations": {"homeostat.dev/reconcile": None}})
    await world.gone("web")
    await world.rest()


# Many -----------------------------------------------------------------------------------------------------------------


@in_world(hosts=4)
async def test_two_hundred_vms_are_quiet_for_an_hour_and_one_that_is_killed_comes_back(world: World) -> None:
    for number in range(200):
        world.vm(f"vm{number}")
    names = [f"vm{number}" for number in range(200)]
    await world.run_until(lambda: all(world.ready(name) for name in names), 300)
    await world.settle(120)
    world.events.doubled = 0.5
    before, requests = len(world.effects.log), world.requests()
    for _ in range(12):
        await world.settle(290)
        world.front.connected.clear()
        world.api.compact()
        await world.settle(10)
        world.front.connected.set()
        for host in world.hosts.values():
            for record in list(host.records.values()):
                host.tell(record, "LIFECYCLE")
    assert world.effects.log[before:] == []
    asked = world.requests() - requests
    assert asked < 200, f"{asked} requests: at rest a VM costs none, neither at a resync nor when its host tells of it"
    world.invariants.at_rest()
    victim = world.process("vm77")
    assert victim is not None
    victim.kill()
    took = await world.run_until(lambda: world.process("vm77"))
    assert took <= 3
    await world.rest()
