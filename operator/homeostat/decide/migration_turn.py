# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: migrations have places at their hosts and in the cluster, and ports; others wait in line."""

from __future__ import annotations

from collections.abc import Iterable

from homeostat.api.migration import VirtualMachineMigration
from homeostat.decide import migration_ports, wanted
from homeostat.decide.migration import ended
from homeostat.decide.migration_planning import Fleet, Found, Plan
from homeostat.decide.view import HostView, Say

MOST_NEXT = 4
"""Looked at when a migration has ended, which makes room for few: its source's, its target's and the cluster's."""


def turn(found: Found, target: HostView) -> Plan | None:
    """Queued, behind what; None when a migration to this target may begin."""
    why = behind(found.migration, found.source, target, found.fleet) or _no_port(found, target)
    return Plan(Say("Queued", why), source=found.source.name, target=target.name) if why else None


def behind(migration: VirtualMachineMigration, source: HostView, target: HostView, fleet: Fleet) -> str:
    """What a migration between these hosts waits for: a limit, and those that it is behind; "" when it is its turn.

    Those that are under way take their places first, then those that wait, oldest first. One that waits for a host
    keeps its place at both of its hosts, so that younger ones do not overtake it there; others are not held up by it.
    """
    others = [each for each in fleet.migrations if each.metadata.uid != migration.metadata.uid and not ended(each)]
    if (first := of_the_same_vm(migration, others)) is not None:
        return f"VirtualMachineMigration {first.metadata.name} moves the same VM"
    taken = _Places(fleet)
    for each in others:
        if each.status.intent is not None:
            taken.take(each)
    for each in sorted((each for each in others if _waits(each) and _age(each) < _age(migration)), key=_age):
        taken.take(each, cluster=not taken.full(each.status.source or "", each.status.target or ""))
    return taken.full(source.name, target.name) or taken.all_full()


def of_the_same_vm(
    migration: VirtualMachineMigration, others: Iterable[VirtualMachineMigration]
) -> VirtualMachineMigration | None:
    """The one of these that moves the same VM and is under way, or has waited longer; None when there is none."""
    same = [each for each in others if _same_vm(each, migration)]
    return next((e for e in same if e.status.intent is not None or (_waits(e) and _age(e) < _age(migration))), None)


def next_in_turn(
    done: VirtualMachineMigration, others: Iterable[VirtualMachineMigration]
) -> list[VirtualMachineMigration]:
    """Those whose turn it may be now that one has ended: the oldest that wait at a host of it, or for its VM."""
    hosts = _ends(done)
    near = [each for each in others if _waits(each) and (_ends(each) & hosts or _same_vm(each, done))]
    return sorted(near, key=_age)[:MOST_NEXT]


def _ends(migration: VirtualMachineMigration) -> set[str]:
    ends = migration.status.intent or migration.status
    return {end for end in (ends.source, ends.target) if end}


def _same_vm(one: VirtualMachineMigration, other: VirtualMachineMigration) -> bool:
    return (one.metadata.namespace, one.spec.vm_ref.name) == (other.metadata.namespace, other.spec.vm_ref.name)


def _waits(migration: VirtualMachineMigration) -> bool:
    return migration.status.intent is None and migration.status.reason == "Queued"


def _age(migration: VirtualMachineMigration) -> tuple[str, str, str]:
    created = migration.metadata.creation_timestamp
    return (created.isoformat() if created else "", migration.metadata.namespace, migration.metadata.name)


def port(found: Found, target: HostView) -> int | None:
    """The port that the VM is to be taken on; None when the target's libvirt chooses, or has none left."""
    return migration_ports.free(target, _others(found), wanted.domain_uuid(found.vm))


def _no_port(found: Found, target: HostView) -> str:
    if target.spec.migration.ports is None or port(found, target) is not None:
        return ""
    names = list(migration_ports.taken(target, _others(found)).values())
    return f"all spec.migration.ports of Hypervisor {target.name} are taken, behind {_some(names)}"


def _others(found: Found) -> list[VirtualMachineMigration]:
    return [each for each in found.fleet.migrations if each.metadata.uid != found.migration.metadata.uid]


class _Places:
    """Which migrations have the places of each host, and of the cluster."""

    def __init__(self, fleet: Fleet) -> None:
        self._hosts, self._most = fleet.view.hosts, fleet.most
        self._out: dict[str, list[str]] = {}
        self._in: dict[str, list[str]] = {}
        self._all: list[str] = []

    def take(self, migration: VirtualMachineMigration, *, cluster: bool = True) -> None:
        """Count a migration at its hosts, and in the cluster."""
        status, name = migration.status, f"{migration.metadata.namespace}/{migration.metadata.name}"
        ends = status.intent or status
        self._out.setdefault(ends.source or "", []).append(name)
        self._in.setdefault(ends.target or "", []).append(name)
        if cluster:
            self._all.append(name)

    def full(self, source: str, target: str) -> str:
        """Which host's limit is reached, and by which migrations; "" when none is."""
        for host, taken, kind in ((source, self._out, "maxOutbound"), (target, self._in, "maxInbound")):
            names = taken.get(host, [])
            if host in self._hosts and len(names) >= (most := self._limit(host, kind)):
                return f"spec.migration.{kind} of Hypervisor {host} is {most}, behind {_some(names)}"
        return ""

    def _limit(self, host: str, kind: str) -> int:
        limits = self._hosts[host].spec.migration
        return limits.max_outbound if kind == "maxOutbound" else limits.max_inbound

    def all_full(self) -> str:
        """Whether the cluster's limit is reached, and by which migrations; "" when it is not."""
        if len(self._all) < self._most:
            return ""
        return f"the cluster's limit of {self._most} is reached, behind {_some(self._all)}"


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
