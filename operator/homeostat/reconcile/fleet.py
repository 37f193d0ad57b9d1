# SPDX-License-Identifier: Apache-2.0
"""What this process knows of all VMs and all hosts: rebuilt from lists, watches and the hosts, never a source of truth.

It answers what one object alone cannot: how full a host is, which VM a domain belongs to, which Hypervisors name one
host.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from homeostat.api.hypervisor import Hypervisor
from homeostat.api.meta import FINALIZER, Resource
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.observed import HostAnswer
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import hypervisor as verdicts
from homeostat.decide import wanted
from homeostat.decide.view import HostView
from homeostat.hosts.driver import Connection
from homeostat.hosts.informer import HostInformer
from homeostat.runtime.controller import Key, Retry

WAITING = frozenset(
    {
        "NoRoom",
        "NoHost",
        "UnknownHost",
        "NoHostMatches",
        "UnknownPool",
        "UnknownNetwork",
        "NotAllowed",
        "TooBig",
        "UnknownCPUModel",
        "DiskElsewhere",
    }
)
"""Reasons of VMs that wait for the fleet to change."""
NOT_ASKED = HostAnswer(reachable=None, reason="HostNotAsked", message="it is being connected to")


def outdated(known: Resource | None, meta: dict[str, Any]) -> bool:
    """Whether an event, or a page of a list, shows an object (its metadata) as it was before what is known of it.

    It may come late, also one of an earlier object of that name. After a store was rolled back all do for a while: what
    is outdated is not noted, its key is looked at all the same, and what a read of that one object says is noted
    whatever its version.
    """
    try:
        return known is not None and int(meta["resourceVersion"]) < int(known.metadata.resource_version)
    except (KeyError, ValueError):
        return False


@dataclass(frozen=True, slots=True)
class Claim:
    """What a VM takes, and of which hosts (by host UUID)."""

    hosts: frozenset[str]
    cpus: int
    memory_mib: int


@dataclass(slots=True)
class Fleet:
    """All VMs, migrations and Hypervisors, as last heard of."""

    now: Callable[[], datetime]
    room_changed: Callable[[frozenset[str]], None]
    """Called with the names of Hypervisors that a VM came to or left, however that became known."""
    storage_seconds: float = 60.0
    """How long a look at a host's storage may take."""
    cluster: str = ""
    """What names the cluster in the metadata of its domains; known before anything else is."""
    hypervisors: dict[str, Hypervisor] = field(default_factory=dict)
    informers: dict[str, HostInformer] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # Hypervisor -> what its credentials lack
    left: dict[str, datetime | None] = field(default_factory=dict)
    """When hosts were last heard whose informer was given up for the time being."""
    listed: bool = False
    """Whether all VMs and migrations are known: before that no host is empty, and no domain is nobody's."""
    vms: dict[Key, VirtualMachine] = field(default_factory=dict)
    doubted: set[Key] = field(default_factory=set)
    """VMs that a list did not show, or an event showed as they were before: only a read says what they are."""
    migrations: dict[Key, VirtualMachineMigration] = field(default_factory=dict)
    awaiting: bool = False
    """Whether the operator began so lately that hosts may be on their first answer to it."""
    views: dict[str, tuple[HostView, HostAnswer, int]] = field(default_factory=dict)
    """What observe has made of Hypervisors, of which answer, and after how many changes of what is claimed there."""
    _waiting: dict[Key, None] = field(default_factory=dict)  # VMs that wait for a host that fits
    _keys: dict[str, Key] = field(default_factory=dict)  # domain UUID -> VM
    _uids: dict[str, Key] = field(default_factory=dict)  # UID -> VM
    _held: defaultdict[str | None, set[Key]] = field(default_factory=lambda: defaultdict(set))
    """VMs that may be on a host, by the names and host UUIDs on record; None: on any."""
    _claims: dict[Key, Claim] = field(default_factory=dict)
    _assumed: dict[Key, frozenset[str]] = field(default_factory=dict)
    _cpus: Counter[str] = field(default_factory=Counter)  # host UUID -> CPUs claimed by VMs
    _memory: Counter[str] = field(default_factory=Counter)
    _migrations: defaultdict[Key, set[Key]] = field(default_factory=lambda: defaultdict(set))  # VM -> its migrations
    _names: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # host UUID -> Hypervisors
    _changes: Counter[str] = field(default_factory=Counter)
    """How often it changed what VMs claim of a host, or which Hypervisors name it, by its UUID."""

    # VMs
    def note_vm(self, key: Key, vm: VirtualMachine | None) -> None:
        """Take note of a VM as read or heard of last; None: it is gone."""
        old = self.vms.pop(key, None)
        self._waiting.pop(key, None)
        if old is not None:
            self._forget(key, old)
        if vm is None:
            self._assumed.pop(key, None)
            self._claim(key, None)
        else:
            self._note(key, vm)
        before, after = (each.status.candidates if each else () for each in (old, vm))
        if before != after:
            self.room_changed(frozenset(each.hypervisor for each in (*before, *after)) & self.hypervisors.keys())

    def _forget(self, key: Key, vm: VirtualMachine) -> None:
        self._keys.pop(wanted.domain_uuid(vm), None)
        self._uids.pop(vm.metadata.uid, None)
        for where in _recorded(vm):
            self._held[where].discard(key)

    def _note(self, key: Key, vm: VirtualMachine) -> None:
        self.vms[key] = vm
        self._uids[vm.metadata.uid] = key
        for where in _recorded(vm):
            self._held[where].add(key)
        if vm.status.reason in WAITING:
            self._waiting[key] = None
        self._keys[wanted.domain_uuid(vm)] = key
        hosts = frozenset(candidate.host_uuid for candidate in vm.status.candidates)
        if hosts:
            self._assumed.pop(key, None)
        # A late event may show the VM as it was before it was given a host: it counts there all the same.
        self._claim(key, Claim(hosts or self._assumed.get(key, hosts), wanted.vcpus(vm), wanted.memory_mib(vm)))

    def assume(self, key: Key, vm: VirtualMachine, hosts: frozenset[str]) -> None:
        """Count a VM on hosts it was just given, before the API server has the list."""
        self._assumed[key] = hosts
        self._claim(key, Claim(hosts, wanted.vcpus(vm), wanted.memory_mib(vm)))

    def drop_assumption(self, key: Key) -> None:
        """The list could not be written: the next look at the VM says where it counts."""
        self._assumed.pop(key, None)

    def _claim(self, key: Key, claim: Claim | None) -> None:
        if claim is not None and self._claims.get(key) == claim:
            return
        if (old := self._claims.pop(key, None)) is not None:
            self._count(old, -1)
        if claim is not None:
            self._claims[key] = claim
            self._count(claim, 1)

    def _count(self, claim: Claim, sign: int) -> None:
        for host in claim.hosts:
            self._cpus[host] += sign * claim.cpus
            self._memory[host] += sign * claim.memory_mib
            self._changes[host] += 1

    def key_of(self, uuid: str) -> Key | None:
        """The VM whose domain has this UUID."""
        return self._keys.get(uuid)

    def waiting(self) -> list[Key]:
        """VMs that wait for a host that fits."""
        return list(self._waiting)

    # Migrations
    def note_migration(self, key: Key, migration: VirtualMachineMigration | None) -> None:
        """Take note of a migration as read or heard of last; None: it is gone."""
        old = self.migrations.pop(key, None)
        if old is not None:
            self._migrations[key[0], old.spec.vm_ref.name].discard(key)
        if migration is not None:
            self.migrations[key] = migration
            self._migrations[key[0], migration.spec.vm_ref.name].add(key)

    def migrations_of(self, vm: Key) -> list[VirtualMachineMigration]:
        """The migrations of a VM, by name."""
        return [self.migrations[key] for key in sorted(self._migrations.get(vm, ()))]

    # Hypervisors
    def note_hypervisor(self, name: str, hypervisor: Hypervisor | None) -> None:
        """Take note of a Hypervisor as read or heard of last; None: it is gone."""
        old = self.hypervisors.pop(name, None)
        self.views.pop(name, None)
        if old is not None and old.status.host_uuid:
            self._names[old.status.host_uuid].discard(name)
        if hypervisor is not None:
            self.hypervisors[name] = hypervisor
            if hypervisor.status.host_uuid:
                self._names[hypervisor.status.host_uuid].add(name)
                self._changes[hypervisor.status.host_uuid] += 1

    def answer(self, name: str) -> HostAnswer:
        """What a host says, from its informer."""
        informer, missing = self.informers.get(name), self.missing.get(name)
        answer = informer.answer if informer else NOT_ASKED
        if answer.heard is None and name in self.left:
            answer = replace(answer, heard=self.left[name])
        if missing is None or answer.reachable:  # a connection that is there needs no credentials any more
            return answer
        return replace(answer, reachable=False, reason="CredentialsMissing", message=missing)

    def awaited(self, hypervisor: Hypervisor) -> bool:
        """Whether a host that answered the operator before this one has neither answered this one nor failed to.

        One that was silent already keeps nobody waiting.
        """
        known = hypervisor.status.host_uuid is not None and verdicts.silent_since(hypervisor) is None
        return self.awaiting and known and self.answer(hypervisor.metadata.name).reachable is None

    def connection(self, name: str) -> Connection | None:
        """The connection to a Hypervisor's host; None while there is none."""
        informer = self.informers.get(name)
        return informer.connection if informer else None

    def connected(self, name: str) -> Connection:
        """The connection to a Hypervisor's host. Retry while there is none."""
        if (connection := self.connection(name)) is None:
            raise Retry(f"Hypervisor {name} is not connected")
        return connection

    def speaking_for(self, name: str, host_uuid: str) -> Hypervisor | None:
        """The Hypervisor of a host: the one of this name if it is still that host, else another one of it."""
        named = self.hypervisors.get(name)
        if named is not None and self.host_uuid(named) == host_uuid:
            return named
        return next((self.hypervisors[each] for each in sorted(self._names.get(host_uuid, ()))), None)

    def host_uuid(self, hypervisor: Hypervisor) -> str:
        """The identity of a host that is believed; "" before the first contact."""
        return verdicts.pinned(hypervisor, self.answer(hypervisor.metadata.name)) or ""

    def twins(self, hypervisor: Hypervisor) -> set[str]:
        """Other Hypervisors that name the same host."""
        return self._names.get(self.host_uuid(hypervisor), set()) - {hypervisor.metadata.name}

    def verdict(self, hypervisor: Hypervisor) -> tuple[str, str]:
        """(reason, details) of a Hypervisor, but for missing credentials: only its own reconcile knows of these."""
        answer = self.answer(hypervisor.metadata.name)
        holds = len(self.holds(hypervisor)) if hypervisor.metadata.deleting else 0
        return verdicts.verdict(hypervisor, answer, self.twins(hypervisor), holds=holds, now=self.now())

    def together(self, hypervisor: Hypervisor) -> HostAnswer:
        """What is heard of its host by way of all Hypervisors that name it, in this one's words."""
        names = (hypervisor.metadata.name, *sorted(self.twins(hypervisor)))
        return verdicts.together(self.answer(name) for name in names)

    def released(self, hypervisor: Hypervisor) -> bool:
        """Whether a person vouches that nothing runs on the host, and no Hypervisor of it has heard otherwise."""
        return verdicts.released(hypervisor, self.together(hypervisor), self.now())

    def holds(self, hypervisor: Hypervisor) -> tuple[str, ...]:
        """VMs that may be on a host, as namespace/name.

        A Hypervisor that is being deleted holds none if another one speaks for the same host.
        """
        others = (self.hypervisors[each] for each in self.twins(hypervisor))
        if hypervisor.metadata.deleting and any(not each.metadata.deleting for each in others):
            return ()
        uuid, name = self.host_uuid(hypervisor), hypervisor.metadata.name
        # Also those that are just being given this host: what is on its way to the API server is in no list.
        given = {key for key, hosts in self._assumed.items() if uuid in hosts}
        return tuple(sorted("/".join(key) for key in self._held[None] | self._held[name] | self._held[uuid] | given))

    def claims(self, hypervisor: Hypervisor) -> verdicts.Claims:
        """What is promised of a host, to VMs and to domains that are no VM's."""
        uuid, holds = self.host_uuid(hypervisor), self.holds(hypervisor)
        cpus, memory, strangers = self._strangers(hypervisor.metadata.name, uuid)
        return verdicts.Claims(
            self._cpus[uuid] + cpus, self._memory[uuid] + memory, len(holds) + strangers, holds, self._uids.keys()
        )

    def changes(self, host_uuid: str) -> int:
        """A number that is another one when what is claimed of a host, or which Hypervisors name it, has changed."""
        return self._changes[host_uuid]

    def taken(self, hypervisor: Hypervisor) -> tuple[int, int]:
        """(CPUs, MiB) taken of a host, by VMs and by domains that are no VM's."""
        uuid = self.host_uuid(hypervisor)
        cpus, memory, _ = self._strangers(hypervisor.metadata.name, uuid)
        return self._cpus[uuid] + cpus, self._memory[uuid] + memory

    def claim(self, key: Key, host_uuid: str) -> Claim | None:
        """What a VM takes of a host; None when it is not one of its own."""
        claim = self._claims.get(key)
        return claim if claim is not None and host_uuid in claim.hosts else None

    def _strangers(self, name: str, host_uuid: str) -> tuple[int, int, int]:
        """CPUs, MiB and number of running domains that are not counted by any VM's candidates."""
        cpus = memory = count = 0
        for domain in self.answer(name).domains.values():
            key = self._keys.get(domain.uuid)
            if not domain.active or (key is not None and self.claim(key, host_uuid) is not None):
                continue
            config = domain.live or domain.inactive
            count += 1
            cpus += config.sockets * config.cores * config.threads if config else 0
            memory += config.memory_mib if config else 0
        return cpus, memory, count


def _recorded(vm: VirtualMachine) -> set[str | None]:
    """The Hypervisors, and the UUIDs of the hosts, where a VM may be; None: on any."""
    if not vm.status.candidates:
        return {None} if FINALIZER in vm.metadata.finalizers else set()
    return {where for each in vm.status.candidates for where in (each.hypervisor, each.host_uuid)}
