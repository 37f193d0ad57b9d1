# SPDX-License-Identifier: Apache-2.0
"""A VM that is being deleted: its process, its definition and its volumes go first, the object last."""

from __future__ import annotations

from dataclasses import replace

from homeostat.api import actions as act
from homeostat.api.meta import FINALIZER
from homeostat.decide import runstrategy
from homeostat.decide.view import Decision, Look, Say
from homeostat.decide.vm_behind import catch_up
from homeostat.decide.vm_case import Case, candidates, do, record
from homeostat.decide.vm_definition import not_off
from homeostat.decide.vm_off import probe
from homeostat.decide.vm_running import since, stop
from homeostat.decide.vm_storage import remove_volumes
from homeostat.decide.whereabouts import Place, abandoned, blindness, foreignness, listed, may_be_anywhere


def delete(case: Case) -> Decision:
    """Stop, undefine, remove what may be removed; let the object go when every host where it may be says it is gone."""
    vm, where = case.vm, case.where
    if FINALIZER not in vm.metadata.finalizers:
        return Decision(Say("Deleting"))
    if vm.spec.deletion_policy == "Release":
        return Decision(Say("Deleting"), act.RemoveFinalizer())
    # One whose process may be left is the last: the start that tells needs the only definition.
    for place in sorted(where.ours, key=lambda place: _lost(case, place)):
        # Recorded before anything is removed: it says where the volumes are to be looked for afterwards.
        return _remove(case, place) if listed(vm, place.host) else _recorded(case)
    if where.blind:
        return Decision(Say("DeletingWaits", blindness(where).detail))
    if (stranger := _stranger(case)) is not None:
        return Decision(stranger)
    return remove_volumes(case) or _seen_gone(case) or Decision(Say("Deleting"), act.RemoveFinalizer())


def _stranger(case: Case) -> Say | None:
    """A domain with the VM's UUID and without its mark, where it may be: perhaps its own, with its disks in use."""
    hosts = candidates(case) or set(case.view.hosts)
    found = [(place, whose) for place, whose in case.where.foreign if place.host.name in hosts]
    found = [each for each in found if not abandoned(case.vm, each[0].host.name)]
    if not found:
        return None
    detail = foreignness(replace(case.where, foreign=found)).detail
    ways = "remove it; or set spec.takeover to have it removed with the VM; or spec.deletionPolicy Release to leave it"
    return Say("DeletingWaits", f"{detail}, which is not touched: {ways}")


def _recorded(case: Case) -> Decision:
    step = record(case, [place.host for place in case.where.ours])
    waits = step.action is None and step.look is None
    return replace(step, say=Say("DeletingWaits", step.say.detail)) if waits else step


def _remove(case: Case, place: Place) -> Decision:
    domain, host, say = place.domain, place.host, Say("Deleting")
    if case.where.behind and case.where.blind:
        return Decision(Say("DeletingWaits", blindness(case.where).detail))
    if domain.active and (behind := catch_up(case, place)) is not None:
        return behind
    if domain.active and domain.live_owner is not None and domain.live_owner.probe:
        return do(case, act.Destroy(host.name, domain.uuid), say, host)
    if domain.active and (mark := not_off(case, place, Say("DeletingStops"))) is not None:
        return mark
    if domain.active:
        # Not since it was deleted: its host may have been silent for long, and the guest was never asked.
        return stop(case, place, Say("DeletingStops"), since(case, "DeletingStops"))
    if _lost(case, place):
        waits = _no_probe(case)
        return Decision(waits) if waits is not None else probe(case, place)
    if domain.managed_save:
        return do(case, act.DiscardManagedSave(host.name, domain.uuid), say, host)
    return do(case, act.Undefine(host.name, domain.uuid), say, host)


def _lost(case: Case, place: Place) -> bool:
    return runstrategy.maybe_running(case.vm, place.domain, place.host.name)


def _no_probe(case: Case) -> Say | None:
    """Why a process that may be left cannot be looked for yet by a start beside it: the VM may have another one."""
    if case.where.blind:
        return Say("DeletingWaits", blindness(case.where).detail)
    if len(case.where.ours) > 1:
        hosts = " and on ".join(place.host.name for place in case.where.ours)
        return Say(
            "DeletingWaits",
            f"a process may be left on {hosts}: look there, end it, then set spec.confirmedOff {{host, since}}",
        )
    return _stranger(case)


def _seen_gone(case: Case) -> Decision | None:
    """A look at every host concerned, if what is known was not asked for after the object was read."""
    hosts = candidates(case) | (set(case.view.hosts) if may_be_anywhere(case.vm) else set())
    return Decision(Say("Deleting"), look=Look(tuple(sorted(hosts)))) if hosts and not case.view.fresh else None
