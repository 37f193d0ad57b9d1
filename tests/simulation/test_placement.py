# SPDX-License-Identifier: Apache-2.0
"""Where a VM goes: what a host offers and to whom, how much room it has, and what is said when none fits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.simulation.harness import in_world
from tests.simulation.world import World

pytestmark = pytest.mark.simulation

GIB = 1024
DOMAIN = (
    "<domain type='kvm'><name>{name}</name><uuid>00000000-0000-4000-a000-00000000000f</uuid>"
    "<memory unit='MiB'>{mib}</memory><vcpu>{cpus}</vcpu><os><type machine='q35'>hvm</type></os></domain>"
)


def says(world: World, reason: str, *words: str, vm: str = "web") -> bool:
    """Whether this is what is said of a VM that is not Ready, in a sentence with these words."""
    ready = world.condition("vm", vm)
    return (ready.get("status"), ready.get("reason")) == ("False", reason) and all(
        word in ready["message"] for word in words
    )


def stalled(world: World, vm: str = "web") -> bool:
    """Whether only a change of the spec, or of what it names, is said to help."""
    return bool(world.condition("vm", vm, "Stalled")["status"] == "True")


def sized(world: World, *, cpus: int = 8, mib: int = 8 * GIB, **spec: Any) -> None:
    """Give every host this size and nothing set aside but what `spec` of its Hypervisor says."""
    for name, host in world.hosts.items():
        host.facts = replace(host.facts, cpus=cpus, memory_mib=mib)
        world.edit("hv", name, **{"reservedMemory": "0Mi", "overcommit": {"cpuPercent": 100}} | spec)


async def ready_hosts(world: World) -> None:
    """Let time pass until every host's size is known."""
    await world.run_until(lambda: all(world.condition("hv", name).get("status") == "True" for name in world.hosts))


def opened(world: World, member: str, name: str, namespaces: list[str]) -> None:
    """Open this pool or network of h1 to these namespaces only."""
    spec = (world.get("hv", "h1") or {})["spec"]
    entries = [each | ({"allowedNamespaces": namespaces} if each["name"] == name else {}) for each in spec[member]]
    change: dict[str, Any] = {member: entries}
    world.edit("hv", "h1", **change)


# Who may use what -----------------------------------------------------------------------------------------------------

NIC = {"interfaces": [{"name": "eth0", "network": "lan"}], "disks": []}
SOURCE = {"type": "Image", "image": {"pool": "shared", "volume": "base", "format": "raw"}}
IMAGE = {"disks": [{"name": "root", "pool": "local", "source": SOURCE}]}


@pytest.mark.parametrize(
    ("member", "name", "spec", "field"),
    [
        ("pools", "shared", {}, "spec.disks[root].pool"),
        ("pools", "shared", IMAGE, "spec.disks[root].source.image.pool"),
        ("networks", "lan", NIC, "spec.interfaces[eth0].network"),
    ],
)
@in_world(hosts=1)
async def test_what_is_not_open_to_a_namespace_is_refused_and_named_until_it_is(
    world: World, member: str, name: str, spec: dict[str, Any], field: str
) -> None:
    world.storages["shared"].put("base")
    opened(world, member, name, ["others"])
    world.vm("web", **spec)
    await world.settle(20)
    assert says(world, "NotAllowed", f"{field} is '{name}'", "Hypervisor h1", "namespace 'default'")
    assert stalled(world)
    assert world.storages["shared"].files.keys() == {"base"}
    await world.invariants.quiet(1500)
    opened(world, member, name, ["others", "default"])
    await world.running("web", 5)


# How much there is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "largest"),
    [
        ({}, 8 * GIB),
        ({"reservedMemory": "3Gi"}, 5 * GIB),
        ({"overcommit": {"memoryPercent": 150}}, 12 * GIB),
        ({"reservedMemory": "2Gi", "overcommit": {"memoryPercent": 200}}, 12 * GIB),
    ],
)
@in_world(hosts=1)
async def test_a_host_takes_what_is_not_reserved_times_the_overcommit_and_not_a_mebibyte_more(
    world: World, spec: dict[str, Any], largest: int
) -> None:
    sized(world, **spec)
    world.vm("web", memory={"size": f"{largest + 1}Mi"}, disks=[])
    await world.run_until(lambda: says(world, "TooBig", f"{largest + 1} MiB", f"takes {largest} MiB"))
    assert stalled(world)
    world.hosts["h1"].facts = replace(world.hosts["h1"].facts, memory_mib=1 << 30)  # let QEMU have it: not its matter
    await world.invariants.quiet(300)
    world.edit("vm", "web", memory={"size": f"{largest}Mi"})
    await world.running("web")


@pytest.mark.parametrize(("percent", "most"), [(100, 8), (300, 24)])
@in_world(hosts=1)
async def test_cpus_may_be_promised_more_than_once(world: World, percent: int, most: int) -> None:
    sized(world, overcommit={"cpuPercent": percent})
    await ready_hosts(world)
    for number in range(most // 4 + 1):
        world.vm(f"vm{number}", cpu={"sockets": 2, "cores": 2}, disks=[])
    await world.settle(60)
    assert len(world.ledger.alive) == most // 4
    (waits,) = [name for name in (f"vm{n}" for n in range(most // 4 + 1)) if not world.process(name)]
    assert says(world, "NoRoom", "4 CPUs are asked for", "h1 has 0 left", vm=waits)
    assert not stalled(world, waits), "room comes without a change of the spec"


@in_world(hosts=2)
async def test_many_at_once_never_get_more_than_there_is(world: World) -> None:
    sized(world, mib=4 * GIB)
    await ready_hosts(world)
    for number in range(20):
        world.vm(f"vm{number}", memory={"size": "1Gi"})
    await world.settle(60)
    assert Counter(process.host for process in world.ledger.alive) == {"h1": 4, "h2": 4}
    assert not [e for e in world.ledger.processes if e.end is not None], "none was started in vain"
    gone = next(name for name in (f"vm{n}" for n in range(20)) if world.process(name))
    world.delete("vm", gone)
    await world.gone(gone)
    await world.run_until(lambda: len(world.ledger.alive) == 8, 5, "the next one has the room at once")


@in_world(hosts=1)
async def test_a_vm_that_is_off_and_one_of_a_silent_host_keep_their_room(world: World) -> None:
    sized(world, mib=4 * GIB)
    await ready_hosts(world)
    world.vm("web", memory={"size": "3Gi"})
    await world.running("web")
    world.edit("vm", "web", runStrategy="Halted")
    await world.run_until(lambda: not world.process("web"))
    world.vm("late", memory={"size": "2Gi"})
    await world.run_until(lambda: says(world, "NoRoom", "2048 MiB are asked for", "has 1024 MiB left", vm="late"))
    world.hosts["h1"].cut()
    await world.settle(120)
    world.hosts["h1"].restore()
    await world.settle(120)
    assert not world.process("late")
    world.delete("vm", "web")
    await world.running("late")


@in_world(hosts=1)
async def test_what_strangers_run_is_counted_too(world: World) -> None:
    sized(world, cpus=4, mib=4 * GIB)
    host = world.hosts["h1"]
    uuid = host.define_by_hand(DOMAIN.format(name="somebodys", mib=3 * GIB, cpus=2))
    world.invariants.foreign.add(uuid)
    await world.settle(1)
    await host.create(uuid, paused=False)
    await world.run_until(lambda: world.status("h1", "hv").get("allocated", {}).get("memoryMiB") == 3 * GIB, 120)
    world.vm("web", memory={"size": "2Gi"})
    world.vm("wide", cpu={"sockets": 3})
    await world.run_until(lambda: says(world, "NoRoom", "2048 MiB are asked for", "has 1024 MiB left"))
    await world.run_until(lambda: says(world, "NoRoom", "3 CPUs are asked for", "has 2 left", vm="wide"))
    host.process(uuid).kill()
    await world.running("web")


@in_world(hosts=2)
async def test_the_host_with_the_most_memory_left_is_taken(world: World) -> None:
    sized(world)
    await ready_hosts(world)
    for number in range(6):
        world.vm(f"vm{number}", memory={"size": "1Gi"})
        await world.running(f"vm{number}")
    assert Counter(process.host for process in world.ledger.alive) == {"h1": 3, "h2": 3}


# Which hosts ----------------------------------------------------------------------------------------------------------


@in_world(hosts=2)
async def test_a_cordoned_host_takes_nobody_new_and_keeps_and_heals_those_it_has(world: World) -> None:
    world.vm("web", placement={"host": "h1"})
    await world.running("web")
    world.edit("hv", "h1", maintenance="Cordon")
    await world.run_until(lambda: world.condition("hv", "h1").get("reason") == "Cordoned")
    assert world.condition("hv", "h1", "Schedulable")["status"] == "False"
    world.vm("new", placement={"host": "h1"})
    for number in range(4):
        world.vm(f"vm{number}")
    await world.run_until(lambda: all(world.ready(f"vm{number}") for number in range(4)))
    assert {world.host_of(f"vm{number}").name for number in range(4)} == {"h2"}
    assert says(world, "NoHost", "Hypervisor h1: Cordoned", vm="new")
    process = world.process("web")
    assert process is not None
    process.kill()
    await world.run_until(lambda: world.process("web") not in (None, process))
    assert world.host_of("web").name == "h1"
    world.edit("hv", "h1", maintenance="Off")
    await world.running("new")
    await world.rest()


@in_world(hosts=3)
async def test_labels_say_where_a_vm_may_be_and_a_running_one_is_left_alone(world: World) -> None:
    for name, labels in (("h1", {"disk": "fast"}), ("h2", {"disk": "fast", "zone": "b"}), ("h3", {"zone": "b"})):
        world.edit("hv", name, metadata={"labels": labels})
    world.vm("web", placement={"hostSelector": {"matchLabels": {"disk": "fast", "zone": "b"}}})
    await world.running("web")
    assert world.host_of("web").name == "h2"
    process = world.process("web")
    world.edit("hv", "h2", metadata={"labels": {"zone": None}})
    await world.settle(700)
    assert world.process("web") is process
    world.edit("vm", "web", runStrategy="Halted")
    await world.run_until(lambda: not world.process("web"))
    world.edit("vm", "web", runStrategy="Always")
    await world.run_until(lambda: says(world, "NoHostMatches", "No Hypervisor has disk=fast, zone=b"))
    world.edit("vm", "web", placement={"host": "h3"})
    await world.run_until(lambda: says(world, "NoHostMatches", "No Hypervisor has disk=fast, zone=b"))
    world.edit("vm", "web", placement={"host": None})
    world.edit("hv", "h1", metadata={"labels": {"zone": "b"}})
    await world.running("web", 5)
    assert world.host_of("web").name == "h1"
    await world.rest()


@pytest.mark.parametrize("disks", [0, 1])
@pytest.mark.parametrize("grace", [0, 30])
@in_world(hosts=2)
async def test_a_restart_may_take_a_vm_elsewhere(world: World, disks: int, grace: int) -> None:
    disk = {"name": "root", "pool": "shared", "size": "1Gi"}
    world.vm("web", placement={"host": "h1"}, disks=[disk] * disks, terminationGracePeriodSeconds=grace)
    await world.running("web")
    world.edit("vm", "web", placement={"host": "h2"}, power={"request": "elsewhere"})
    await world.run_until(lambda: world.ready("web") and world.host_of("web").name == "h2")
    assert not world.hosts["h1"].records
    await world.rest(quiet=700)


@in_world(hosts=2)
async def test_an_unknown_host_is_named_beside_those_there_are_and_taken_once_it_is_there(world: World) -> None:
    spec = (world.get("hv", "h2") or {})["spec"]
    world.delete("hv", "h2")
    await world.run_until(lambda: world.get("hv", "h2") is None)
    world.vm("web", placement={"host": "h2"})
    await world.run_until(lambda: says(world, "UnknownHost", "spec.placement.host is 'h2'", "Hypervisors are: h1"))
    assert stalled(world)
    await world.invariants.quiet(1500)
    world.apply("hv", "h2", spec)
    await world.running("web")


# Hosts that will not do -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lacking", "reason", "words"),
    [
        ({"kvm": False}, "NoKVM", ()),
        ({"qemu_version": ""}, "NoQEMU", ("no emulator",)),
        ({"libvirt_version": "8.10.0"}, "LibvirtTooOld", ("9.0", "8.10.0")),
        ({"qemu_version": "6.2.0"}, "QEMUTooOld", ("7.2", "6.2.0")),
    ],
)
@in_world(hosts=2)
async def test_a_host_that_will_not_do_says_what_it_lacks_and_takes_vms_once_it_has_it(
    world: World, lacking: dict[str, Any], reason: str, words: tuple[str, ...]
) -> None:
    host, whole = world.hosts["h1"], world.hosts["h1"].facts
    host.facts = replace(whole, **lacking)
    host.restart_daemon()
    world.vm("web", placement={"host": "h1"})
    world.vm("other")
    await world.running("other")
    assert world.host_of("other").name == "h2"
    said = world.condition("hv", "h1")
    assert (said["status"], said["reason"]) == ("False", reason)
    assert all(word in said["message"] for word in words), said["message"]
    await world.run_until(lambda: says(world, "NoHost", f"Hypervisor h1: {reason}"))
    host.facts = whole
    host.restart_daemon()
    await world.running("web", 120)
