# SPDX-License-Identifier: Apache-2.0
"""Which host a VM that is nowhere goes to."""

from __future__ import annotations

from collections.abc import Iterable

from homeostat.api.meta import parse_quantity
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide.view import HostView, Say, VMView
from homeostat.decide.wanted import find_pool, memory_mib, storage_of, unsuited, vcpus

# What is said when no host fits: the obstacle nearest to being overcome.
_NEAREST = (
    "HostsConnecting",
    "NoRoom",
    "NoHost",
    "DiskElsewhere",
    "TooBig",
    "UnknownCPUModel",
    "NotAllowed",
    "UnknownNetwork",
    "UnknownPool",
    "NoHostMatches",
)


def place(vm: VirtualMachine, view: VMView) -> HostView | Say:
    """The host with the most free memory among those that fit, or why none does."""
    wanted = vm.spec.placement.host if vm.spec.placement else None
    if wanted and wanted not in view.hosts:
        return Say("UnknownHost", f"spec.placement.host is {wanted!r}; Hypervisors are: {_some(view.hosts)}")
    if not view.hosts:
        return Say("NoHost", "there is no Hypervisor yet")
    among = {wanted: view.hosts[wanted]} if wanted else view.hosts
    verdicts = {name: obstacle(vm, host) for name, host in sorted(among.items())}
    fitting = [view.hosts[name] for name, verdict in verdicts.items() if verdict is None]
    if fitting:
        return max(fitting, key=lambda host: (host.free_memory_mib, host.name))
    return _summary([verdict for verdict in verdicts.values() if verdict])


def obstacle(vm: VirtualMachine, host: HostView) -> Say | None:
    """Why the VM cannot be placed on this host; None when it can."""
    return (
        unwanted(vm, host)
        or unsuited(vm, host)
        or _elsewhere(vm, host)
        or _too_big(vm, host)
        or _no_cpu(vm, host)
        or _closed(host)
        or _full(vm, host)
    )


def unwanted(vm: VirtualMachine, host: HostView) -> Say | None:
    """Why spec.placement rules the host out; None when it does not."""
    placement = vm.spec.placement
    if placement is None:
        return None
    if placement.host and placement.host != host.name:
        return Say("NoHostMatches", f"spec.placement.host is {placement.host!r}")
    labels = placement.host_selector.match_labels if placement.host_selector else {}
    if all(host.labels.get(key) == value for key, value in labels.items()):
        return None
    return Say("NoHostMatches", "no Hypervisor has " + ", ".join(f"{key}={value}" for key, value in labels.items()))


def _elsewhere(vm: VirtualMachine, host: HostView) -> Say | None:
    """A disk that exists ties the VM to its storage."""
    disks = {disk.name: disk for disk in vm.spec.disks}
    for seen in vm.status.disks:
        pool = find_pool(host.spec, disks[seen.name].pool) if seen.name in disks else None
        if pool and seen.storage and storage_of(pool, host.host_uuid) != seen.storage:
            return Say(
                "DiskElsewhere",
                f"disk {seen.name!r} is on storage {seen.storage}, which Hypervisor {host.name} does not have",
            )
    return None


def _too_big(vm: VirtualMachine, host: HostView) -> Say | None:
    if host.facts is None:
        return None
    cpus, memory = capacity(host)
    if memory_mib(vm) > memory:
        return Say("TooBig", f"spec.memory.size is {memory_mib(vm)} MiB and the largest host takes {memory} MiB")
    if vcpus(vm) > cpus:
        return Say("TooBig", f"spec.cpu is {vcpus(vm)} CPUs and the largest host takes {cpus}")
    return None


def capacity(host: HostView) -> tuple[int, int]:
    """(CPUs, MiB of memory) that VMs may have on this host in all, overcommit and the reserve counted."""
    if host.facts is None:
        return 0, 0
    reserved = parse_quantity(host.spec.reserved_memory) // (1024 * 1024)
    memory = (host.facts.memory_mib - reserved) * host.spec.overcommit.memory_percent // 100
    return host.facts.cpus * host.spec.overcommit.cpu_percent // 100, max(memory, 0)


def _no_cpu(vm: VirtualMachine, host: HostView) -> Say | None:
    model, facts = vm.spec.cpu.model, host.facts
    if not model or facts is None:
        return None
    usable = facts.emulated_cpu_models if host.spec.acceleration == "Emulation" else facts.cpu_models
    if not usable or model in usable:
        return None
    return Say("UnknownCPUModel", f"spec.cpu.model is {model!r}, which Hypervisor {host.name} cannot run")


def _closed(host: HostView) -> Say | None:
    if host.closed is None:
        return None
    reason, sentence = host.closed
    return Say(
        "HostsConnecting" if reason == "Connecting" else "NoHost", f"Hypervisor {host.name}: {reason}: {sentence}"
    )


def _full(vm: VirtualMachine, host: HostView) -> Say | None:
    if memory_mib(vm) > host.free_memory_mib:
        return Say(
            "NoRoom",
            f"{memory_mib(vm)} MiB are asked for, Hypervisor {host.name} has {max(host.free_memory_mib, 0)} MiB left",
        )
    if vcpus(vm) > host.free_cpus:
        return Say(
            "NoRoom", f"{vcpus(vm)} CPUs are asked for and Hypervisor {host.name} has {max(host.free_cpus, 0)} left"
        )
    return None


def _summary(verdicts: list[Say]) -> Say:
    return min(verdicts, key=lambda say: _NEAREST.index(say.reason))


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "") or "none"
