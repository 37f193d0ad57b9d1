# SPDX-License-Identifier: Apache-2.0
"""From what hosts say to what a decision reads: from their caches, or asked now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import NamedTuple, TypeVar

from homeostat.api.hypervisor import Hypervisor
from homeostat.api.meta import FINALIZER
from homeostat.api.observed import Absent, Answer, HostAnswer, Present, Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import hypervisor as verdicts
from homeostat.decide import migration_planning, wanted
from homeostat.decide.placement import capacity
from homeostat.decide.view import HostView, Look, VMView
from homeostat.decide.vm_disks import known
from homeostat.decide.whereabouts import locate
from homeostat.hosts.driver import Connection, HostError
from homeostat.reconcile.fleet import NOT_ASKED, Fleet
from homeostat.runtime.controller import Key

T = TypeVar("T")


def from_caches(fleet: Fleet, key: Key, vm: VirtualMachine) -> VMView:
    """What every host's informer says of this VM's domain."""
    uuid = wanted.domain_uuid(vm)
    return VMView(
        fleet.cluster,
        {name: _host_view(fleet, key, hypervisor, uuid) for name, hypervisor in fleet.hypervisors.items()},
    )


def _host_view(fleet: Fleet, key: Key, hypervisor: Hypervisor, uuid: str) -> HostView:
    answer = fleet.answer(hypervisor.metadata.name)
    view = _without(fleet, hypervisor, answer)
    if answer.reachable and uuid in answer.domains:
        view = replace(view, answer=cached_answer(answer, uuid))
    if (own := fleet.claim(key, view.host_uuid)) is not None:  # it takes no room from itself
        cpus, memory = view.free_cpus + own.cpus, view.free_memory_mib + own.memory_mib
        view = replace(view, free_cpus=cpus, free_memory_mib=memory)
    return view


def _without(fleet: Fleet, hypervisor: Hypervisor, answer: HostAnswer) -> HostView:
    """A host as a VM sees it that is not there. Most hosts are that to most VMs: it is kept until something changes.

    Where it depends on the time, or on another Hypervisor of the host, it is made each time.
    """
    name = hypervisor.metadata.name
    if (kept := fleet.views.get(name)) is not None:
        view, said, changes = kept
        if said is answer and changes == fleet.changes(view.host_uuid):
            return view
    view = _made(fleet, hypervisor, answer)
    lasting = hypervisor.spec.out_of_service is None and not hypervisor.metadata.deleting and not view.awaited
    if lasting and not fleet.twins(hypervisor):
        fleet.views[name] = (view, answer, fleet.changes(view.host_uuid))
    return view


def _made(fleet: Fleet, hypervisor: Hypervisor, answer: HostAnswer) -> HostView:
    said = fleet.verdict(hypervisor)
    view = HostView(
        name=hypervisor.metadata.name,
        uid=hypervisor.metadata.uid,
        spec=hypervisor.spec,
        labels=hypervisor.metadata.labels,
        answer=cached_answer(answer, ""),
        host_uuid=fleet.host_uuid(hypervisor),
        facts=answer.facts if answer.reachable else None,
        closed=verdicts.closed(*said) or _not_admitted(hypervisor),
        starts_blocked=verdicts.starts_blocked(*said),
        released=fleet.released(hypervisor),
        awaited=fleet.awaited(hypervisor),
    )
    (cpus, memory), (used_cpus, used_memory) = capacity(view), fleet.taken(hypervisor)
    return replace(view, free_cpus=cpus - used_cpus, free_memory_mib=memory - used_memory)


def _not_admitted(hypervisor: Hypervisor) -> tuple[str, str] | None:
    """A Hypervisor takes VMs once its own reconcile has pinned its identity and holds it by a finalizer."""
    if hypervisor.status.host_uuid and FINALIZER in hypervisor.metadata.finalizers:
        return None
    return "Connecting", "its identity is being recorded"


def cached_answer(answer: HostAnswer, uuid: str) -> Answer:
    """What a host's cache says of a domain. Only a reachable host proves absence."""
    if answer.reachable is None:
        return Unknown(NOT_ASKED.reason, answer.message or NOT_ASKED.message, answer.since)
    if not answer.reachable:
        return Unknown(answer.reason or "HostUnreachable", answer.message, answer.since)
    domain = answer.domains.get(uuid)
    return Absent() if domain is None else Present(domain)


async def look(fleet: Fleet, vm: VirtualMachine, view: VMView, wish: Look) -> VMView:
    """The view with the hosts of a look asked now, all at once; hosts that were asked before keep what they said."""
    uuid, name = wanted.domain_uuid(vm), wanted.domain_name(vm)
    names = [host for host in wish.hosts if host in view.hosts]
    asked = await asyncio.gather(*(_ask(fleet, view.hosts[host], uuid, name) for host in names))
    hosts = {**view.hosts, **dict(zip(names, asked, strict=True))}
    if wish.pools_on in hosts:
        host, vm = hosts[wish.pools_on], known(vm, locate(vm, replace(view, hosts=hosts)).ours)
        found = {pool: await _names(fleet, host.name, pool, _needed(vm, host, pool)) for pool in wish.pools}
        hosts[host.name] = replace(host, volumes={**host.volumes, **found})
    return replace(view, hosts=hosts, fresh=True)


async def look_at_pools(fleet: Fleet, vm: VirtualMachine, view: VMView, wish: migration_planning.Look) -> VMView:
    """The view with hosts asked now for the VM's domain, and for all that is in the pools named for each.

    The source, which is the first, is asked before the others: a mark that was made in between, for another migration,
    would be seen on it, and not on a target that was asked before.
    """
    view = await look(fleet, vm, view, Look(wish.hosts))
    source, others = wish.hosts[0], [name for name in wish.pools if name != wish.hosts[0]]
    first = [await _filled(fleet, view.hosts[source], wish.pools[source])] if source in wish.pools else []
    asked = await asyncio.gather(*(_filled(fleet, view.hosts[name], wish.pools[name]) for name in others))
    hosts = {**view.hosts, **{host.name: host for host in (*first, *asked)}}
    if wish.sizes:
        sizes = {(pool, name): await _size(fleet, source, pool, name) for pool, name in wish.sizes}
        hosts[source] = replace(hosts[source], sizes=sizes)
    return replace(view, hosts=hosts)


async def _filled(fleet: Fleet, host: HostView, pools: Iterable[str]) -> HostView:
    """The view of a host with all that is in some of its pools."""
    found = {pool: await everything(fleet, host.name, pool) for pool in pools}
    return replace(host, volumes={**host.volumes, **found})


async def _size(fleet: Fleet, host: str, pool: str, volume: str) -> int | Unknown:
    found = await _stored(fleet, host, lambda connection: connection.volume_size(pool, volume))
    if isinstance(found, Unknown) and found.reason == "PoolUnavailable":
        return Unknown("VolumeUnavailable", found.message)
    return found


async def everything(fleet: Fleet, host: str, pool: str) -> frozenset[str] | Unknown:
    """Names of all volumes of a pool, after a refresh: what another host has made is not in libvirt's list before."""

    async def read(connection: Connection) -> frozenset[str]:
        await connection.refresh_pool(pool)
        return await _listed(connection, pool, frozenset())

    return await _stored(fleet, host, read)


async def _stored(fleet: Fleet, host: str, read: Callable[[Connection], Awaitable[T]]) -> T | Unknown:
    """What a host says of its storage, which may hang, and many may wait for it."""
    connection = fleet.connection(host)
    if connection is None:
        return Unknown("HostUnreachable", "the host does not answer")
    try:
        async with asyncio.timeout(fleet.storage_seconds):
            return await read(connection)
    except TimeoutError:
        return Unknown("PoolUnavailable", f"it was not answered within {fleet.storage_seconds:g} s")
    except HostError as error:
        return Unknown("PoolUnavailable", error.message)


async def _ask(fleet: Fleet, host: HostView, uuid: str, name: str) -> HostView:
    informer = fleet.informers.get(host.name)
    if informer is None:
        return host
    answer = await informer.look(uuid, name)
    holder = answer.name_holder if answer.name_holder != uuid else None
    return replace(host, answer=answer.answer, name_holder=holder)


class _Needed(NamedTuple):
    """Names of a VM's volumes in a pool, and those of them that were there before this start."""

    names: frozenset[str]
    earlier: frozenset[str]


def _needed(vm: VirtualMachine, host: HostView, pool: str) -> _Needed:
    volumes, seen = [each for each in wanted.volumes(vm, host) if each.pool == pool], {d.name for d in vm.status.disks}
    earlier = (each.name for each in volumes if each.kind in ("File", "Volume") or each.disk in seen)
    return _Needed(frozenset(each.name for each in volumes), frozenset(earlier))


async def _names(fleet: Fleet, host: str, pool: str, needed: _Needed) -> frozenset[str] | Unknown:
    """Names of a pool's volumes.

    One that is not in libvirt's list is absent only after a refresh: another host may have made it. One that was there
    before is in the list also when its file is gone, unless it is examined.
    """

    async def read(connection: Connection) -> frozenset[str]:
        names = await _listed(connection, pool, needed.earlier)
        if needed.names - names:
            await connection.refresh_pool(pool)
            names = await _listed(connection, pool, needed.earlier)
        return names

    return await _stored(fleet, host, read)


async def _listed(connection: Connection, pool: str, examined: frozenset[str]) -> frozenset[str]:
    return frozenset(volume.name for volume in await connection.volumes(pool, examined))
