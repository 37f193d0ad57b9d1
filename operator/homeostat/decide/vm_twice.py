# SPDX-License-Identifier: Apache-2.0
"""A VM that more than one host has: two that run are left to a person, of two definitions one goes."""

from __future__ import annotations

from homeostat.api import actions as act
from homeostat.decide import runstrategy
from homeostat.decide.view import Decision, Say
from homeostat.decide.vm_case import Case, do, listed
from homeostat.decide.vm_off import managed_save
from homeostat.decide.whereabouts import Place


def running_twice(case: Case) -> Decision:
    """Hands off: which of the two holds the data only a person can say."""
    hosts = " and on ".join(place.host.name for place in case.where.active)
    return Decision(Say("RunningTwice", f"it runs on {hosts}"))


def defined_twice(case: Case) -> Decision:
    """A definition is a permission to run: where the VM does not belong it is removed, when it is surely off there."""
    if not case.where.active and (saved := managed_save(case)) is not None:
        return saved
    if not case.where.active and (old := _old_image(case)) is not None:
        return Decision(old)
    keep = _keeper(case)
    for place in case.where.ours:
        if place is not keep and (step := _remove_spare(case, place, keep)) is not None:
            return step
    hosts = " and on ".join(place.host.name for place in case.where.ours)
    return Decision(Say("DefinedTwice", f"on {hosts}"), requeue_after=60)


def _old_image(case: Case) -> Say | None:
    """An image from before the VM was seen where it is recorded: a Restore left in the spec is not meant for that."""
    saved = next((place for place in case.where.ours if place.domain.managed_save), None)
    if saved is None or listed(case.vm, saved.host):
        return None
    later = next((p for p in case.where.ours if p.host.name == case.vm.status.host and listed(case.vm, p.host)), None)
    if later is None:
        return None
    since = f"from before the VM was on {later.host.name}: drop it with spec.managedSave Discard"
    return Say("ManagedSaveFound", f"Hypervisor {saved.host.name} has one, {since}")


def _keeper(case: Case) -> Place:
    """The one that stays: it runs, else has an image to restore, else is recorded, else is the first by name."""
    ours = case.where.ours
    saved = [place for place in ours if place.domain.managed_save]
    recorded = [place for place in ours if listed(case.vm, place.host)]
    return (case.where.active or saved or recorded or sorted(ours, key=lambda place: place.host.name))[0]


def _remove_spare(case: Case, place: Place, keep: Place) -> Decision | None:
    if place.domain.managed_save:
        return _stale_image(case, place)
    if place.domain.active or _survivor_possible(case, place):
        return None
    say = Say("DefinedTwice", f"on {keep.host.name}, and off on {place.host.name}")
    return do(case, act.Undefine(place.host.name, place.domain.uuid), say, place.host)


def _stale_image(case: Case, place: Place) -> Decision:
    """The VM runs elsewhere, and memory saved here keeps libvirt from removing the definition: its owner drops it."""
    name, wish = place.host.name, case.vm.spec.managed_save
    say = Say("DefinedTwice", f"Hypervisor {name} has a managed-save image: drop it with spec.managedSave Discard")
    if wish is None or (wish.host, wish.action) != (name, "Discard"):
        return Decision(say)
    return do(case, act.DiscardManagedSave(name, place.domain.uuid), say, place.host)


def _survivor_possible(case: Case, place: Place) -> bool:
    """Whether the VM was last seen running on just this host, and how it ended there is not known."""
    name = place.host.name
    return case.vm.status.host == name and runstrategy.maybe_running(case.vm, place.domain, name)
