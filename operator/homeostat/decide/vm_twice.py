# SPDX-License-Identifier: Apache-2.0
"""A VM that more than one host has: two that run are left to a person, of two definitions one goes."""

from __future__ import annotations

from dataclasses import replace

from homeostat.api import actions as act
from homeostat.decide import runstrategy
from homeostat.decide.view import Decision, Say
from homeostat.decide.vm_case import Case, do
from homeostat.decide.vm_off import managed_save
from homeostat.decide.whereabouts import Place, listed


def running_twice(case: Case) -> Decision:
    """Hands off: which of the two holds the data only a person can say."""
    hosts = " and on ".join(place.host.name for place in case.where.active)
    return Decision(Say("RunningTwice", f"it runs on {hosts}"))


def defined_twice(case: Case) -> Decision:
    """A definition is a permission to run: where the VM does not belong it is removed, when it is surely off there."""
    if not case.where.active and (saved := managed_save(case)) is not None:
        return saved
    if not case.where.active and (image := _old_image(case)) is not None:
        return _restore_old(case, image)
    keep = _keeper(case)
    for place in case.where.ours:
        if place is not keep and (step := _remove_spare(case, place, keep)) is not None:
            return step
    hosts = " and on ".join(place.host.name for place in case.where.ours)
    return Decision(Say("DefinedTwice", f"on {hosts}"), requeue_after=60)


def _old_image(case: Case) -> Place | None:
    """A saved image of a host that is not recorded, while the VM was seen later on one that is."""
    saved = next((place for place in case.where.ours if place.domain.managed_save), None)
    later = any(p.host.name == case.vm.status.host and listed(case.vm, p.host) for p in case.where.ours)
    return saved if saved is not None and later and not listed(case.vm, saved.host) else None


def _restore_old(case: Case, image: Place) -> Decision:
    """A Restore that is left in the spec from an earlier image is not meant for this one.

    It is, when it was set after the image was told of: then that reason stays until the other definition is gone.
    """
    host = image.host.name
    if case.vm.status.reason != "ManagedSaveFound":
        return Decision(
            Say("ManagedSaveOld", f"Hypervisor {host} has one, and the VM was on {case.vm.status.host} since")
        )
    spare = next(place for place in case.where.ours if place is not image)
    step = _remove_spare(case, spare, image)
    found = Say("ManagedSaveFound", f"Hypervisor {host} has one, which is restored")
    return replace(step, say=found) if step is not None else Decision(found)


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
