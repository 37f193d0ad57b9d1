# SPDX-License-Identifier: Apache-2.0
"""What a VM's spec means on one host: its domain's configuration, its volumes, and the differences to what is there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields

from homeostat.api.hypervisor import HostNetwork, HostPool, HypervisorSpec
from homeostat.api.meta import parse_quantity
from homeostat.api.observed import DiskConfig, Domain, DomainConfig, NicConfig
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.api.virtualmachine_spec import Disk, Interface
from homeostat.decide.view import HostView, Say

MIB = 1024 * 1024
CONSOLE_FOLDER = "/var/log/libvirt/qemu"


@dataclass(frozen=True, slots=True)
class WantedVolume:
    """A volume that has to be in a pool of the host.

    kind is Blank, Image, Volume (a disk's source) or File (kernel, initrd, image).
    """

    kind: str
    pool: str
    name: str
    format: str = "raw"
    capacity: int | None = None
    backing: tuple[str, str] | None = None
    disk: str = ""


def domain_uuid(vm: VirtualMachine) -> str:
    """The UUID of the VM's domain: spec.domainUUID, else the object's UID."""
    return (vm.spec.domain_uuid or vm.metadata.uid).lower()


def domain_name(vm: VirtualMachine) -> str:
    """`<namespace>_<name>`: neither part can hold an underscore. At most 127 characters."""
    return f"{vm.metadata.namespace}_{vm.metadata.name}"


def volume_prefix(vm: VirtualMachine, disk: Disk) -> str:
    """What the names of all volumes made for this disk of a VM of this name begin with, whatever its UID."""
    return f"{vm.metadata.namespace}_{vm.metadata.name}_{disk.name}_"


def volume_name(vm: VirtualMachine, disk: Disk) -> str:
    """The disk's volume: as its source says, else made of what meets itself when it is created again."""
    if disk.source.volume is not None:
        return disk.source.volume.name
    return f"{volume_prefix(vm, disk)}{domain_uuid(vm)}.qcow2"


def disk_format(disk: Disk) -> str:
    """The disk's image format; it comes from the spec, never from probing."""
    return disk.source.volume.format if disk.source.volume is not None else "qcow2"


def memory_mib(vm: VirtualMachine) -> int:
    """The guest's memory in MiB, rounded up."""
    return -(-parse_quantity(vm.spec.memory.size) // MIB)


def vcpus(vm: VirtualMachine) -> int:
    """The number of virtual CPUs."""
    return vm.spec.cpu.sockets * vm.spec.cpu.cores * vm.spec.cpu.threads


def mac_address(vm: VirtualMachine, nic: Interface) -> str:
    """The interface's MAC: the spec's.

    Else one made from the VM's UUID and the interface's name (QEMU's prefix 52:54:00).
    """
    if nic.mac:
        return nic.mac.lower()
    digest = hashlib.sha256(f"{domain_uuid(vm)}/{nic.name}".encode()).hexdigest()
    return "52:54:00:" + ":".join(digest[i : i + 2] for i in (0, 2, 4))


def find_pool(hypervisor: HypervisorSpec, name: str) -> HostPool | None:
    """The host's pool of this logical name."""
    return next((pool for pool in hypervisor.pools if pool.name == name), None)


def find_network(hypervisor: HypervisorSpec, name: str) -> HostNetwork | None:
    """The host's network of this logical name."""
    return next((network for network in hypervisor.networks if network.name == name), None)


def allowed(entry: HostPool | HostNetwork, namespace: str) -> bool:
    """Whether a namespace may use a pool or network: nobody may unless it is listed, `*` lists all."""
    return "*" in entry.allowed_namespaces or namespace in entry.allowed_namespaces


def retained_matters(disk: Disk) -> bool:
    """Whether a volume left by an earlier VM of this name keeps a new one from being made."""
    return disk.source.blank is None or disk.source.blank.when_retained == "Wait"


def pool_names(vm: VirtualMachine) -> Iterator[tuple[str, str]]:
    """(field, logical pool) for each pool the spec names."""
    for disk in vm.spec.disks:
        yield f"spec.disks[{disk.name}].pool", disk.pool
        if disk.source.image is not None:
            yield f"spec.disks[{disk.name}].source.image.pool", disk.source.image.pool
    if vm.spec.boot.kernel is not None:
        yield "spec.boot.kernel.pool", vm.spec.boot.kernel.pool


def storage_of(pool: HostPool, host_uuid: str) -> str:
    """What tells whether two hosts' pools are one storage: the declared id, else the host."""
    return pool.storage_id or f"host:{host_uuid}"


def _path(host: HostView, logical: str, volume: str) -> str:
    pool, facts = find_pool(host.spec, logical), host.facts
    found = next((p for p in facts.pools if p.name == pool.pool), None) if pool and facts else None
    return f"{found.path.rstrip('/')}/{volume}" if found else ""


def unlocated(vm: VirtualMachine, host: HostView) -> str | None:
    """The first pool that the spec names and whose folder the host has not told: no definition can be made there."""
    return next((name for _, name in pool_names(vm) if not _path(host, name, "")), None)


def volumes(vm: VirtualMachine, host: HostView) -> list[WantedVolume]:
    """Every volume that has to be there before the VM can start on this host; files that are only read come first."""
    files, disks = [], []
    if (kernel := vm.spec.boot.kernel) is not None:
        names = [kernel.kernel] + ([kernel.initrd] if kernel.initrd else [])
        files += [WantedVolume("File", _libvirt_pool(host, kernel.pool), name) for name in names]
    for disk in vm.spec.disks:
        backing = None
        if (image := disk.source.image) is not None:
            files.append(WantedVolume("File", _libvirt_pool(host, image.pool), image.volume, disk=disk.name))
            backing = (_path(host, image.pool, image.volume), image.format)
        capacity = parse_quantity(disk.size) if disk.size else None
        pool = _libvirt_pool(host, disk.pool)
        disks.append(
            WantedVolume(disk.source.type, pool, volume_name(vm, disk), disk_format(disk), capacity, backing, disk.name)
        )
    return files + disks


def _libvirt_pool(host: HostView, logical: str) -> str:
    pool = find_pool(host.spec, logical)
    return pool.pool if pool else ""


def default_cpu_model(host: HostView) -> str:
    """The model for a VM that names none, under the acceleration this Hypervisor gives its guests."""
    if host.facts is None:
        return ""
    emulated = host.spec.acceleration == "Emulation"
    return (host.facts.emulated_cpu_model if emulated else "") or host.facts.default_cpu_model


def config(vm: VirtualMachine, host: HostView, domain: Domain | None) -> DomainConfig:
    """The configuration that the VM's spec means on this host. The host has to have been found suitable first.

    The machine type and the CPU model stay what they were at the first definition: both are part of what the guest
    sees.
    """
    seen = (domain.inactive or domain.live) if domain else None
    kernel = vm.spec.boot.kernel
    return DomainConfig(
        memory_mib=memory_mib(vm),
        sockets=vm.spec.cpu.sockets,
        cores=vm.spec.cpu.cores,
        threads=vm.spec.cpu.threads,
        cpu_model=vm.spec.cpu.model
        or vm.status.cpu_model
        or (seen.cpu_model if seen else "")
        or default_cpu_model(host),
        machine=vm.status.machine_type or (seen.machine if seen else "") or vm.spec.machine.type,
        acceleration=host.spec.acceleration,
        kernel=_path(host, kernel.pool, kernel.kernel) if kernel else "",
        initrd=_path(host, kernel.pool, kernel.initrd) if kernel and kernel.initrd else "",
        command_line=(kernel.command_line or "") if kernel else "",
        disks=tuple(_disk(vm, host, disk) for disk in vm.spec.disks),
        nics=tuple(_nic(vm, host, nic) for nic in vm.spec.interfaces),
        console_log=f"{CONSOLE_FOLDER}/{domain_name(vm)}-console.log" if vm.spec.console.log == "Enabled" else "",
        agent=vm.spec.guest_agent == "Enabled",
    )


def _disk(vm: VirtualMachine, host: HostView, disk: Disk) -> DiskConfig:
    image = disk.source.image
    return DiskConfig(
        alias=f"ua-disk-{disk.name}",
        path=_path(host, disk.pool, volume_name(vm, disk)),
        format=disk_format(disk),
        bus=disk.bus,
        serial=disk.serial or disk.name[:20],
        owned=disk.source.type != "Volume",
        backing=((_path(host, image.pool, image.volume), image.format),) if image else (),
    )


def _nic(vm: VirtualMachine, host: HostView, nic: Interface) -> NicConfig:
    network = find_network(host.spec, nic.network)
    return NicConfig(
        alias=f"ua-nic-{nic.name}",
        kind=network.type if network else "",
        source=_network_source(network) if network else "",
        mac=mac_address(vm, nic),
        model=nic.model,
        vlan=network.vlan.tag if network and network.vlan else None,
    )


def _network_source(network: HostNetwork) -> str:
    if network.open_v_switch is not None:
        return network.open_v_switch.bridge
    member = network.bridge or network.network
    return member.name if member else ""


def differences(there: DomainConfig, want: DomainConfig) -> list[str]:
    """What differs, a line each: "memory: 512 MiB running, 1024 MiB wanted". Empty when nothing does."""
    lines = []
    for item in fields(DomainConfig):
        old, new = getattr(there, item.name), getattr(want, item.name)
        if item.name == "disks":
            lines += _list_differences("disk", _disk_facts(old), _disk_facts(new))
            lines += _order_differences([disk.alias for disk in old], [disk.alias for disk in new])
        elif item.name == "nics":
            lines += _list_differences("interface", {n.alias: n for n in old}, {n.alias: n for n in new})
        elif old != new:
            lines.append(
                f"{_WORDS.get(item.name, item.name)}: {_shown(item.name, old)} running, {_shown(item.name, new)} wanted"
            )
    return lines


_WORDS = {
    "memory_mib": "memory",
    "cpu_model": "cpu model",
    "command_line": "kernel command line",
    "console_log": "console log",
    "agent": "guest agent",
}


def _shown(name: str, value: object) -> str:
    if name == "memory_mib":
        return f"{value} MiB"
    if isinstance(value, bool):
        return "Enabled" if value else "Disabled"
    return str(value) if value != "" else "none"


def _disk_facts(disks: tuple[DiskConfig, ...]) -> dict[str, object]:
    # The backing chain is the storage's matter: merges and snapshots change it under the same disk.
    return {disk.alias: (disk.path, disk.format, disk.bus, disk.serial) for disk in disks}


def _order_differences(old: list[str], new: list[str]) -> list[str]:
    """The order of booting, of the disks that are there and wanted."""
    there, wanted = ([_plain(each) for each in one if each in other] for one, other in ((old, new), (new, old)))
    return [f"boot order: {' then '.join(there)} running, {' then '.join(wanted)} wanted"] if there != wanted else []


def _plain(alias: str) -> str:
    return alias.removeprefix("ua-disk-").removeprefix("ua-nic-")


def _list_differences(kind: str, old: dict[str, object], new: dict[str, object]) -> list[str]:
    gone = [f"{kind} {_plain(alias)}: running, not wanted" for alias in old if alias not in new]
    added = [f"{kind} {_plain(alias)}: not there, wanted" for alias in new if alias not in old]
    changed = [
        f"{kind} {_plain(alias)}: {old[alias]} running, {new[alias]} wanted"
        for alias in old
        if alias in new and old[alias] != new[alias]
    ]
    return gone + added + changed


def unsuited(vm: VirtualMachine, host: HostView) -> Say | None:
    """Why the spec means nothing here: a pool or network that is not there or not open to the namespace."""
    namespace = vm.metadata.namespace
    for missing, where, name, entry in _entries(vm, host):
        if entry is None:
            return Say(missing, f"{where} is {name!r}, which Hypervisor {host.name} does not offer")
        if not allowed(entry, namespace):
            detail = f"{where} is {name!r}, which Hypervisor {host.name} does not open to namespace {namespace!r}"
            return Say("NotAllowed", detail)
    return None


def _entries(vm: VirtualMachine, host: HostView) -> Iterator[tuple[str, str, str, HostPool | HostNetwork | None]]:
    """(reason when it is missing, field, name, what the host has of that name) of each pool and network."""
    for where, name in pool_names(vm):
        yield "UnknownPool", where, name, find_pool(host.spec, name)
    for nic in vm.spec.interfaces:
        where = f"spec.interfaces[{nic.name}].network"
        yield "UnknownNetwork", where, nic.network, find_network(host.spec, nic.network)
