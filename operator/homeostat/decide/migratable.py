# SPDX-License-Identifier: Apache-2.0
"""Whether a VM can be moved live: the condition Migratable, before anyone tries, and the check when somebody does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from homeostat.api.hypervisor import HostPool
from homeostat.api.meta import RECONCILE_ANNOTATION
from homeostat.api.observed import RUNNING_STATES, Domain, DomainConfig, HostFacts, Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import wanted
from homeostat.decide.migration_checkpoints import too_much
from homeostat.decide.placement import unwanted
from homeostat.decide.view import HostView, Say

SAFE_CACHES = frozenset({"none", "directsync"})


@dataclass(frozen=True, slots=True)
class Move:
    """A VM, its domain on the source, and a host that it may go to. `copied` are the names of disks that are copied."""

    vm: VirtualMachine
    domain: Domain
    source: HostView
    target: HostView
    copied: frozenset[str] = frozenset()


def condition(
    vm: VirtualMachine, domain: Domain | None, source: HostView | None, hosts: Mapping[str, HostView]
) -> tuple[str, Say]:
    """(True, False or Unknown, why) of the condition Migratable; no disk is taken to be copied."""
    if domain is None and (silent := _silent(vm, hosts)):
        return "Unknown", Say("HostsUnknown", f"{silent}, where the VM may be, does not answer")
    if domain is None or source is None or domain.state not in RUNNING_STATES:
        return "False", Say("NotRunning")
    own = off_limits(vm) or next(of_the_vm(domain), None)
    if own is not None:
        return "False", own
    others = [host for name, host in sorted(hosts.items()) if _another(host, source)]
    if not others:
        return "False", Say("NoOtherHost")
    asked = [host for host in others if host.facts is not None and not isinstance(host.answer, Unknown)]
    if not asked:
        return "Unknown", Say("HostsUnknown", f"{others[0].name} does not answer")
    nearest: Say | None = None
    for host in asked:
        blocker = next(blockers(Move(vm, domain, source, host)), None)
        if blocker is None:
            return "True", Say("Migratable")  # no host by name: what others do would rewrite every VM's status
        nearest = nearest or blocker
    return "False", nearest or Say("NoOtherHost")


def off_limits(vm: VirtualMachine) -> Say | None:
    """That the VM's owner has the operator keep its hands off; None when not."""
    disabled = vm.metadata.annotations.get(RECONCILE_ANNOTATION) == "disabled"
    return Say("ReconcileDisabled", f"annotation {RECONCILE_ANNOTATION} is disabled") if disabled else None


def _silent(vm: VirtualMachine, hosts: Mapping[str, HostView]) -> str:
    """The first of the VM's recorded hosts that cannot be asked; "" when there is none."""
    names = (each.hypervisor for each in vm.status.candidates)
    return next((name for name in names if name in hosts and isinstance(hosts[name].answer, Unknown)), "")


def _another(host: HostView, source: HostView) -> bool:
    return host.name != source.name and host.host_uuid != source.host_uuid


def blockers(move: Move) -> Iterator[Say]:
    """Every reason against moving this VM to this host, the nearest to being overcome last."""
    yield from of_the_vm(move.domain)
    if (say := unwanted(move.vm, move.target)) is not None:
        yield Say("PlacementForbids", say.detail)
    yield from _offers(move)
    yield from _machine(move)
    yield from _storage(move)
    yield from _mtu(move)


def of_the_vm(domain: Domain) -> Iterator[Say]:
    """Reasons that no choice of a host overcomes."""
    traits = domain.traits
    if not domain.persistent:
        yield Say("Transient")
    for device in traits.host_devices:
        yield Say("HostDevice", f"device {device}")
    if traits.tpm:
        yield Say("TPM")
    if traits.nvram:
        yield Say("NVRAM", traits.nvram)
    for alias, mode in traits.caches:
        if mode not in SAFE_CACHES:
            yield Say("DiskCache", f"disk {_plain(alias)} has cache {mode}")
    for alias in _detaching(domain):
        yield Say("PendingDetach", f"device {_plain(alias)}")
    if domain.managed_save:
        yield Say("ManagedSave")
    if domain.snapshots:
        yield Say("Snapshots")
    if why := too_much(domain.checkpoints):
        yield Say("Checkpoints", why)
    for alias in traits.block_jobs:
        yield Say("BlockJob", f"disk {_plain(alias)}")


def _detaching(domain: Domain) -> list[str]:
    """Disks and interfaces of the process that its definition no longer has: the guest was asked to let go of them."""
    if domain.live is None or domain.inactive is None:
        return []
    lasting = _aliases(domain.inactive)
    return [alias for alias in _aliases(domain.live) if alias not in lasting]


def _aliases(config: DomainConfig) -> list[str]:
    return [disk.alias for disk in config.disks] + [nic.alias for nic in config.nics]


def _plain(alias: str) -> str:
    return alias.removeprefix("ua-disk-").removeprefix("ua-nic-")


def _offers(move: Move) -> Iterator[Say]:
    """Pools and networks that the target has to offer to the VM's namespace."""
    vm, target = move.vm, move.target
    for where, name in wanted.pool_names(vm):
        pool = wanted.find_pool(target.spec, name)
        if pool is None or not wanted.allowed(pool, vm.metadata.namespace):
            yield Say("NoPool", f"{where} is {name!r}, Hypervisor {target.name}")
    for nic in vm.spec.interfaces:
        network = wanted.find_network(target.spec, nic.network)
        if network is None or not wanted.allowed(network, vm.metadata.namespace):
            yield Say("NoNetwork", f"spec.interfaces[{nic.name}].network is {nic.network!r}, Hypervisor {target.name}")


def _machine(move: Move) -> Iterator[Say]:
    live, here, there, name = move.domain.live, move.source.facts, move.target.facts, move.target.name
    if live is None or there is None:
        return
    if live.acceleration != move.target.spec.acceleration:
        yield Say(
            "Acceleration", f"the guest has {live.acceleration}, Hypervisor {name} {move.target.spec.acceleration}"
        )
    if live.cpu_model == "host-passthrough" or not _has_model(live.cpu_model, live.acceleration, there):
        yield Say("CPUModel", f"it is {live.cpu_model.split(' ')[0]}, Hypervisor {name}")
    if _machine_version(live.machine) > _version(there.qemu_version)[:2]:
        yield Say("MachineType", f"it is {live.machine}, Hypervisor {name} has QEMU {there.qemu_version}")
    if here is not None and there.disk_owner != here.disk_owner and there.disk_owner[0] != 0 and move.vm.spec.disks:
        users = f"user {here.disk_owner[0]} here, {there.disk_owner[0]} on Hypervisor {name}"
        yield Say("DiskOwner", users)  # root opens what is anybody's
    if here is not None and _version(there.qemu_version)[:2] < _version(here.qemu_version)[:2]:
        yield Say("OlderQEMU", f"{here.qemu_version} here, {there.qemu_version} on Hypervisor {name}")


def _has_model(model: str, acceleration: str, facts: HostFacts) -> bool:
    usable = facts.emulated_cpu_models if acceleration == "Emulation" else facts.cpu_models
    return not usable or model.split(" ")[0] in ("", "host-model", *usable)


def _machine_version(machine: str) -> tuple[int, ...]:
    found = re.fullmatch(r".*-(\d+)\.(\d+)", machine)
    return (int(found[1]), int(found[2])) if found else ()


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _storage(move: Move) -> Iterator[Say]:
    vm, name = move.vm, move.target.name
    if (kernel := vm.spec.boot.kernel) is not None and not shared(move, kernel.pool):
        yield Say("KernelNotShared", f"pool {kernel.pool!r}, Hypervisor {name}")
    for disk in vm.spec.disks:
        image = disk.source.image
        if disk.name not in move.copied and not shared(move, disk.pool):
            yield Say("LocalDisk", f"disk {disk.name!r} is in pool {disk.pool!r}, Hypervisor {name}")
        elif image is not None and not shared(move, image.pool):
            yield Say("ImageNotShared", f"disk {disk.name!r}, pool {image.pool!r}, Hypervisor {name}")
    for alias, path in _beyond_the_spec(move):
        yield Say("LocalDisk", f"disk {alias} at {path} is not in the spec")
    for path in move.domain.traits.cdroms:
        if not any(path.startswith(f"{folder}/") for folder in _shared_folders(move)):
            yield Say("SeedISO", f"{path}, Hypervisor {name}")
    for logical in to_be_proved(move):
        if shared(move, logical) and proved(move, logical) is False:
            yield Say("StorageNotProved", f"pool {logical!r}, Hypervisor {name}")


def _beyond_the_spec(move: Move) -> Iterator[tuple[str, str]]:
    known = {f"ua-disk-{disk.name}" for disk in move.vm.spec.disks}
    live = move.domain.live
    return ((disk.alias, disk.path) for disk in (live.disks if live else ()) if disk.alias not in known)


def _shared_folders(move: Move) -> Iterator[str]:
    facts = move.source.facts
    for pool in move.source.spec.pools:
        found = next((each for each in facts.pools if each.name == pool.pool), None) if facts else None
        if found is not None and found.path and shared(move, pool.name):
            yield found.path.rstrip("/")


def to_be_proved(move: Move) -> list[str]:
    """The pools that have to be one storage on both hosts: of disks that are not copied, of images, of the kernel."""
    vm = move.vm
    names = {disk.pool for disk in vm.spec.disks if disk.name not in move.copied}
    names |= {disk.source.image.pool for disk in vm.spec.disks if disk.source.image is not None}
    return sorted(names | ({vm.spec.boot.kernel.pool} if vm.spec.boot.kernel else set()))


def pools_of(move: Move, logical: str) -> tuple[HostPool | None, HostPool | None]:
    """The pool of this logical name on the source and on the target."""
    return wanted.find_pool(move.source.spec, logical), wanted.find_pool(move.target.spec, logical)


def shared(move: Move, logical: str) -> bool:
    """Whether both hosts declare the pool to be the same storage, and it has the same path on both."""
    here, there = pools_of(move, logical)
    if here is None or there is None or here.storage_id is None or here.storage_id != there.storage_id:
        return False
    paths = {_path(host, pool) for host, pool in ((move.source, here), (move.target, there))} - {""}
    return len(paths) <= 1


def _path(host: HostView, pool: HostPool) -> str:
    found = next((each for each in host.facts.pools if each.name == pool.pool), None) if host.facts else None
    return found.path.rstrip("/") if found else ""


def marker(host_uuid: str) -> str:
    """The name of the volume by which one host's pool is known again in another's: nobody else makes it."""
    return f"homeostat-marker-{host_uuid}"


def proved(move: Move, logical: str) -> bool | None:
    """Whether the target sees the source's marker in this pool; None when the pools were not looked at.

    Also when the source has not made its marker yet.
    """
    here, there = pools_of(move, logical)
    if here is None or there is None:
        return None
    ours, theirs = move.source.volumes.get(here.pool), move.target.volumes.get(there.pool)
    if ours is None or theirs is None or isinstance(ours, Unknown) or isinstance(theirs, Unknown):
        return None
    mark = marker(move.source.host_uuid)
    return mark in theirs if mark in ours else None


def locked(move: Move) -> bool:
    """Whether every disk is in a pool whose locks hold between hosts, as both hosts declare."""
    pools = [pool for disk in move.vm.spec.disks for pool in pools_of(move, disk.pool)]
    return bool(pools) and not move.copied and all(pool is not None and pool.locks == "Effective" for pool in pools)


def _mtu(move: Move) -> Iterator[Say]:
    for nic in move.vm.spec.interfaces:
        here, there = _mtu_of(move.source, nic.network), _mtu_of(move.target, nic.network)
        if here is not None and there is not None and here != there:
            yield Say("DifferentMTU", f"network {nic.network!r}: {here} here, {there} on Hypervisor {move.target.name}")


def _mtu_of(host: HostView, network: str) -> int | None:
    found = wanted.find_network(host.spec, network)
    member = (found.bridge or found.network) if found else None
    if found is None or member is None or host.facts is None:
        return None
    return next((mtu for kind, name, mtu in host.facts.mtus if (kind, name) == (found.type, member.name)), None)
