# SPDX-License-Identifier: Apache-2.0
"""What is read from a libvirt connection. These functions block; they run in the threads of a session."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import libvirt

from homeostat.api.observed import Checkpoint, HostFacts, Pool, Volume
from homeostat.hosts import networks
from homeostat.hosts.capabilities import host_facts
from homeostat.hosts.driver import NO_STORAGE_POOL, NO_STORAGE_VOL, DomainRow
from homeostat.hosts.sessions import Virt, host_error
from homeostat.hosts.words import words

T = TypeVar("T")

_EVENTS = (
    "LIFECYCLE", "REBOOT", "METADATA_CHANGE", "AGENT_LIFECYCLE", "DEVICE_ADDED", "DEVICE_REMOVED", "IO_ERROR",
    "BLOCK_JOB_2",
)  # fmt: skip
_POOL_STATES = {0: "Inactive", 2: "Active", 3: "Active"}  # building and inaccessible: Unknown


def register_events(virt: Virt, enqueue: Callable[[str, str], None]) -> list[int]:
    """Have `enqueue` called in libvirt's event thread with UUID and kind; the callbacks' numbers."""

    def callback(kind: str) -> Callable[..., None]:
        return lambda _virt, domain, *_details: enqueue(domain.UUIDString(), kind)

    numbers = []
    for kind in _EVENTS:
        with contextlib.suppress(libvirt.libvirtError):  # an event this host does not know is one less wake-up
            number = getattr(libvirt, f"VIR_DOMAIN_EVENT_ID_{kind}")
            numbers.append(virt.domainEventRegisterAny(None, number, callback(kind), None))
    return numbers


def domains(virt: Virt) -> list[DomainRow]:
    """All domains in six calls."""
    stats = virt.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0)
    persistent, saved, autostart, snapshots, checkpoints = (
        {domain.UUIDString() for domain in virt.listAllDomains(flag)}
        for flag in (
            libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT,
            libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE,
            libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART,
            libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT,
            libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_CHECKPOINT,
        )
    )
    return [
        DomainRow(uuid, one.name(), *words(state["state.state"], state["state.reason"]),
                  uuid in persistent, uuid in saved, uuid in autostart, uuid in snapshots, uuid in checkpoints)
        for one, state in stats
        for uuid in [one.UUIDString()]
    ]  # fmt: skip


def domain(one: Virt) -> DomainRow:
    """One domain."""
    state, reason = words(*one.state())
    persistent = bool(one.isPersistent())
    saved = persistent and bool(one.hasManagedSaveImage())
    autostart = persistent and bool(one.autostart())
    snapshots, checkpoints = one.snapshotNum(0) > 0, bool(one.listAllCheckpoints(0))
    return DomainRow(one.UUIDString(), one.name(), state, reason, persistent, saved, autostart, snapshots, checkpoints)


def checkpoints(one: Virt) -> tuple[Checkpoint, ...]:
    """Those of a domain, parents first, in a call for each and one for all."""
    found = one.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN  # which is large, and not needed to define one again
    return tuple(Checkpoint(each.getName(), each.getXMLDesc(flags)) for each in found)


def addresses(one: Virt) -> list[tuple[str, str, str]]:
    """(interface, MAC, IP address) as the guest agent reports them."""
    found = one.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT)
    return [
        (name, interface.get("hwaddr") or "", address["addr"])
        for name, interface in found.items()
        for address in interface.get("addrs") or []
    ]


def host(virt: Virt) -> HostFacts:
    """Identity, versions and capacity; no pools."""
    _model, memory_mib, cpus, *_topology = virt.getInfo()
    found = interfaces(virt)
    bridges = networks.bridges(found or ())
    active = {one.name(): _network(virt, one) for one in virt.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE)}
    facts = host_facts(virt.getCapabilities(), {kind: _domain_capabilities(virt, kind) for kind in ("kvm", "qemu")})
    return replace(
        facts,
        hostname=virt.getHostname(),
        libvirt_version=_version(virt.getLibVersion()),
        qemu_version=_version(_optional(lambda v: int(v.getVersion()), virt) or 0),
        cpus=cpus,
        memory_mib=memory_mib,
        networks=tuple(sorted(active)),
        bridges=tuple(sorted(bridges)),
        bridges_known=found is not None,
        mtus=networks.mtus(bridges, [one for one in active.values() if one is not None]),
    )


def interfaces(virt: Virt) -> list[ET.Element] | None:
    """The host's interfaces; None where libvirt cannot tell them.

    Asked once more if that fails: libvirt describes no bridge of which a port, such as a guest's, goes meanwhile.
    """
    found = _optional(_interfaces, virt)
    return _optional(_interfaces, virt) if found is None else found


def pools(virt: Virt) -> tuple[Pool, ...]:
    """All pools, in two calls for each."""
    return tuple(sorted((_pool(one) for one in virt.listAllStoragePools(0)), key=lambda one: one.name))


def pool(virt: Virt, name: str) -> Pool:
    """One pool; state Missing when there is none of that name."""
    try:
        return _pool(virt.storagePoolLookupByName(name))
    except libvirt.libvirtError as error:
        if host_error(error).code == NO_STORAGE_POOL:
            return Pool(name, "Missing")
        raise


def volumes(one: Virt, examined: frozenset[str]) -> list[Volume]:
    """Volumes of a pool, in two calls, and one for each that is examined.

    Not for all: to examine one that is just being made has libvirt (9.0) take the owner that its file has at that
    moment for the owner it is to get, so that it is left to root and QEMU cannot open it (measured).
    """
    listed = one.listAllVolumes(0)
    return [Volume(each.name(), _path(each)) for each in listed if each.name() not in examined or _exists(each)]


def _exists(one: Virt) -> bool:
    try:
        one.info()
    except libvirt.libvirtError as error:
        return host_error(error).code != NO_STORAGE_VOL
    return True


def _path(one: Virt) -> str:
    return str(one.key() if one.key().startswith("/") else one.path())  # a file's key is its path


def _pool(one: Virt) -> Pool:
    state, capacity, *_ = one.info()
    path = ET.fromstring(one.XMLDesc(0)).findtext("target/path") or ""
    return Pool(one.name(), _POOL_STATES.get(state, "Unknown"), path, capacity)


def _interfaces(virt: Virt) -> list[ET.Element]:
    # With inactive ones: a bridge that has no port yet counts as one, and can be used.
    return [ET.fromstring(one.XMLDesc(0)) for one in virt.listAllInterfaces(0)]


def _network(virt: Virt, one: Virt) -> ET.Element | None:
    return _optional(lambda _virt: ET.fromstring(one.XMLDesc(0)), virt)


def _domain_capabilities(virt: Virt, kind: str) -> str | None:
    return _optional(lambda v: str(v.getDomainCapabilities(None, None, "q35", kind, 0)), virt)


def _optional(read: Callable[[Virt], T], virt: Virt) -> T | None:
    """None where the host has no such driver, or nothing of that kind."""
    try:
        return read(virt)
    except libvirt.libvirtError:
        if not virt.isAlive():
            raise
        return None


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}" if number else ""
