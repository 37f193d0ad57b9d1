# SPDX-License-Identifier: Apache-2.0
"""Hosts, networks, daemons and the API server fail, people interfere: nothing runs twice, and all converges again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from xml.etree import ElementTree

import pytest

from homeostat.hosts.driver import HostError
from tests.simulation.harness import in_world
from tests.simulation.world import World

pytestmark = pytest.mark.simulation

XML = (
    "<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory>"
    "<os><type machine='q35'>hvm</type></os></domain>"
)
STRANGER = "00000000-0000-4000-a000-00000000000f"


async def running(world: World, **spec: Any) -> str:
    """A VM web that has been running for a while; the name of its host."""
    world.vm("web", **spec)
    await world.running("web")
    await world.settle(90)
    return world.host_of("web").name


def reason(world: World, name: str = "web", kind: str = "vm") -> str:
    return str(world.condition(kind, name).get("reason"))


# A host that does not answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "freeze", "power_off"])
@in_world()
async def test_a_host_that_does_not_answer_is_unknown_and_nothing_starts_elsewhere(world: World, how: str) -> None:
    host = world.hosts[await running(world)]
    getattr(host, how)()
    await world.run_until(lambda: world.condition("vm", "web", "Running").get("status") == "Unknown", 120)
    assert world.condition("vm", "web")["status"] == "Unknown"
    starts = len(world.ledger.processes)
    await world.settle(3600)
    assert len(world.ledger.processes) == starts
    assert world.status("web")["host"] == host.name
    {"cut": host.restore, "freeze": host.thaw, "power_off": host.power_on}[how]()
    await world.running("web", 120)
    await world.rest(quiet=1500)


@in_world(hosts=3)
async def test_a_host_that_never_answers_slows_no_other(world: World) -> None:
    names = [f"vm{number}" for number in range(30)]
    for name in names:
        world.vm(name)
    await world.run_until(lambda: all(world.ready(name) for name in names), 120)
    await world.settle(120)

    async def heals(victims: list[str]) -> float:
        for name in victims:
            process = world.process(name)
            assert process is not None
            process.kill()
        return await world.run_until(lambda: all(world.process(name) for name in victims))

    healthy = [name for name in names if world.host_of(name).name != "h1"]
    stopped = next(name for name in healthy if world.host_of(name).name == "h2")
    victims = [name for name in healthy if name != stopped]
    before = await heals(victims)
    await world.settle(120)
    world.hosts["h1"].freeze()
    process = world.process(stopped)
    assert process is not None
    process.stop()
    world.edit("vm", stopped, power={"request": "now"})
    for name in names:
        if name not in healthy:
            world.edit("vm", name, power={"request": "now"})
    await world.settle(5)
    assert await heals(victims) <= before + 0.5
    await world.settle(120)
    assert await heals(victims) <= before + 0.5
    process.go_on()
    world.hosts["h1"].thaw()
    await world.run_until(lambda: all(world.ready(name) for name in names), 600)
    await world.rest()


@in_world()
async def test_a_host_that_is_powered_off_by_the_word_of_a_person_is_given_up(world: World) -> None:
    host = world.hosts[await running(world)]
    host.power_off()
    await world.settle(120)
    since = world.api.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    world.edit("hv", host.name, outOfService={"since": since, "evidence": "PoweredOff"})
    await world.running("web", 120)
    assert world.host_of("web") is not host
    host.power_on()
    await world.settle(120)
    assert reason(world, host.name, "hv") == "OutOfServiceButAnswering"
    world.edit("hv", host.name, outOfService=None)
    await world.running("web", 120)
    await world.rest(quiet=1500)


@in_world()
async def test_a_host_said_to_be_off_that_answers_is_not_believed_to_be_off(world: World) -> None:
    host = world.hosts[await running(world)]
    process = world.process("web")
    since = world.api.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    world.edit("hv", host.name, outOfService={"since": since, "evidence": "PoweredOff"})
    await world.settle(300)
    assert world.process("web") is process
    assert reason(world, host.name, "hv") == "OutOfServiceButAnswering"


@pytest.mark.parametrize("silent", [0, 3, 60])
@in_world()
async def test_a_host_that_answered_after_it_was_said_to_be_off_is_not_given_up_by_the_next_operator(
    world: World, silent: int
) -> None:
    host = world.hosts[await running(world)]
    process = world.process("web")
    since = world.api.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    world.edit("hv", host.name, outOfService={"since": since, "evidence": "PoweredOff"})
    await world.settle(300)
    world.kill()
    if silent:
        host.cut()
    world.start()
    await world.settle(silent or 0.01)
    host.restore()
    await world.settle(60)
    assert list(world.ledger.alive) == [process]
    assert reason(world, host.name, "hv") == "OutOfServiceButAnswering"


@in_world()
async def test_a_host_that_is_said_to_be_off_later_is_not_given_up(world: World) -> None:
    host = world.hosts[await running(world)]
    process = world.process("web")
    since = (world.api.now() + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    world.edit("hv", host.name, outOfService={"since": since, "evidence": "PoweredOff"})
    await world.settle(300)
    host.cut()
    await world.settle(3 * 3600)
    assert list(world.ledger.alive) == [process]
    assert reason(world, host.name, "hv") == "OutOfServiceButAnswering"


@in_world()
async def test_a_host_said_to_be_off_from_a_time_to_come_is_given_up_then(world: World) -> None:
    host = world.hosts[await running(world)]
    host.power_off()
    await world.settle(120)
    since = (world.api.now() + timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    world.edit("hv", host.name, outOfService={"since": since, "evidence": "PoweredOff"})
    await world.settle(280)
    assert (world.process("web"), reason(world, host.name, "hv")) == (None, "OutOfServiceLater")
    await world.running("web", 120)
    assert world.host_of("web") is not host


@in_world()
async def test_a_hypervisor_with_a_dead_address_does_not_hide_the_one_that_sees_its_host(world: World) -> None:
    host = world.hosts[await running(world, placement={"host": "h1"})]
    process = world.process("web")
    world.edit("vm", "web", placement=None)
    world.addresses["qemu+tcp://h1new/system"] = world.addresses.pop("qemu+tcp://h1/system")
    host.restart_daemon()
    await world.settle(120)
    spec = dict((world.get("hv", "h1") or {})["spec"])
    world.apply("hv", "h1new", spec | {"uri": "qemu+tcp://h1new/system"})
    await world.settle(120)
    since = world.api.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    world.edit("hv", "h1", outOfService={"since": since, "evidence": "Destroyed"})
    await world.settle(300)
    assert list(world.ledger.alive) == [process]
    world.delete("hv", "h1")
    await world.run_until(lambda: world.ready("web"), 700)
    assert list(world.ledger.alive) == [process]


@in_world()
async def test_a_vm_is_not_started_elsewhere_because_somebody_removed_the_hypervisor_it_runs_on(world: World) -> None:
    host = world.hosts[await running(world)]
    other = next(each for each in world.hosts.values() if each is not host)
    process = world.process("web")
    host.cut()
    await world.settle(120)
    world.edit("hv", host.name, metadata={"finalizers": None})
    world.delete("hv", host.name)
    await world.settle(60)
    world.invariants.protocol = False
    copy = ElementTree.tostring(host.definitions()[world.uuid("web")], encoding="unicode")
    await other.define(copy)  # by hand, our mark with it
    await world.settle(600)
    assert list(world.ledger.alive) == [process]
    assert reason(world) == "HypervisorMissing"
    assert {each["hypervisor"] for each in world.status("web")["candidates"]} == set(world.hosts)


@in_world()
async def test_deleting_a_vm_whose_host_is_gone_waits_and_names_the_ways_out(world: World) -> None:
    host = world.hosts[await running(world)]
    host.cut()
    world.delete("vm", "web")
    await world.settle(600)
    assert world.get("vm", "web") is not None
    message = world.condition("vm", "web")["message"]
    assert host.name in message and "abandonHosts" in message and "outOfService" in message
    world.edit("vm", "web", abandonHosts=[host.name])
    await world.gone("web")
    host.restore()
    await world.settle(120)
    orphans = world.status(host.name, "hv").get("orphans", [])
    assert [each["name"] for each in orphans] == ["default_web"]
    assert len(world.ledger.alive) == 1, "what was abandoned is reported and not touched"


# libvirtd and the machine ---------------------------------------------------------------------------------------------


@in_world()
async def test_a_restart_of_libvirtd_changes_nothing(world: World) -> None:
    host = world.hosts[await running(world)]
    process = world.process("web")
    for _ in range(3):
        host.restart_daemon()
        await world.settle(120)
    assert world.process("web") is process
    await world.rest(quiet=700)


@in_world()
async def test_a_host_that_reboots_gets_its_vms_back(world: World) -> None:
    host = world.hosts[await running(world)]
    host.reboot(180)
    await world.settle(10)
    await world.run_until(lambda: world.process("web"), 300)
    assert world.host_of("web") is host
    await world.run_until(lambda: world.ready("web"))
    await world.rest(quiet=1500)


@in_world(locks=True)
async def test_a_lost_record_does_not_lead_to_a_second_process(world: World) -> None:
    host = world.hosts[await running(world)]
    survivor = host.lose_record(world.uuid("web"))
    await world.settle(3600)
    assert survivor is not None and not survivor.ended
    assert world.ledger.running(world.uuid("web")) == [survivor]
    survivor.kill()
    await world.running("web", 700)
    await world.rest(quiet=1500)


@in_world(locks=True)
async def test_a_vm_whose_record_was_lost_is_not_deleted_under_its_process(world: World) -> None:
    host = world.hosts[
        await running(world, disks=[{"name": "root", "pool": "shared", "size": "1Gi", "deletionPolicy": "Delete"}])
    ]
    survivor = host.lose_record(world.uuid("web"))
    world.delete("vm", "web")
    await world.settle(1800)
    assert survivor is not None and not survivor.ended
    assert world.get("vm", "web") is not None
    assert world.storages["shared"].files
    survivor.kill()
    await world.gone("web", 700)
    await world.rest()


@pytest.mark.parametrize("moved", ["cordoned", "placed elsewhere", "deleted and made again"])
@pytest.mark.parametrize("disks", [0, 1])
@in_world(locks=True)
async def test_a_vm_whose_record_was_lost_is_not_started_elsewhere(world: World, moved: str, disks: int) -> None:
    world.storages["shared"].locks_across = False
    disk = {"name": "root", "pool": "shared", "size": "1Gi"}
    host = world.hosts[await running(world, disks=[disk] * disks)]
    host.log_held = True
    survivor = host.lose_record(world.uuid("web"))
    await world.settle(120)
    match moved:
        case "cordoned":
            world.edit("hv", host.name, maintenance="Cordon")
        case "placed elsewhere":
            world.edit("vm", "web", placement={"host": "h1" if host.name == "h2" else "h2"})
        case _:
            spec, uuid = (world.get("vm", "web") or {})["spec"], world.uuid("web")
            world.delete("vm", "web")
            await world.settle(600)
            if world.get("vm", "web") is None:
                world.apply("vm", "web", spec | {"domainUUID": uuid, "takeover": "PreviousIncarnation"})
    await world.settle(3600)
    assert survivor is not None and not survivor.ended
    assert list(world.ledger.alive) == [survivor]


@in_world()
async def test_a_stopped_qemu_is_ended_when_it_has_to_be(world: World) -> None:
    host = world.hosts[await running(world, terminationGracePeriodSeconds=20)]
    for raises in (False, True):
        host.destroy_of_stopped_raises = raises
        process = world.process("web")
        assert process is not None
        process.stop()
        world.edit("vm", "web", runStrategy="Halted")
        await world.run_until(lambda: not world.process("web"), 180)
        await world.rest()
        world.edit("vm", "web", runStrategy="Always")
        await world.running("web", 120)
        await world.settle(90)
    await world.rest(quiet=700)


# Managed save ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "restored"), [("Restore", True), ("Discard", False)])
@in_world()
async def test_a_saved_image_waits_for_the_word_of_its_owner(world: World, action: str, restored: bool) -> None:
    host = world.hosts[await running(world)]
    host.managed_save(world.uuid("web"))
    await world.settle(600)
    assert not world.process("web")
    assert reason(world) == "ManagedSaveFound"
    world.edit("vm", "web", managedSave={"host": host.name, "action": action})
    await world.running("web", 120)
    assert (host.records[world.uuid("web")].reason == "Restored") == restored
    assert host.records[world.uuid("web")].managed_save is None


# Strangers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["uuid", "name"])
@in_world()
async def test_a_strangers_domain_is_not_touched(world: World, what: str) -> None:
    await world.settle(10)
    uuid = STRANGER
    for host in world.hosts.values():
        name = "somebodys" if what == "uuid" else "default_web"
        await host.define(XML.format(name=name, uuid=uuid if what == "uuid" else f"{uuid[:-1]}{host.number}"))
    for host in world.hosts.values():
        world.invariants.foreign |= set(host.records)
        for each in list(host.records):
            await host.create(each, paused=False)
        break
    before = {host.name: dict(host.definitions()) for host in world.hosts.values()}
    processes = set(world.ledger.alive)
    world.vm("web", **({"domainUUID": uuid} if what == "uuid" else {}))
    await world.settle(600)
    assert set(world.ledger.alive) == processes
    assert {host.name: set(host.definitions()) for host in world.hosts.values()} == {
        k: set(v) for k, v in before.items()
    }
    assert world.condition("vm", "web", "Conflict")["status"] == "True"
    world.delete("vm", "web")
    await world.gone("web")
    assert set(world.ledger.alive) == processes
    assert all(host.records for host in world.hosts.values())


@in_world()
async def test_a_domain_that_is_no_ones_is_taken_over_when_the_spec_says_so(world: World) -> None:
    world.invariants.protocol = False
    await world.hosts["h1"].define(XML.format(name="default_web", uuid=STRANGER))
    await world.hosts["h1"].create(STRANGER, paused=False)
    process = world.hosts["h1"].process(STRANGER)
    world.vm("web", domainUUID=STRANGER, takeover="Unowned", disks=[])
    await world.run_until(lambda: world.status("web").get("host") == "h1", 120)
    await world.settle(120)
    assert world.process("web") is process
    assert world.condition("vm", "web", "Running")["status"] == "True"


@in_world()
async def test_two_hypervisors_of_one_host(world: World) -> None:
    await running(world)
    world.addresses["qemu+tcp://h1b/system"] = world.hosts["h1"]
    spec = dict((world.get("hv", "h1") or {})["spec"]) | {"uri": "qemu+tcp://h1b/system"}
    world.apply("hv", "h1b", spec)
    await world.run_until(lambda: reason(world, "h1", "hv") == reason(world, "h1b", "hv") == "DuplicateHost", 700)
    world.vm("new", placement={"host": "h1"})
    await world.settle(300)
    assert not world.process("new")
    world.delete("hv", "h1b")
    await world.run_until(lambda: world.ready("new"), 120)
    await world.rest()


@in_world(hosts=3)
async def test_an_address_that_leads_to_another_machine_is_not_believed(world: World) -> None:
    host = world.hosts[await running(world)]
    process = world.process("web")
    stranger = next(each for each in world.hosts.values() if each is not host)
    world.addresses[f"qemu+tcp://{host.name}/system"] = stranger
    host.restart_daemon()
    await world.settle(300)
    assert reason(world, host.name, "hv") == "IdentityMismatch"
    assert world.ledger.running(world.uuid("web")) == [process]
    assert world.condition("vm", "web", "Running")["status"] == "Unknown"
    world.addresses[f"qemu+tcp://{host.name}/system"] = host
    await world.running("web", 120)
    await world.rest()


# Starts that fail -----------------------------------------------------------------------------------------------------


@in_world()
async def test_a_start_that_is_refused_is_repeated_less_and_less_often_in_libvirts_words(world: World) -> None:
    for host in world.hosts.values():
        host.refuse_start = HostError(1, "internal error: the moon is in the wrong phase", 10)
    world.vm("web")
    await world.settle(3600)
    creates = [effect for effect in world.effects.log if effect.name.endswith(" create")]
    assert 3 < len(creates) < 40
    assert "the moon is in the wrong phase" in world.condition("vm", "web")["message"]
    for host in world.hosts.values():
        host.refuse_start = None
    await world.running("web", 700)
    await world.rest(quiet=700)


@in_world()
async def test_a_full_disk(world: World) -> None:
    world.storages["shared"].full = True
    world.vm("web")
    await world.settle(600)
    assert reason(world) == "DiskFailed"
    assert "No space left" in world.condition("vm", "web")["message"]
    world.storages["shared"].full = False
    await world.running("web", 700)
    await world.rest(quiet=700)


@in_world()
async def test_a_pool_that_is_not_mounted_gets_no_second_disk(world: World) -> None:
    host = world.hosts[await running(world)]
    world.edit("vm", "web", runStrategy="Halted")
    await world.run_until(lambda: not world.process("web"))
    shared, empty = world.storages["shared"], world._storage("mount-point", locks=False)
    for each in world.hosts.values():
        each.pools["shared"].mount(empty)
        each.pools["shared"].refresh()
    world.edit("vm", "web", runStrategy="Always")
    await world.settle(600)
    assert not empty.files
    assert reason(world) == "DiskMissing"
    for each in world.hosts.values():
        each.pools["shared"].mount(shared)
    await world.running("web", 700)
    await world.rest()
    assert host.definitions()


@in_world()
async def test_a_pool_that_is_not_mounted_gets_no_second_disk_for_a_vm_without_its_status(world: World) -> None:
    await running(world, deletionPolicy="Release")
    world.edit("vm", "web", runStrategy="Halted")
    await world.run_until(lambda: not world.process("web"))
    spec, uuid = (world.get("vm", "web") or {})["spec"], world.uuid("web")
    world.delete("vm", "web")
    await world.gone("web")
    shared, empty = world.storages["shared"], world._storage("mount-point", locks=False)
    for each in world.hosts.values():
        each.pools["shared"].mount(empty)
        each.pools["shared"].refresh()
    world.invariants.protocol = False
    world.apply("vm", "web", spec | {"domainUUID": uuid, "takeover": "PreviousIncarnation", "runStrategy": "Always"})
    await world.settle(600)
    assert not empty.files
    assert reason(world) == "DiskMissing"
    for each in world.hosts.values():
        each.pools["shared"].mount(shared)
    await world.running("web", 700)


@in_world()
async def test_a_disk_of_an_earlier_vm_of_that_name_is_not_passed_over(world: World) -> None:
    await running(world)
    world.delete("vm", "web")
    await world.gone("web")
    world.vm("web")
    await world.settle(120)
    assert reason(world) == "RetainedDisk"
    assert len(world.storages["shared"].files) == 1
