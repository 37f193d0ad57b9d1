# SPDX-License-Identifier: Apache-2.0
"""Hypervisor.spec.maintenance Evacuate: which migrations are to be made or cancelled, and how far it is.

Nothing is shut down here: what cannot move is named with its reason, and may be shut down by its own spec.evacuation
(homeostat.decide.vm_evacuation). The limits and the turns are the migrations' own matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count

from homeostat.api import reasons
from homeostat.api.hypervisor import BlockedVM, EvacuationStatus, Hypervisor
from homeostat.api.meta import GROUP, condition
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide.migration import ended, ended_at
from homeostat.decide.view import Say
from homeostat.decide.vm import stopping

LABEL = f"{GROUP}/evacuates"
"""On a migration that an evacuation made: the UID of the Hypervisor."""
RETRY = timedelta(minutes=5)
MOST_LISTED = 100
AT_REST = ("Stopped", "Finished")
"""States of VMs that are off as they are to be, and in nobody's way."""
WAITS = "It is shut down, as spec.evacuation says, if that lasts and no host that may be able to take it is silent."


@dataclass(frozen=True, slots=True)
class NewMigration:
    """A migration to be made. Its name follows from what it is for, so that making it twice makes one."""

    namespace: str
    name: str
    vm: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Evacuation:
    """Migrations to be made, (namespace, name) of those to be deleted, and the status; None when none is wanted."""

    make: tuple[NewMigration, ...] = ()
    cancel: tuple[tuple[str, str], ...] = ()
    status: EvacuationStatus | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one VM: a migration to make, one that is under way, or what it is blocked by.

    None of these for one that is being shut down.
    """

    vm: VirtualMachine
    make: NewMigration | None = None
    moving: bool = False
    blocked: Say | None = None


def evacuate(
    hypervisor: Hypervisor,
    here: Iterable[VirtualMachine],
    migratable: Mapping[str, tuple[str, Say]],
    migrations: Iterable[VirtualMachineMigration],
    now: datetime,
) -> Evacuation:
    """The next step. `here` are the VMs on this host; `migratable` is their condition Migratable, by VM's UID.

    As many migrations are made as may leave the host, and as many again, so that the next ones are planned in time.
    """
    attempts = list(migrations)
    made = [each for each in attempts if each.metadata.labels.get(LABEL) == hypervisor.metadata.uid]
    if hypervisor.spec.maintenance != "Evacuate":
        return Evacuation(cancel=tuple(_key(each) for each in made if not _begun(each)))
    old = hypervisor.status.evacuation or EvacuationStatus(since=now)
    up, off = _split(sorted(here, key=_name))
    verdicts = [_verdict(hypervisor, vm, migratable, attempts, now) for vm in up]
    room = 2 * hypervisor.spec.migration.max_outbound - sum(verdict.moving for verdict in verdicts)
    make = tuple(verdict.make for verdict in verdicts if verdict.make is not None)[: max(room, 0)]
    return Evacuation(make=make, status=_status(old, made, verdicts, off))


def read_of_vm(vm: VirtualMachine) -> tuple[object, ...]:
    """What evacuations read of a VM."""
    found = condition(vm.status.conditions, "Migratable")
    able = (found.status, found.reason) if found else None
    off = vm.status.reason if vm.status.reason in ("Evacuating", "Evacuated") else vm.status.state in AT_REST
    return vm.metadata.uid, vm.status.host, off, able, stopping(vm)


def read_of_migration(migration: VirtualMachineMigration) -> tuple[object, ...]:
    """What evacuations, and its VM, read of a migration."""
    return migration.status.intent is not None, migration.metadata.deleting, ended(migration)


def _split(here: list[VirtualMachine]) -> tuple[list[VirtualMachine], list[VirtualMachine]]:
    """Those that run or are to, and those that are off for this. The others, which rest, are in nobody's way."""
    up = [vm for vm in here if vm.status.state not in AT_REST]
    return up, [vm for vm in here if vm.status.reason == "Evacuated"]


def _verdict(
    hypervisor: Hypervisor,
    vm: VirtualMachine,
    migratable: Mapping[str, tuple[str, Say]],
    migrations: list[VirtualMachineMigration],
    now: datetime,
) -> Verdict:
    mine = [each for each in migrations if _of(each, vm)]
    if vm.status.reason == "Evacuating" or stopping(vm):
        return Verdict(vm)
    if any(not ended(each) for each in mine):
        return Verdict(vm, moving=True)
    failed = [each for each in mine if each.metadata.labels.get(LABEL) == hypervisor.metadata.uid and not _moved(each)]
    last = max(failed, key=lambda each: ended_at(each) or now, default=None)
    if last is not None and (ended_at(last) or now) + RETRY > now:
        return Verdict(vm, blocked=Say(last.status.reason or "", _sentence(last)))
    status, say = migratable.get(vm.metadata.uid, ("Unknown", Say("HostsUnknown")))
    if status != "True":
        told = (reasons.MIGRATABLE.get(say.reason, ""), say.detail, WAITS if vm.spec.evacuation == "ShutOff" else "")
        return Verdict(vm, blocked=Say(say.reason, " ".join(filter(None, told))))
    taken = {each.metadata.name for each in mine}
    names = (_new(hypervisor, vm, number) for number in count(len(failed)))
    return Verdict(vm, make=next(each for each in names if each.name not in taken))


def _new(hypervisor: Hypervisor, vm: VirtualMachine, attempt: int) -> NewMigration:
    purpose = f"{hypervisor.metadata.uid}/{hypervisor.metadata.generation}/{vm.metadata.uid}/{attempt}"
    name = f"evacuate-{hashlib.sha256(purpose.encode()).hexdigest()[:12]}"
    return NewMigration(vm.metadata.namespace, name, vm.metadata.name, {LABEL: hypervisor.metadata.uid})


def _status(
    old: EvacuationStatus, made: list[VirtualMachineMigration], verdicts: list[Verdict], off: list[VirtualMachine]
) -> EvacuationStatus:
    blocked = [
        BlockedVM(vm=_name(each.vm), reason=each.blocked.reason, message=each.blocked.detail[:1024] or None)
        for each in verdicts
        if each.blocked is not None
    ]
    return EvacuationStatus(
        since=old.since,
        # Finished migrations expire: what was counted once stays counted.
        moved=max(old.moved or 0, sum(_moved(each) and _after(each, old.since) for each in made)),
        moving=sum(each.moving for each in verdicts),
        remaining=len(verdicts),
        shut_off=len(off) or None,
        blocked=tuple(blocked[:MOST_LISTED]),
    )


def _of(migration: VirtualMachineMigration, vm: VirtualMachine) -> bool:
    there = (migration.metadata.namespace, migration.spec.vm_ref.name)
    return there == (vm.metadata.namespace, vm.metadata.name)


def _begun(migration: VirtualMachineMigration) -> bool:
    return migration.status.intent is not None or ended(migration)


def _moved(migration: VirtualMachineMigration) -> bool:
    found = condition(migration.status.conditions, "Succeeded")
    return found is not None and found.status == "True"


def _after(migration: VirtualMachineMigration, since: datetime | None) -> bool:
    end = ended_at(migration)
    return since is None or (end is not None and end >= since)


def _sentence(migration: VirtualMachineMigration) -> str:
    found = condition(migration.status.conditions, "Succeeded")
    return f"VirtualMachineMigration {migration.metadata.name}: {found.message if found else ''}"


def _key(migration: VirtualMachineMigration) -> tuple[str, str]:
    return migration.metadata.namespace, migration.metadata.name


def _name(vm: VirtualMachine) -> str:
    return f"{vm.metadata.namespace}/{vm.metadata.name}"
