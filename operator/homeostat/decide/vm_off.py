# SPDX-License-Identifier: Apache-2.0
"""A VM that is off on one host: whether it is started, what forbids it, and what is written down when it is not."""

from __future__ import annotations

from dataclasses import replace

from homeostat.api import actions as act
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import placement, runstrategy, wanted
from homeostat.decide.view import Decision, HostView, Say
from homeostat.decide.vm_case import Case, do
from homeostat.decide.vm_definition import define, kept, prepared
from homeostat.decide.vm_evacuation import stays_off
from homeostat.decide.vm_retry import backing_off
from homeostat.decide.vm_storage import storage
from homeostat.decide.whereabouts import Place, blindness, foreignness


def off(case: Case, place: Place) -> Decision:
    """The next step for a definition without a process."""
    vm, domain = case.vm, place.domain
    went, served = runstrategy.way_off(vm, domain), runstrategy.served(vm, domain)
    starts = runstrategy.starts(vm.spec.run_strategy, went, served=served, power_state=vm.spec.power.state)
    evacuated = starts and stays_off(vm, place.host)
    if starts and not evacuated:
        return _start(case, place)
    if runstrategy.maybe_running(vm, domain, place.host.name):
        return barred(case, place.host) or probe(case, place)
    if evacuated:
        return _stay_off(case, place, runstrategy.EVACUATED, Say("Evacuated", f"it is on Hypervisor {place.host.name}"))
    return _stay_off(case, place, went, at_rest(vm))


def _start(case: Case, place: Place) -> Decision:
    """From off to running: every obstacle in turn, then the volumes, the definition, and in a later pass the start."""
    vm, domain, host = case.vm, place.domain, place.host
    survivor = runstrategy.maybe_running(vm, domain, host.name)
    probing = survivor and domain.owner is not None and domain.owner.probe
    if (obstacle := no_start(case, host) or backing_off(case, "RecordLost" if probing else "StartFailed")) is not None:
        return obstacle
    if survivor and not runstrategy.lockable(domain):
        return _no_lock(host)
    if survivor and (first := _on_record(case, host)) is not None:
        return first
    tied = survivor or domain.managed_save  # an image that is still there is to be restored, where it is
    if placement.unwanted(vm, host) is not None and not tied:
        return _move(case, place)
    if (say := wanted.unsuited(vm, host)) is not None:
        return Decision(say)
    if (missing := storage(case, host)) is not None:
        return missing
    if not prepared(case, host, domain):
        # The disks of the definition it ran from are what refuses a start beside it; the new one may have none of them.
        return probe(case, place) if survivor else define(case, host, domain, Say("Creating"))
    return do(case, act.Start(host.name, domain.uuid, paused=vm.spec.execution == "Paused"), Say("Starting"), host)


def no_start(case: Case, host: HostView) -> Decision | None:
    """What forbids a start on this host, whatever the spec says."""
    if (no_process := barred(case, host)) is not None:
        return no_process
    if host.name_holder is not None:
        name = wanted.domain_name(case.vm)
        detail = f"Hypervisor {host.name} has a domain named {name} with UUID {host.name_holder}"
        return Decision(Say("ForeignName", detail))
    return managed_save(case)


def barred(case: Case, host: HostView) -> Decision | None:
    """What forbids any process on this host, be it a probe that is never let run: another may have the same disks."""
    where = case.where
    if where.foreign:
        return Decision(foreignness(where))
    if where.blind:
        return Decision(Say("StoreBehind", blindness(where).detail) if where.behind else blindness(where))
    return Decision(Say(*host.starts_blocked)) if host.starts_blocked is not None else None


def managed_save(case: Case) -> Decision | None:
    """A saved memory image is never started past silently: its owner says what becomes of it."""
    saved = next((place for place in case.where.ours if place.domain.managed_save), None)
    if saved is None:
        return None
    wish = case.vm.spec.managed_save
    if wish is None or wish.host != saved.host.name:
        return Decision(Say("ManagedSaveFound", f"Hypervisor {saved.host.name} has one"))
    if wish.action == "Discard":
        return do(case, act.DiscardManagedSave(saved.host.name, saved.domain.uuid), Say("Starting"), saved.host)
    return None


def _move(case: Case, place: Place) -> Decision:
    """Give up the permission to run here; where it goes is decided once it is seen gone."""
    target, host = placement.place(case.vm, case.view), place.host
    if isinstance(target, Say):
        return Decision(target)
    return do(case, act.Undefine(host.name, place.domain.uuid), Say("Moving", f"from {host.name}"), host)


def probe(case: Case, place: Place) -> Decision:
    """Start it paused on the same host, where its locks refuse a process that survived; then end it again."""
    domain, host = place.domain, place.host
    if not runstrategy.lockable(domain):
        return _no_lock(host)
    if (wait := _on_record(case, host) or backing_off(case, "RecordLost")) is not None:
        return wait
    say = Say("RecordLost", f"Hypervisor {host.name} says Shutoff/Unknown")
    if domain.owner is None or not domain.owner.probe:
        return do(case, act.Mark(host.name, domain.uuid, replace(kept(case, domain), probe=True)), say, host)
    return do(case, act.Start(host.name, domain.uuid, paused=True), say, host)


def _on_record(case: Case, host: HostView) -> Decision | None:
    """That a process may be left is written down before a start beside it is tried.

    Whoever goes on after a crash in the middle of that start finds what libvirt says of the process that was refused.
    """
    seen = case.vm.status.domain
    if seen is not None and seen.reason == "RecordLost":
        return None
    return Decision(Say("RecordLost", f"Hypervisor {host.name} says Shutoff/Unknown"), requeue_after=0.0)


def _no_lock(host: HostView) -> Decision:
    detail = f"Hypervisor {host.name} says Shutoff/Unknown, and without a disk no lock would refuse a second process"
    return Decision(Say("RecordLost", detail))


def _stay_off(case: Case, place: Place, went: str, say: Say) -> Decision:
    """Leave a mark of how it went off: libvirt forgets its reasons when it restarts."""
    vm, domain, there = case.vm, place.domain, place.domain.owner
    if say.reason == "NotRequested":
        say = Say(say.reason, f"it went off: {went}")
    way = "Halted" if say.reason in ("Halted", "StoppedAsAsked") else went
    mark = replace(kept(case, domain), off=way, request=vm.spec.power.request, probe=False)
    if there is None or (there.off, there.request, there.probe) != (mark.off, mark.request, False):
        return do(case, act.Mark(place.host.name, domain.uuid, mark), say, place.host)
    return Decision(say)


def at_rest(vm: VirtualMachine) -> Say:
    """What is said of a VM that is off and is not to be started."""
    if vm.spec.run_strategy == "Halted":
        return Say("Halted")
    if vm.spec.power.state == "Stopped":
        return Say("StoppedAsAsked")
    return Say("NotRequested" if vm.spec.run_strategy == "Manual" else "Finished")
