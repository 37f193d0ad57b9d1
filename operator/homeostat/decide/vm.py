# SPDX-License-Identifier: Apache-2.0
"""The next step of a VirtualMachine: one action, or none and why.

Read from top to bottom: who may touch it, where it is, then what happens to it there. No action follows from a cached
answer: where a step would change a host, the hosts in question are looked at first and the decision is made again.
"""

from __future__ import annotations

from datetime import datetime

from homeostat.api import actions as act
from homeostat.api.meta import FINALIZER, RECONCILE_ANNOTATION
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.observed import RUNNING_STATES
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import placement, runstrategy, wanted
from homeostat.decide.view import Decision, HostView, Say, VMView
from homeostat.decide.vm_behind import catch_up
from homeostat.decide.vm_case import Case, only, record
from homeostat.decide.vm_definition import define, mark_own
from homeostat.decide.vm_deleting import delete
from homeostat.decide.vm_disks import known
from homeostat.decide.vm_off import at_rest, no_start, off
from homeostat.decide.vm_retry import backing_off
from homeostat.decide.vm_running import running
from homeostat.decide.vm_storage import storage
from homeostat.decide.vm_twice import defined_twice, running_twice
from homeostat.decide.whereabouts import Place, blindness, candidate_of, foreignness, host_of, listed, locate


def decide(vm: VirtualMachine, view: VMView, now: datetime) -> Decision:
    """The next step for this VM."""
    where = locate(vm, view)
    case = Case(known(vm, where.ours), view, where, now)
    if vm.metadata.annotations.get(RECONCILE_ANNOTATION) == "disabled":
        return Decision(Say("DeletingDisabled" if vm.metadata.deleting else "ReconcileDisabled"))
    if view.migration is not None:
        return _migrating(case, view.migration)
    if vm.metadata.deleting:
        return delete(case)
    if len(case.where.active) > 1:
        return running_twice(case)
    if len(case.where.ours) > 1:
        return defined_twice(case)
    return _here(case, case.where.ours[0]) if case.where.ours else _nowhere(case)


def _nowhere(case: Case) -> Decision:
    """No host that answered has it. First a host is recorded, then the finalizer, then the definition is made there."""
    vm, where = case.vm, case.where
    if where.foreign:
        return Decision(foreignness(where))
    if where.blind:
        return Decision(blindness(where))
    served, went = runstrategy.served(vm, None), runstrategy.way_gone(vm)
    if not runstrategy.starts(vm.spec.run_strategy, went, served=served, power_state=vm.spec.power.state):
        return Decision(at_rest(vm))
    if (wait := backing_off(case, "StartFailed")) is not None:
        return wait
    target = _target(case)
    if isinstance(target, Say):
        return Decision(target)
    if not only(vm, target):
        return record(case, [target])
    if FINALIZER not in vm.metadata.finalizers:
        return Decision(Say("Accepted", f"on {target.name}"), act.AddFinalizer())
    creating = Say("Creating", f"on {target.name}")
    return no_start(case, target) or storage(case, target) or define(case, target, None, creating)


def _target(case: Case) -> HostView | Say:
    """The recorded candidate while it still fits, else a new choice."""
    for candidate in case.vm.status.candidates[:1]:
        host = host_of(case.view, candidate.hypervisor, candidate.host_uuid)
        if host and not host.closed and not placement.unwanted(case.vm, host) and not wanted.unsuited(case.vm, host):
            return host
    return placement.place(case.vm, case.view)


def _here(case: Case, place: Place) -> Decision:
    """One host has it: the candidates are narrowed to that host, it gets our mark, then it runs or is off."""
    narrower = len(case.vm.status.candidates) > 1 and not (case.where.blind or case.where.foreign)
    if narrower or not listed(case.vm, place.host):
        return record(case, [place.host])
    if FINALIZER not in case.vm.metadata.finalizers:
        return Decision(Say("Accepted"), act.AddFinalizer())
    if (mark := mark_own(case, place)) is not None:
        return mark
    if (behind := catch_up(case, place)) is not None:
        return behind
    return running(case, place) if place.domain.active else off(case, place)


def _migrating(case: Case, migration: VirtualMachineMigration) -> Decision:
    """Hands off, but for recording where the VM may be: only a migration whose target is recorded is begun."""
    vm = case.vm
    say = _said_of_migration(case, migration)
    missing = [host for host in _ends(case, migration) if not listed(vm, host)]
    if missing:
        recorded = (act.Candidate(each.hypervisor, each.uid, each.host_uuid) for each in vm.status.candidates)
        return Decision(say, act.RecordCandidates((*recorded, *map(candidate_of, missing))))
    return Decision(say, None if FINALIZER in vm.metadata.finalizers else act.AddFinalizer())


def _said_of_migration(case: Case, migration: VirtualMachineMigration) -> Say:
    detail = f"VirtualMachineMigration {migration.metadata.name} moves it"
    if not any(place.domain.state in RUNNING_STATES for place in case.where.ours):
        return Say("MigrationUnclear", detail)
    return Say("MigrationFirst" if stopping(case.vm) else "Migrating", detail)


def _ends(case: Case, migration: VirtualMachineMigration) -> list[HostView]:
    intent = migration.status.intent
    if intent is None:
        return []
    ends = ((intent.source, intent.source_uuid), (intent.target, intent.target_uuid))
    return [host for end in ends if (host := host_of(case.view, *end)) is not None]


def stopping(vm: VirtualMachine | None) -> str:
    """Why the VM is not to run any more, so that it is not to be moved either; "" when it is to run."""
    if vm is None:
        return "the VM is gone"
    if vm.metadata.deleting:
        return "the VM is being deleted"
    return "" if runstrategy.stays(vm) else "the VM is to be stopped"
