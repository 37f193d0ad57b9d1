# SPDX-License-Identifier: Apache-2.0
"""A VM that has a process: whether it stays, what its CPUs do, how it is stopped."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from homeostat.api import actions as act
from homeostat.api.observed import RUNNING_STATES, Domain, Owner
from homeostat.decide import runstrategy, wanted
from homeostat.decide.view import Decision, Look, Say
from homeostat.decide.vm_case import Case, do
from homeostat.decide.vm_definition import define, kept, not_off
from homeostat.decide.vm_evacuation import shut_off
from homeostat.decide.vm_retry import SHORT_RUN_SECONDS, undefinable
from homeostat.decide.vm_storage import storage
from homeostat.decide.whereabouts import Place

ASK_AGAIN_SECONDS = 10
_JOBS = ("Migration", "Postcopy", "Snapshot", "Save", "Dump")
_STANDING = {"PMSuspended": "GuestSuspended", "Crashed": "GuestCrashed"}
"""States of a process whose CPUs neither run nor can be made to by resuming them."""


def running(case: Case, place: Place) -> Decision:
    """The next step for the process that is there."""
    vm, domain, host = case.vm, place.domain, place.host
    if domain.live_owner is not None and domain.live_owner.probe:
        say = Say("RecordLost", "a start in order to look was not refused")
        return do(case, act.Destroy(host.name, domain.uuid), say, host)
    stays = runstrategy.stays(vm)
    if (mark := not_off(case, place, Say("Running" if stays else "Stopping"))) is not None:
        return mark
    if not stays:
        return stop(case, place, Say("Stopping"), since(case, "Stopping"))
    if why := shut_off(case, place):
        if vm.status.reason != "Evacuating" and not case.view.fresh:  # others may be silent by now, or able to take it
            return Decision(Say("Running"), look=Look(tuple(sorted(case.view.hosts))))
        return stop(case, place, Say("Evacuating", why), since(case, "Evacuating"))
    if domain.live_owner is not None and domain.live_owner.request != vm.spec.power.request:
        say = Say("Restarting", f"spec.power.request is {vm.spec.power.request!r}")
        return stop(case, place, say, since(case, "Restarting"))
    return _called_off(case, _defined(case, place) or _cpus(case, place))


def _called_off(case: Case, decision: Decision) -> Decision:
    """Remember that the guest was asked to power off for an evacuation, for as long as it may yet do so."""
    if decision.say.reason != "Running" or case.vm.status.reason not in runstrategy.ASKED:
        return decision
    asked = (case.now - since(case, "EvacuationEnded")).total_seconds()
    left = case.vm.spec.termination_grace_period_seconds + 1 - asked
    if left <= 0:
        return decision
    return replace(decision, say=Say("EvacuationEnded", decision.say.detail), requeue_after=left)


def _defined(case: Case, place: Place) -> Decision | None:
    """Give a running domain the definition that it lacks: without one its end would be the end of the domain."""
    if place.domain.persistent or wanted.unlocated(case.vm, place.host) is not None:
        return None
    say = Say("DefineFailed" if case.vm.status.reason == "DefineFailed" else "Running")
    return undefinable(case) or _volumes(case, place) or define(case, place.host, place.domain, say)


def _volumes(case: Case, place: Place) -> Decision | None:
    """Make disks that were added before a definition shows them: what it shows counts as a disk that was there."""
    if {disk.name for disk in case.vm.spec.disks} <= {disk.name for disk in case.vm.status.disks}:
        return None
    step = storage(case, place.host)
    makes = step is not None and (step.look is not None or isinstance(step.action, act.CreateVolume))
    return step if makes else None


def since(case: Case, reason: str) -> datetime:
    """Since when status has given this reason; now if it does not yet."""
    status = case.vm.status
    return status.since if status.reason == reason and status.since is not None else case.now


def _cpus(case: Case, place: Place) -> Decision:
    """Bring the guest's CPUs to spec.execution; resume only what our own metadata says we paused."""
    domain, host = place.domain, place.host
    live = domain.live_owner or kept(case, domain)
    if (standing := _STANDING.get(domain.state)) is not None:
        return Decision(Say(standing, f"libvirt says {domain.state}/{domain.reason}"))
    if case.vm.spec.execution == "Paused":
        return _pause(case, place, live)
    if domain.state == "Paused" and domain.reason == "User" and live.paused:
        return do(case, act.Resume(host.name, domain.uuid), Say("Resuming"), host)
    if domain.state == "Paused":
        return _paused_by_others(domain)
    if live.paused:
        return do(case, act.Mark(host.name, domain.uuid, replace(live, paused=False), live=True), Say("Running"), host)
    return _steady(case, Say("Running"))


def _pause(case: Case, place: Place, live: Owner) -> Decision:
    """First say that it was us, then do it: only so can it be resumed."""
    domain, host = place.domain, place.host
    if domain.state == "Paused":
        return _steady(case, Say("Paused"))
    if not live.paused:
        return do(case, act.Mark(host.name, domain.uuid, replace(live, paused=True), live=True), Say("Pausing"), host)
    return do(case, act.Suspend(host.name, domain.uuid), Say("Pausing"), host)


def _paused_by_others(domain: Domain) -> Decision:
    detail = f"libvirt says Paused/{domain.reason}"
    if domain.reason in ("StartingUp", *_JOBS):
        return Decision(Say("PausedByJob" if domain.reason in _JOBS else "Starting", detail), requeue_after=5)
    return Decision(Say("PausedOnIOError" if domain.reason == "IOError" else "PausedByOthers", detail))


def _steady(case: Case, say: Say) -> Decision:
    """Nothing to do. Failures counted before are forgotten once it has run for a while."""
    failures, since = case.vm.status.start_failures, case.vm.status.since
    if failures is None or case.vm.status.state not in ("Running", "Paused") or since is None:
        return Decision(say)
    left = SHORT_RUN_SECONDS - (case.now - since).total_seconds()
    return Decision(say, settled=left <= 0, requeue_after=None if left <= 0 else left + 1)


def stop(case: Case, place: Place, say: Say, since: datetime) -> Decision:
    """Say so, ask, ask again while the guest boots, then end the process.

    A guest whose CPUs stand still cannot hear: only the grace period is left.
    """
    domain, host, asking = place.domain, place.host, (case.now - since).total_seconds()
    grace = case.vm.spec.termination_grace_period_seconds
    left = grace + 1 - asking if grace else 0  # times on record are whole seconds, so `since` may be one early
    if left <= 0:
        return do(case, act.Destroy(host.name, domain.uuid), say, host)
    if case.vm.status.reason != say.reason:
        return Decision(say, requeue_after=0.0)  # the grace period is on record before the guest hears of it
    if domain.state not in RUNNING_STATES:
        return Decision(say, requeue_after=left + 0.05)
    asked = case.view.asked_seconds_ago
    if asked is not None and asked > asking:
        asked = None  # that was an earlier process
    if asked is not None and asked < ASK_AGAIN_SECONDS:
        return Decision(say, requeue_after=min(left, ASK_AGAIN_SECONDS - asked) + 0.05)
    # An agent that was asked and did nothing is not asked twice: it answers nothing before the guest is off.
    shutdown = act.Shutdown(host.name, domain.uuid, agent=bool(domain.agent_connected) and asked is None)
    return replace(do(case, shutdown, say, host), requeue_after=min(left, ASK_AGAIN_SECONDS) + 0.05)
