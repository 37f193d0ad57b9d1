# SPDX-License-Identifier: Apache-2.0
"""The next step of a VirtualMachine: one action, or none and why.

Read from top to bottom: who may touch it, where it is, then one of five cases: migrating, deleting, running, off,
nowhere. No action follows from a cached answer: where a step would change a host, the hosts in question are looked at
first and the decision is made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from homeostat.api import actions as act
from homeostat.api.meta import FINALIZER, RECONCILE_ANNOTATION
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.observed import ACTIVE_STATES, RUNNING_STATES, Domain, Owner, Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import runstrategy, wanted
from homeostat.decide.placement import place, unwanted
from homeostat.decide.view import Decision, Failure, HostView, Look, Say, VMView
from homeostat.decide.whereabouts import (
    Place,
    Whereabouts,
    blindness,
    candidate_of,
    claim,
    foreignness,
    host_of,
    locate,
    may_be_anywhere,
)

ASK_AGAIN_SECONDS = 10
SHORT_RUN_SECONDS = 60
"""A process that ends sooner than this after its start counts as a failed start."""


@dataclass(frozen=True, slots=True)
class Case:
    """One VM, what is seen of it, and the time."""

    vm: VirtualMachine
    view: VMView
    where: Whereabouts
    now: datetime


def decide(vm: VirtualMachine, view: VMView, now: datetime) -> Decision:
    """The next step for this VM."""
    case = Case(vm, view, locate(vm, view), now)
    if vm.metadata.annotations.get(RECONCILE_ANNOTATION) == "disabled":
        return Decision(Say("DeletingDisabled" if deleting(vm) else "ReconcileDisabled"))
    if view.migration is not None:
        return _migrating(case, view.migration)
    if deleting(vm):
        return _delete(case)
    if len(case.where.active) > 1:
        return Decision(Say("RunningTwice", "it runs on " + " and on ".join(p.host.name for p in case.where.active)))
    if len(case.where.ours) > 1:
        return _defined_twice(case)
    if case.where.ours:
        return _here(case, case.where.ours[0])
    return _nowhere(case)


def stopping(vm: VirtualMachine | None) -> str:
    """Why the VM is not to run any more, so that it is not to be moved either; "" when it is to run."""
    if vm is None:
        return "the VM is gone"
    if deleting(vm):
        return "the VM is being deleted"
    return "" if runstrategy_wants_process(vm) else "the VM is to be stopped"


def deleting(vm: VirtualMachine) -> bool:
    """Whether the object is being deleted."""
    return vm.metadata.deletion_timestamp is not None


# In a migration
# ---------------------------------------------------------------------------------------------------------


def _migrating(case: Case, migration: VirtualMachineMigration) -> Decision:
    """Hands off, but for recording where the VM may be: only a migration whose target is recorded is begun."""
    missing = [host for host in _ends(case, migration) if not _listed(case.vm, host)]
    if missing:
        return Decision(Say("Migrating"), act.RecordCandidates((*_recorded(case.vm), *map(candidate_of, missing))))
    if FINALIZER not in case.vm.metadata.finalizers:
        return Decision(Say("Migrating"), act.AddFinalizer())
    detail = f"VirtualMachineMigration {migration.metadata.name} moves it"
    if not any(place.domain.state in RUNNING_STATES for place in case.where.ours):
        return Decision(Say("MigrationUnclear", detail))
    stays = runstrategy_wants_process(case.vm) and not deleting(case.vm)
    return Decision(Say("Migrating" if stays else "MigrationFirst", detail))


def _ends(case: Case, migration: VirtualMachineMigration) -> list[HostView]:
    intent = migration.status.intent
    if intent is None:
        return []
    ends = ((intent.source, intent.source_uuid), (intent.target, intent.target_uuid))
    return [host for end in ends if (host := host_of(case.view, *end)) is not None]


def _recorded(vm: VirtualMachine) -> Iterator[act.Candidate]:
    return (act.Candidate(each.hypervisor, each.uid, each.host_uuid) for each in vm.status.candidates)


# Present on one host
# ---------------------------------------------------------------------------------------------------


def _here(case: Case, place_: Place) -> Decision:
    narrower = len(case.vm.status.candidates) > 1 and not case.where.blind
    if narrower or not _listed(case.vm, place_.host):
        return _record(case, [place_.host])
    if FINALIZER not in case.vm.metadata.finalizers:
        return Decision(Say("Accepted"), act.AddFinalizer())
    if (mine := _own(case, place_)) is not None:
        return mine
    return _running(case, place_) if place_.domain.active else _off(case, place_)


def _own(case: Case, place_: Place) -> Decision | None:
    """A domain that is taken over, or whose metadata an edit from outside removed, gets our mark."""
    domain, owner = place_.domain, place_.domain.owner
    identity = (case.view.cluster, case.vm.metadata.namespace, case.vm.metadata.name, case.vm.metadata.uid)
    for live, there in ((False, owner), (True, domain.live_owner)):
        applies = domain.active if live else domain.persistent
        if applies and (there is None or (there.cluster, there.namespace, there.name, there.uid) != identity):
            mark = _owner(case, domain, prepared=False)
            return _do(case, act.Mark(place_.host.name, domain.uuid, mark, live=live), Say("Starting"), place_.host)
    return None


def _running(case: Case, place_: Place) -> Decision:
    vm, domain, host = case.vm, place_.domain, place_.host
    if domain.live_owner is not None and domain.live_owner.probe:
        return _do(
            case,
            act.Destroy(host.name, domain.uuid),
            Say("RecordLost", "a start in order to look was not refused"),
            host,
        )
    if not runstrategy_wants_process(vm):
        return _stop(case, place_, Say("Stopping"), _since(case, "Stopping"))
    # A store that was set back forgot what the process was started for: it asks for nothing by that.
    asked = domain.live_owner is not None and domain.live_owner.request != vm.spec.power.request
    if asked and not case.where.behind:
        return _stop(
            case,
            place_,
            Say("Restarting", f"spec.power.request is {vm.spec.power.request!r}"),
            _since(case, "Restarting"),
        )
    if not domain.persistent:
        return _define(case, place_.host, domain, Say("Running"))
    return _cpus(case, place_)


def runstrategy_wants_process(vm: VirtualMachine) -> bool:
    """Whether a process that is there may stay."""
    return vm.spec.run_strategy != "Halted" and vm.spec.power.state != "Stopped"


def _cpus(case: Case, place_: Place) -> Decision:
    """Bring the guest's CPUs to spec.execution; resume only what our own metadata says we paused."""
    domain, host = place_.domain, place_.host
    live = domain.live_owner or _owner(case, domain, prepared=False)
    ours = domain.state == "Paused" and domain.reason == "User" and live.paused
    if case.vm.spec.execution == "Paused":
        if domain.state == "Paused":
            return _steady(case, Say("Paused"))
        if not live.paused:
            return _do(
                case, act.Mark(host.name, domain.uuid, replace(live, paused=True), live=True), Say("Pausing"), host
            )
        return _do(case, act.Suspend(host.name, domain.uuid), Say("Pausing"), host)
    if ours:
        return _do(case, act.Resume(host.name, domain.uuid), Say("Resuming"), host)
    if domain.state == "Paused":
        return _paused_by_others(case, domain)
    if live.paused:
        return _do(case, act.Mark(host.name, domain.uuid, replace(live, paused=False), live=True), Say("Running"), host)
    return _steady(case, Say("Running"))


def _paused_by_others(case: Case, domain: Domain) -> Decision:
    if domain.reason in ("StartingUp", "Migration", "Postcopy", "Snapshot", "Saving", "Dump"):
        return Decision(Say("Starting", f"libvirt says Paused/{domain.reason}"), requeue_after=5)
    return Decision(
        Say(
            "PausedOnIOError" if domain.reason == "IOError" else "PausedByOthers",
            f"libvirt says Paused/{domain.reason}",
        )
    )


def _steady(case: Case, say: Say) -> Decision:
    """Nothing to do. Failures counted before are forgotten once it has run for a while."""
    failures, since = case.vm.status.start_failures, case.vm.status.since
    if failures is None or case.vm.status.state not in ("Running", "Paused") or since is None:
        return Decision(say)
    left = SHORT_RUN_SECONDS - (case.now - since).total_seconds()
    return Decision(say, settled=left <= 0, requeue_after=None if left <= 0 else left + 1)


def _stop(case: Case, place_: Place, say: Say, since: datetime) -> Decision:
    """Say so, ask, ask again while the guest boots, then end the process.

    A paused guest cannot hear: only the grace period is left.
    """
    domain, host, asking = place_.domain, place_.host, (case.now - since).total_seconds()
    grace = case.vm.spec.termination_grace_period_seconds
    left = grace + 1 - asking if grace else 0  # times on record are whole seconds, so `since` may be one early
    if left <= 0:
        return _do(case, act.Destroy(host.name, domain.uuid), say, host)
    if case.vm.status.reason != say.reason:
        return Decision(say, requeue_after=0.0)  # the grace period is on record before the guest hears of it
    asked = case.view.asked_seconds_ago
    if asked is not None and asked > asking:
        asked = None  # that was an earlier process
    wait = left if domain.state == "Paused" else min(left, ASK_AGAIN_SECONDS - (asked or 0))
    if domain.state == "Paused" or (asked is not None and asked < ASK_AGAIN_SECONDS):
        return Decision(say, requeue_after=wait + 0.05)
    # An agent that was asked and did nothing is not asked twice: it answers nothing before the guest is off.
    shutdown = act.Shutdown(host.name, domain.uuid, agent=bool(domain.agent_connected) and asked is None)
    return replace(_do(case, shutdown, say, host), requeue_after=min(left, ASK_AGAIN_SECONDS) + 0.05)


def _since(case: Case, *reasons: str) -> datetime:
    """Since when status has given one of these reasons; now if it does not yet."""
    status = case.vm.status
    return status.since if status.reason in reasons and status.since is not None else case.now


# Off on one host
# ----------------------------------------------------------------------------------------------------------


def _off(case: Case, place_: Place) -> Decision:
    vm, domain = case.vm, place_.domain
    went, served = runstrategy.way_off(domain), runstrategy.served(vm, domain)
    if runstrategy.starts(vm.spec.run_strategy, went, served=served, power_state=vm.spec.power.state):
        return _start(case, place_)
    if runstrategy.maybe_running(vm, domain, place_.host.name):
        return _probe(case, place_)
    return _stay_off(case, place_, went)


def _stay_off(case: Case, place_: Place, went: str) -> Decision:
    """Leave a mark of how it went off: libvirt forgets its reasons when it restarts."""
    vm, domain = case.vm, place_.domain
    if vm.spec.run_strategy == "Halted":
        say, off = Say("Halted"), "Halted"
    elif vm.spec.power.state == "Stopped":
        say, off = Say("StoppedAsAsked"), "Halted"
    else:
        say, off = (
            (
                Say("Finished")
                if vm.spec.run_strategy == "RerunOnFailure"
                else Say("NotRequested", f"it went off: {went}")
            ),
            went,
        )
    mark = replace(_owner(case, domain, prepared=False), off=off, request=vm.spec.power.request, probe=False)
    there = domain.owner
    if there is None or (there.off, there.request, there.probe) != (mark.off, mark.request, False):
        return _do(case, act.Mark(place_.host.name, domain.uuid, mark), say, place_.host)
    return Decision(say)


def _probe(case: Case, place_: Place) -> Decision:
    """Start it paused on the same host, where its locks refuse a process that survived.

    Only to end it again and know.
    """
    domain, host = place_.domain, place_.host
    say = Say("RecordLost", f"Hypervisor {host.name} says Shutoff/Unknown")
    if not runstrategy.lockable(domain):
        return Decision(_no_lock(host))
    if (wait := _backing_off(case, "RecordLost")) is not None:
        return wait
    if domain.owner is None or not domain.owner.probe:
        return _do(
            case, act.Mark(host.name, domain.uuid, replace(_owner(case, domain, prepared=False), probe=True)), say, host
        )
    return _do(case, act.Start(host.name, domain.uuid, paused=True), say, host)


def _no_lock(host: HostView) -> Say:
    return Say(
        "RecordLost",
        f"Hypervisor {host.name} says Shutoff/Unknown, and without a disk no lock would refuse a second process",
    )


def _start(case: Case, place_: Place) -> Decision:
    """From off to running: every obstacle in turn, then the volumes, the definition, and in a later pass the start."""
    vm, domain, host = case.vm, place_.domain, place_.host
    if (obstacle := _no_start(case, host)) is not None:
        return obstacle
    if (wait := _backing_off(case, "StartFailed")) is not None:
        return wait
    survivor = runstrategy.maybe_running(vm, domain, host.name)
    if survivor and not runstrategy.lockable(domain):
        return Decision(_no_lock(host))
    tied = survivor or domain.managed_save  # an image that is still there is to be restored, where it is
    if unwanted(vm, host) is not None and not tied:
        return _move(case, place_)
    if (say := wanted.unsuited(vm, host)) is not None:
        return Decision(say)
    if (storage := _storage(case, host)) is not None:
        return storage
    if not _prepared(case, host, domain):
        return _define(case, host, domain, Say("Creating"))
    return _do(case, act.Start(host.name, domain.uuid, paused=vm.spec.execution == "Paused"), Say("Starting"), host)


def _no_start(case: Case, host: HostView) -> Decision | None:
    """What forbids a start on this host, whatever the spec says."""
    where = case.where
    if where.foreign:
        return Decision(foreignness(case.where))
    if where.blind:
        return Decision(Say("StoreBehind", blindness(where).detail) if where.behind else blindness(where))
    if host.name_holder is not None:
        return Decision(
            Say(
                "ForeignName",
                f"Hypervisor {host.name} has a domain named {wanted.domain_name(case.vm)} with UUID {host.name_holder}",
            )
        )
    if host.starts_blocked is not None:
        return Decision(Say(*host.starts_blocked))
    return _managed_save(case)


def _managed_save(case: Case) -> Decision | None:
    """A saved memory image is never started past silently: its owner says what becomes of it."""
    saved = next((p for p in case.where.ours if p.domain.managed_save), None)
    if saved is None:
        return None
    wish = case.vm.spec.managed_save
    if wish is None or wish.host != saved.host.name:
        return Decision(Say("ManagedSaveFound", f"Hypervisor {saved.host.name} has one"))
    if wish.action == "Discard":
        return _do(case, act.DiscardManagedSave(saved.host.name, saved.domain.uuid), Say("Starting"), saved.host)
    return None


def _move(case: Case, place_: Place) -> Decision:
    """Give up the permission to run here; where it goes is decided once it is seen gone."""
    target = place(case.vm, case.view)
    if isinstance(target, Say):
        return Decision(target)
    return _do(
        case, act.Undefine(place_.host.name, place_.domain.uuid), Say("Moving", f"from {place_.host.name}"), place_.host
    )


def _prepared(case: Case, host: HostView, domain: Domain) -> bool:
    """Whether the persistent definition is the one the spec wants to be started."""
    owner = domain.owner
    if domain.inactive is None or owner is None or owner.off is not None or owner.probe:
        return False
    fits = (owner.request, owner.generation, owner.paused) == (
        case.vm.spec.power.request,
        case.vm.metadata.generation,
        case.vm.spec.execution == "Paused",
    )
    return fits and not wanted.differences(domain.inactive, wanted.config(case.vm, host, domain))


def _define(case: Case, host: HostView, domain: Domain | None, say: Say) -> Decision:
    owner = _owner(case, domain, prepared=True)
    # A domain that is taken over keeps its name: libvirt redefines none under another.
    name = domain.name if domain else wanted.domain_name(case.vm)
    config = wanted.config(case.vm, host, domain)
    action = act.Define(host.name, wanted.domain_uuid(case.vm), name, config, owner)
    return _do(case, action, say, host)


def _owner(case: Case, domain: Domain | None, *, prepared: bool) -> Owner:
    """Our metadata: what is there kept as it is, or, `prepared`, made ready for the next start."""
    vm, there = case.vm, domain.owner if domain else None
    if there is None or claim(vm, there, case.view.cluster) != "ours":
        there = Owner(
            case.view.cluster, vm.metadata.namespace, vm.metadata.name, vm.metadata.uid, request=vm.spec.power.request
        )
    identity = replace(
        there, cluster=case.view.cluster, namespace=vm.metadata.namespace, name=vm.metadata.name, uid=vm.metadata.uid
    )
    if not prepared:
        return identity
    was = None
    if domain is not None and not domain.active and domain.reason != "Unknown":
        was = domain.reason
    return replace(
        identity,
        generation=vm.metadata.generation,
        request=vm.spec.power.request,
        off=None,
        was=was,
        paused=vm.spec.execution == "Paused",
        probe=False,
    )


# Nowhere
# -------------------------------------------------------------------------------------------------------------------


def _nowhere(case: Case) -> Decision:
    """No host that answered has it. First a host is recorded, then the finalizer, then the definition is made there."""
    vm, where = case.vm, case.where
    if where.foreign:
        return Decision(foreignness(case.where))
    if where.blind:
        return Decision(blindness(where))
    if not runstrategy.starts(
        vm.spec.run_strategy, "Unknown", served=runstrategy.served(vm, None), power_state=vm.spec.power.state
    ):
        return Decision(_off_and_undefined(vm))
    if (wait := _backing_off(case, "StartFailed")) is not None:
        return wait
    target = _target(case)
    if isinstance(target, Say):
        return Decision(target)
    if not _only(vm, target):
        return _record(case, [target])
    if FINALIZER not in vm.metadata.finalizers:
        return Decision(Say("Accepted", f"on {target.name}"), act.AddFinalizer())
    return (
        _no_start(case, target)
        or _storage(case, target)
        or _define(case, target, None, Say("Creating", f"on {target.name}"))
    )


def _off_and_undefined(vm: VirtualMachine) -> Say:
    if vm.spec.run_strategy == "Halted":
        return Say("Halted")
    if vm.spec.power.state == "Stopped":
        return Say("StoppedAsAsked")
    return Say("NotRequested") if vm.spec.run_strategy == "Manual" else Say("Finished")


def _target(case: Case) -> HostView | Say:
    """The recorded candidate while it still fits, else a new choice."""
    for candidate in case.vm.status.candidates[:1]:
        host = host_of(case.view, candidate.hypervisor, candidate.host_uuid)
        if host and not host.closed and not unwanted(case.vm, host) and not wanted.unsuited(case.vm, host):
            return host
    return place(case.vm, case.view)


def _listed(vm: VirtualMachine, host: HostView) -> bool:
    return any(candidate.host_uuid == host.host_uuid for candidate in vm.status.candidates)


def _only(vm: VirtualMachine, host: HostView) -> bool:
    """Whether this host, as it is now, is the one candidate."""
    return [(c.hypervisor, c.uid, c.host_uuid) for c in vm.status.candidates] == [(host.name, host.uid, host.host_uuid)]


def _record(case: Case, hosts: list[HostView]) -> Decision:
    """Write the candidates. Replacing or narrowing the list needs proof, asked for now.

    That the VM is not on those left out.
    """
    if (case.vm.status.candidates or may_be_anywhere(case.vm)) and not case.view.fresh:
        return Decision(Say("Accepted"), look=Look(_concerned(case, hosts[0])))
    blind = {name for name, _ in case.where.blind}
    kept = [host for host in case.view.hosts.values() if host.name in blind and host not in hosts]
    entries = {host.host_uuid: candidate_of(host) for host in [*hosts, *kept] if host.host_uuid}
    return Decision(Say("Accepted", f"on {hosts[0].name}"), act.RecordCandidates(tuple(entries.values())))


# Storage
# -------------------------------------------------------------------------------------------------------------------


def _storage(case: Case, host: HostView) -> Decision | None:
    """None when every volume is there; else what makes it so, or what is missing."""
    volumes = wanted.volumes(case.vm, host)
    pools = tuple(sorted({volume.pool for volume in volumes}))
    if not case.view.fresh or any(pool not in host.volumes for pool in pools):
        return Decision(Say("Creating", f"on {host.name}"), look=Look(_concerned(case, host), host.name, pools))
    for volume in volumes:
        names = host.volumes[volume.pool]
        if isinstance(names, Unknown):
            return Decision(
                Say("PoolUnavailable", f"pool {volume.pool!r} on Hypervisor {host.name}: {names.message}"),
                requeue_after=30,
            )
        if volume.name not in names:
            return _absent_volume(case, host, volume, names)
    return None


def _absent_volume(case: Case, host: HostView, volume: wanted.WantedVolume, names: frozenset[str]) -> Decision:
    where = f"volume {volume.name!r} in pool {volume.pool!r} on Hypervisor {host.name}"
    if volume.kind == "File":
        return Decision(Say("ImageMissing", f"there is no {where}"), requeue_after=30)
    if volume.kind == "Volume":
        return Decision(Say("VolumeMissing", f"there is no {where}"), requeue_after=30)
    if any(seen.name == volume.disk for seen in case.vm.status.disks):
        return Decision(
            Say("DiskMissing", f"disk {volume.disk!r} was seen before, now there is no {where}"), requeue_after=30
        )
    disk = next(disk for disk in case.vm.spec.disks if disk.name == volume.disk)
    earlier = sorted(name for name in names if name.startswith(wanted.volume_prefix(case.vm, disk)))
    if earlier and volume.kind == "Blank" and wanted.retained_matters(disk):
        return Decision(
            Say(
                "RetainedDisk", f"disk {disk.name!r}: pool {volume.pool!r} on Hypervisor {host.name} has {earlier[0]!r}"
            ),
            requeue_after=60,
        )
    if (wait := _backing_off(case, "DiskFailed")) is not None:
        return wait
    create = act.CreateVolume(host.name, volume.pool, volume.name, volume.format, volume.capacity, volume.backing)
    return _do(case, create, Say("Creating", f"disk {volume.disk} on {host.name}"), host)


# Deleting
# ------------------------------------------------------------------------------------------------------------------


def _delete(case: Case) -> Decision:
    """Stop, undefine, remove what may be removed.

    And let the object go only when every host where it may be says it is gone.
    """
    vm, where = case.vm, case.where
    if FINALIZER not in vm.metadata.finalizers:
        return Decision(Say("Deleting"))
    if vm.spec.deletion_policy == "Release":
        return Decision(Say("Deleting"), act.RemoveFinalizer())
    for place_ in where.ours:
        # Recorded before anything is removed: it says where the volumes are to be looked for afterwards.
        return _remove(case, place_) if _listed(vm, place_.host) else _record(case, [p.host for p in where.ours])
    if where.blind:
        return Decision(Say("DeletingWaits", blindness(where).detail))
    return _remove_volumes(case) or _fresh(case) or Decision(Say("Deleting"), act.RemoveFinalizer())


def _remove(case: Case, place_: Place) -> Decision:
    domain, host = place_.domain, place_.host
    if domain.active:
        if domain.live_owner is not None and domain.live_owner.probe:
            return _do(case, act.Destroy(host.name, domain.uuid), Say("Deleting"), host)
        return _stop(case, place_, Say("DeletingStops"), case.vm.metadata.deletion_timestamp or case.now)
    if runstrategy.maybe_running(case.vm, domain, host.name):
        return _probe(case, place_)
    if domain.managed_save:
        return _do(case, act.DiscardManagedSave(host.name, domain.uuid), Say("Deleting"), host)
    return _do(case, act.Undefine(host.name, domain.uuid), Say("Deleting"), host)


def _remove_volumes(case: Case) -> Decision | None:
    """Volumes we made and whose disk says Delete, on every host where the VM may have been and that answers."""
    for candidate in case.vm.status.candidates:
        host = host_of(case.view, candidate.hypervisor, candidate.host_uuid)
        if host is None or isinstance(host.answer, Unknown):
            continue
        if (step := _remove_volumes_on(case, host)) is not None:
            return step
    return None


def _remove_volumes_on(case: Case, host: HostView) -> Decision | None:
    disks = [disk for disk in case.vm.spec.disks if disk.deletion_policy == "Delete" and disk.source.volume is None]
    pools = {disk.name: wanted.find_pool(host.spec, disk.pool) for disk in disks}
    names = tuple(sorted({pool.pool for pool in pools.values() if pool}))
    if names and (not case.view.fresh or any(name not in host.volumes for name in names)):
        return Decision(Say("Deleting"), look=Look(_concerned(case, host), host.name, names))
    for disk in disks:
        pool = pools[disk.name]
        there = host.volumes[pool.pool] if pool else frozenset[str]()
        if isinstance(there, Unknown):
            return Decision(
                Say(
                    "DeletingWaits",
                    f"pool {pool.pool if pool else ''!r} on Hypervisor {host.name}: {there.message}; "
                    f"or set deletionPolicy Retain on disk {disk.name!r}",
                ),
                requeue_after=30,
            )
        if pool and wanted.volume_name(case.vm, disk) in there:
            return _do(
                case, act.DeleteVolume(host.name, pool.pool, wanted.volume_name(case.vm, disk)), Say("Deleting"), host
            )
    return None


# Two definitions
# -----------------------------------------------------------------------------------------------------------


def _defined_twice(case: Case) -> Decision:
    """A definition is a permission to run: where the VM does not belong it is removed, when it is surely off there."""
    if not case.where.active and (saved := _managed_save(case)) is not None:
        return saved
    keep = _keeper(case)
    spare = [p for p in case.where.ours if p is not keep]
    for place_ in spare:
        if place_.domain.managed_save:
            return _stale_image(case, place_)
        if not place_.domain.active and not _survivor_possible(case, place_):
            say = Say("DefinedTwice", f"on {keep.host.name}, and off on {place_.host.name}")
            return _do(case, act.Undefine(place_.host.name, place_.domain.uuid), say, place_.host)
    return Decision(
        Say("DefinedTwice", "on " + " and on ".join(p.host.name for p in case.where.ours)), requeue_after=60
    )


def _stale_image(case: Case, place_: Place) -> Decision:
    """The VM runs elsewhere, and memory saved here keeps libvirt from removing the definition: its owner drops it."""
    name, wish = place_.host.name, case.vm.spec.managed_save
    say = Say("DefinedTwice", f"Hypervisor {name} has a managed-save image: drop it with spec.managedSave Discard")
    if wish is None or (wish.host, wish.action) != (name, "Discard"):
        return Decision(say)
    return _do(case, act.DiscardManagedSave(name, place_.domain.uuid), say, place_.host)


def _keeper(case: Case) -> Place:
    """The definition that stays.

    Of the one that runs, else of an image to be restored, else of the recorded candidate, else of the first by name.
    """
    saved = [p for p in case.where.ours if p.domain.managed_save]
    if case.where.active or saved:
        return (case.where.active or saved)[0]
    listed = [p for p in case.where.ours if _listed(case.vm, p.host)]
    return (listed or sorted(case.where.ours, key=lambda p: p.host.name))[0]


def _survivor_possible(case: Case, place_: Place) -> bool:
    """Whether the VM was last seen running on just this host, and how it ended there is not known."""
    name = place_.host.name
    return case.vm.status.host == name and runstrategy.maybe_running(case.vm, place_.domain, name)


# Common
# --------------------------------------------------------------------------------------------------------------------


def _concerned(case: Case, host: HostView) -> tuple[str, ...]:
    """The hosts to ask before anything is done: the target, those that have the VM, every one where it may be."""
    names = {host.name} | {p.host.name for p in case.where.ours}
    for candidate in case.vm.status.candidates:
        found = host_of(case.view, candidate.hypervisor, candidate.host_uuid)
        names |= {found.name} if found else set()
    if may_be_anywhere(case.vm) or case.where.behind:
        names |= set(case.view.hosts)
    return tuple(sorted(names))


def _fresh(case: Case) -> Decision | None:
    """A look at every host concerned, if what is known was not asked for after the object was read."""
    if case.view.fresh:
        return None
    hosts = [h for c in case.vm.status.candidates if (h := host_of(case.view, c.hypervisor, c.host_uuid))]
    names = tuple(sorted({h.name for h in hosts} | (set(case.view.hosts) if may_be_anywhere(case.vm) else set())))
    return Decision(Say("Deleting"), look=Look(names)) if names else None


def _do(case: Case, action: act.Action, say: Say, host: HostView) -> Decision:
    """Act, on fresh knowledge only; what libvirt said to the last attempt is part of what is said."""
    if not case.view.fresh:
        return Decision(say, look=Look(_concerned(case, host)))
    failure = case.view.failure
    if failure is not None and type(failure.action) is type(action):
        say = Say(say.reason, f"the last attempt was refused: {failure.message}")
    return Decision(say, action)


def _backing_off(case: Case, reason: str) -> Decision | None:
    """Wait after a failure: one that just happened is counted, one counted before is waited for."""
    failure, status = case.view.failure, case.vm.status
    if failure is not None:
        return Decision(Say(_failed_at(failure, reason), failure.message), failed=failure)
    if _short_run(case):
        note = Failure(
            act.Start("", wanted.domain_uuid(case.vm)), "it went off less than a minute after its start", case.now
        )
        first = status.start_failures is None or status.start_failures.count == 0
        return Decision(Say("Starting" if first else "CrashLoop", note.message), failed=note)
    if status.start_failures is None or status.start_failures.retry_time is None:
        return None
    left = (status.start_failures.retry_time - case.now).total_seconds()
    if left <= 0:
        return None
    kept = (
        status.reason
        if status.reason in ("StartFailed", "DefineFailed", "DiskFailed", "CrashLoop", "RecordLost")
        else reason
    )
    return Decision(Say(kept, status.start_failures.last_message or ""), requeue_after=left + 0.05)


def _failed_at(failure: Failure, otherwise: str) -> str:
    if isinstance(failure.action, act.CreateVolume):
        return "DiskFailed"
    return "DefineFailed" if isinstance(failure.action, act.Define) else otherwise


def _short_run(case: Case) -> bool:
    """Whether status still says that it runs, and since less than a minute."""
    status = case.vm.status
    was_running = status.domain is not None and status.domain.state in ACTIVE_STATES and status.state == "Running"
    return was_running and status.since is not None and case.now - status.since < timedelta(seconds=SHORT_RUN_SECONDS)
