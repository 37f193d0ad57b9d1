# SPDX-License-Identifier: Apache-2.0
"""The next step of a migration that has been written down: one action, or none and why.

What libvirt's call returned or raised decides nothing. Both hosts are looked at, the pair of answers names a row of
homeostat.decide.migration_table, and the row names what is done. The source is to be looked at before the target: a
target that has nothing after the source was seen without a job will not get it any more.

Nothing is done to a side that is unknown. What ends a process or removes a definition waits until the same pair has
been seen for the grace period, and for both sides to have no job. While a migration is in flight (`in_flight`), the
decision about its VM does nothing to a host: no start, no stop, no definition, no change of its candidates but to add
the target, without which no migration is begun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime

from homeostat.api import actions as act
from homeostat.api.meta import condition
from homeostat.api.migration import CheckpointStatus, IntentStatus, VirtualMachineMigration
from homeostat.api.observed import Absent, Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import migration_checkpoints as checkpoints
from homeostat.decide import migration_copy as copies
from homeostat.decide.migration_case import LOOK_SECONDS, CallEnded, Case, MigrationDecision, MigrationView
from homeostat.decide.migration_table import (
    HALVES,
    UNTOLD,
    WITHOUT_PROCESS,
    Seen,
    Side,
    described,
    evidence,
    job,
    kind,
    row_of,
)
from homeostat.decide.view import Say

__all__ = ["CallEnded", "Case", "MigrationDecision", "MigrationView", "decide", "ended", "in_flight"]

ASK_AGAIN_SECONDS = 10.0
AT_ONCE = ("11", "11b", "11c")
"""Rows that are Ambiguous at once: both hosts have run the VM."""
HELD = "cannot acquire state change lock"
"""What libvirt says for as long as it has a job, and for ever when it has lost the end of one (measured)."""
TOO_LATE = ("SwitchingOver", "Confirming", "PostCopying", "PostCopyInterrupted")


def decide(migration: VirtualMachineMigration, intent: IntentStatus, view: MigrationView) -> MigrationDecision:
    """The next step. The same observations at the same time always give the same one."""
    confirmed, locks = intent.started_paused == "Enabled", intent.locks == "Effective"
    row = row_of(view.source, view.target, confirmed=confirmed, locks=locks)
    case = Case(migration, intent, view, row, evidence(intent.attempt, view.source, view.target))
    return _with_refusal(case, _EFFECTS[row.effect](case))


def first_seen(migration: VirtualMachineMigration, source: Side, target: Side, now: datetime) -> datetime:
    """Since when this pair of observations has been seen, by status; now, if it is new."""
    seen, intent = migration.status.decision, migration.status.intent
    if seen is None or intent is None or seen.evidence != evidence(intent.attempt, source, target):
        return now
    return seen.since


def asked_lately(mark: datetime | None, now: datetime) -> bool:
    """Whether a step was asked for so lately that it may not be seen yet.

    A mark is written before its step is taken, so it proves nothing: a step that is not seen is taken again.
    """
    return mark is not None and (now - mark).total_seconds() < ASK_AGAIN_SECONDS


def in_flight(migrations: Iterable[VirtualMachineMigration], vm: VirtualMachine) -> VirtualMachineMigration | None:
    """The migration that alone may touch the VM's domain now, on either host; None when there is none.

    One that is being deleted counts until it has ended, an Ambiguous one until it is resolved.
    """
    return next((each for each in migrations if _is_of(each, vm) and each.status.intent and not ended(each)), None)


def ended(migration: VirtualMachineMigration) -> bool:
    """Whether status says that the attempt is over."""
    finished = condition(migration.status.conditions, "Finished")
    return finished is not None and finished.status == "True"


def _is_of(migration: VirtualMachineMigration, vm: VirtualMachine) -> bool:
    return (migration.metadata.namespace, migration.spec.vm_ref.name) == (vm.metadata.namespace, vm.metadata.name)


# Waiting
# -----------------------------------------------------------------------------------------------------------


def _say(case: Case, reason: str, detail: str = "", **fields: object) -> MigrationDecision:
    return MigrationDecision(Say(reason, detail), case.row, case.evidence, **fields)  # type: ignore[arg-type]


def _with_refusal(case: Case, decision: MigrationDecision) -> MigrationDecision:
    """The decision, with libvirt's words when it refused the step of this row the last time."""
    number, words = case.view.refused
    if number != case.row.number or decision.finished:
        return decision
    hint = "if that lasts, restart libvirtd there, which ends no VM" if HELD in words else ""
    detail = _joined(decision.say.detail, f"libvirt refused the last step: {words}", hint)
    return replace(decision, say=Say(decision.say.reason, detail))


def _joined(*details: str) -> str:
    return "; ".join(detail for detail in details if detail)


def _wait(case: Case) -> MigrationDecision:
    """Nothing can be done; who asked to stop is told so, and what a host says that does not tell its job."""
    if case.row.number == "8" and case.view.calling and case.migration.status.start_time is None:
        return _say(case, "Preparing")  # the source was looked at before its job began
    return _say(case, case.row.reason, _joined(_too_late(case), case.view.untold))


def _too_late(case: Case) -> str:
    late = case.stop and case.row.reason in TOO_LATE
    return f"{case.stop}, and it can no longer be stopped" if late else ""


def _guide(case: Case) -> MigrationDecision:
    """The source runs and copies: the one place where it can be stopped."""
    if case.stop:
        return _abort(case, case.stop)
    advice, source = case.view.advice, case.intent.source
    match advice.step:
        case "Abort":
            return _abort(case, advice.detail, timed_out=advice.time_out)
        case "SetMaxDowntime":
            return _say(
                case, "Copying", action=act.SetMaxDowntime(source, case.intent.domain_uuid, advice.milliseconds)
            )
        case "PostCopy":
            return _step(case, act.StartPostCopy(source, case.intent.domain_uuid), "post_copy")
        case "Suspend":
            return _step(case, act.Suspend(source, case.intent.domain_uuid), "force_completed")
        case _:
            return _say(case, "Copying", advice.detail)


def _step(case: Case, action: act.MigrationAction, mark: str) -> MigrationDecision:
    marks = case.marks.model_copy(update={mark: case.view.now, "timed_out": case.view.advice.time_out or None})
    return _say(case, "Copying", case.view.advice.detail, action=action, marks=marks)


def _abort(case: Case, why: str, *, timed_out: str = "") -> MigrationDecision:
    asked = case.marks.aborted
    if asked is not None and timed_out:  # the rates in its words change all the time
        why = f"the {timed_out.lower()} time-out has passed"
    if asked is not None and (left := ASK_AGAIN_SECONDS - (case.view.now - asked).total_seconds()) > 0:
        return _say(case, "Aborting", why, requeue_after=min(left, LOOK_SECONDS))
    update = {"aborted": case.view.now, "timed_out": timed_out or case.marks.timed_out}
    action = act.AbortMigration(case.intent.source, case.intent.domain_uuid)
    return _say(case, "Aborting", why, action=action, marks=case.marks.model_copy(update=update))


# Acting
# ------------------------------------------------------------------------------------------------------------


def _after_grace(case: Case, reason: str, action: act.MigrationAction) -> MigrationDecision:
    """End or remove something, when the same was seen for the grace period. The rows that do so are without jobs."""
    left = case.view.grace - (case.view.now - case.view.since).total_seconds()
    if left > 0:
        return _say(case, reason, requeue_after=max(min(left, LOOK_SECONDS), 0.05))
    return _say(case, reason, action=action, requeue_after=0.0)


def _seen_twice(case: Case, reason: str, action: act.MigrationAction) -> MigrationDecision:
    """Let CPUs run: only when the same was seen before, so that the target was looked at after the source."""
    if case.view.since >= case.view.now:
        return _say(case, reason, requeue_after=0.0)
    return _say(case, reason, action=action, requeue_after=0.0)


def _settle(case: Case) -> MigrationDecision:
    target, source, uuid = case.view.target, case.view.source, case.intent.domain_uuid
    if isinstance(target, Seen) and not target.persistent:
        return _say(case, "Arrived", action=act.PersistTarget(case.intent.target, uuid), requeue_after=0.0)
    if (lacking := checkpoints.missing(case.marks, target)) and not case.settled:
        return _redefine(case, "Arrived", lacking[0])
    if isinstance(source, Seen):
        return _after_grace(case, "Arrived", act.UndefineStale(case.intent.source, uuid))
    return _finish(case, "Migrated", checkpoints.left_out(lacking), moved=True)


def _redefine(case: Case, reason: str, one: CheckpointStatus) -> MigrationDecision:
    """One that is refused is tried again until the grace period is over, which begins anew with each that is not."""
    action = act.RedefineCheckpoint(case.intent.target, case.intent.domain_uuid, one.xml)
    return _say(case, reason, f"checkpoint {one.name!r} is redefined", action=action, requeue_after=0.5)


def _roll_back(case: Case) -> MigrationDecision:
    """The source runs and nothing is under way: not begun yet, or it came to nothing."""
    if isinstance(case.view.target, Seen):
        return _remove_target(case)
    if case.view.calling:
        return _say(case, "Preparing" if case.migration.status.start_time is None else "NotMoved")
    ended = case.view.ended or case.marks.not_prepared
    if not case.stop and not ended and case.migration.status.start_time is None:
        return _begin(case)
    return _came_to_nothing(case)


def _remove_target(case: Case) -> MigrationDecision:
    """After a copy was made ready, a definition there has had the guest run, unless only we do: what it wrote stays."""
    decision = _after_grace(case, "NotMoved", act.UndefineStale(case.intent.target, case.intent.domain_uuid))
    if case.marks.volume_made is None or case.marks.target_ran or case.intent.started_paused == "Enabled":
        return decision
    return replace(decision, marks=case.marks.model_copy(update={"target_ran": case.view.now}))


def _begin(case: Case) -> MigrationDecision:
    """Call libvirt. Calling twice is harmless: libvirt refuses a second migration of a domain that is in one."""
    if kind(case.view.target) == "out":
        return _finish(case, "TargetUnreachable", f"Hypervisor {case.intent.target} is out of service")
    if not case.view.listed:
        return _say(case, "Preparing", f"Hypervisor {case.intent.target} is being recorded as a candidate of the VM")
    if (storage := _volumes(case, "Preparing", copies.prepare)) is not None:
        return storage
    marks = checkpoints.recorded(case.marks, case.view.source)
    return _say(case, "Preparing", action=case.view.request, marks=marks, requeue_after=1.0)


def _came_to_nothing(case: Case) -> MigrationDecision:
    """Say why, once no call that is still on its way can begin it after all."""
    if _may_still_begin(case):
        return _say(case, "NotMoved")
    call, begun = case.view.ended, case.migration.status.start_time is not None
    if case.marks.not_prepared:
        return _finish(case, "StorageNotReady", case.marks.not_prepared)
    if case.marks.timed_out:
        return _finish(case, "TimedOut", f"the {case.marks.timed_out.lower()} time-out has passed")
    if case.stop:
        return _finish(case, "Aborted", case.stop)
    words = call.message if call else case.migration.status.last_message or ""
    reason = "RolledBack" if begun else "NoPostCopy" if call and call.no_post_copy else "Refused"
    return _finish(case, reason, f"libvirt said: {words}" if words else "")


def _end_source(case: Case) -> MigrationDecision:
    decision = _after_grace(case, case.row.reason, act.DestroyStale(case.intent.source, case.intent.domain_uuid))
    if decision.action is None:
        return decision
    return replace(decision, marks=case.marks.model_copy(update={"ended_source": case.view.now}))


def _end_target(case: Case) -> MigrationDecision:
    return _after_grace(case, case.row.reason, act.DestroyStale(case.intent.target, case.intent.domain_uuid))


def _resume_source(case: Case) -> MigrationDecision:
    return _seen_twice(case, "Resuming", act.Resume(case.intent.source, case.intent.domain_uuid))


def _resume_source_if_ours(case: Case) -> MigrationDecision:
    kept = case.marks.resolved is not None and case.marks.resolved.keep == "KeepSource"
    if kept or case.marks.frozen or case.marks.force_completed:
        return _resume_source(case)
    return _came_to_nothing(case)


def _resume_target(case: Case) -> MigrationDecision:
    return _seen_twice(case, "Resuming", act.Resume(case.intent.target, case.intent.domain_uuid))


def _resume_target_if_ours(case: Case) -> MigrationDecision:
    """A source that we ended had not run since the switchover; one that went off by itself may have."""
    return _resume_target(case) if case.marks.ended_source and kind(case.view.source) == "off" else _ask(case)


def _resume_post_copy(case: Case) -> MigrationDecision:
    """Ask libvirt to go on, again and again: that it says it failed proves nothing, QEMU may go on by itself then."""
    view, said = case.view, case.migration.status.last_message
    detail = _joined(_too_late(case), f"libvirt said: {said}" if said else "", view.untold)
    waiting = _say(case, "PostCopyInterrupted", detail)
    if kind(view.source) != "postcopy-failed" or view.calling or UNTOLD in (job(view.source), job(view.target)):
        return waiting
    left = view.resume - view.called
    if left > 0:  # a call that fails at once wakes this up again
        return replace(waiting, requeue_after=min(left, LOOK_SECONDS))
    return replace(waiting, action=act.ResumePostCopy(view.request))


def _down(case: Case) -> MigrationDecision:
    """The VM is down: it may be started again once no call that is still on its way can move it then."""
    if case.view.since >= case.view.now or _may_still_begin(case):
        return _say(case, "RollingBack", requeue_after=1.0)
    return _finish(case, "VMDown")


def _may_still_begin(case: Case) -> bool:
    """Whether libvirt may yet carry out the call: nothing was ever seen of it, and it was not refused."""
    begun, call = case.migration.status.start_time is not None, case.view.ended
    return not (begun or case.settled or (call is not None and call.refused))


def _ended(case: Case) -> MigrationDecision:
    lacking = checkpoints.missing(case.marks, case.view.target)
    if lacking and isinstance(case.view.target, Seen) and not case.settled:
        return _redefine(case, "ArrivedThenOff", lacking[0])
    if isinstance(case.view.source, Seen) and isinstance(case.view.target, Seen):
        return _after_grace(case, "ArrivedThenOff", act.UndefineStale(case.intent.source, case.intent.domain_uuid))
    return _finish(case, "MigratedThenOff", checkpoints.left_out(lacking), moved=True)


# Storage that is copied
# ---------------------------------------------------------------------------------------------


def _finish(case: Case, reason: str, detail: str = "", *, moved: bool = False) -> MigrationDecision:
    """The attempt is over when its volumes are in order."""
    step = copies.complete if moved else copies.clean
    if (storage := _volumes(case, "Arrived" if moved else "CleaningUp", step)) is not None:
        return storage
    left = copies.left(_known(case), moved=moved) if case.intent.copies else ""
    return _say(case, reason, "; ".join(filter(None, (detail, left))), requeue_after=None)


def _volumes(
    case: Case, reason: str, decide: Callable[[copies.Volumes], copies.Step | None]
) -> MigrationDecision | None:
    """The next step with the volumes of disks that are copied, on what their pools show now; None when none is left."""
    if not case.intent.copies:
        return None
    if case.view.volumes is None:
        return _say(case, reason, look_at_volumes=True, requeue_after=0.0)
    step, error = decide(_known(case)), case.view.volume_error
    if step is None:
        return None
    if decide is copies.prepare and (step.refused or error):
        marks = case.marks.model_copy(update={"not_prepared": error or step.detail})
        return _say(case, reason, error or step.detail, marks=marks, requeue_after=0.0)
    return _handle(case, reason, step)


def _handle(case: Case, reason: str, step: copies.Step) -> MigrationDecision:
    """Make or remove a volume; what was just refused is asked for again later."""
    made = isinstance(step.action, act.CreateVolume)
    asked = case.marks.volume_made if made else case.marks.volume_removed
    if step.action is None:
        return _say(case, reason, step.detail)
    if case.view.refused[0] == case.row.number and asked_lately(asked, case.view.now):
        return _say(case, reason, f"{step.detail}; libvirt said: {case.view.refused[1]}")
    marks = case.marks.model_copy(update={"volume_made" if made else "volume_removed": case.view.now})
    return _say(case, reason, step.detail, action=step.action, marks=marks, requeue_after=0.0)


def _known(case: Case) -> copies.Volumes:
    """A source that was ended, or that went off as migrated, does not count; nor one that is gone."""
    source, target, marks = case.view.source, case.view.target, case.marks
    counts = isinstance(source, Seen) and kind(source) != "off-migrated" and marks.ended_source is None
    silent = {case.intent.source: kind(source), case.intent.target: kind(target)}
    return copies.Volumes(
        case.intent,
        marks,
        case.view.volumes or {},
        case.view.now,
        case.view.grace,
        frozenset(host for host, what in silent.items() if what in ("unknown", "out")),
        source_counts=counts,
        discard=counts and marks.target_ran is None and marks.resolved is None,
    )


# What a person decides
# ----------------------------------------------------------------------------------------------


def _freeze(case: Case) -> MigrationDecision:
    """Both run: stop one at once, which harms nothing, and end neither."""
    if kind(case.view.source) not in ("running", "arrived"):
        return _ask(case)
    action = act.Suspend(case.intent.source, case.intent.domain_uuid)
    marks = case.marks.model_copy(update={"frozen": case.view.now})
    return _say(case, "SplitBrain", _pair(case), action=action, marks=marks, ambiguous=True, requeue_after=0.0)


def _doubt(case: Case) -> MigrationDecision:
    """The target is unknown. A call that was refused, with no job ever seen, has not brought anything there."""
    call = case.view.ended
    if case.migration.status.start_time is None and call is not None and call.refused and case.settled:
        return _finish(case, "TargetUnreachable", f"libvirt said: {call.message}")
    return _ask(case) if case.row.number == "12b" else _wait(case)


def _ask(case: Case) -> MigrationDecision:
    """Ambiguous, unless it passes within the grace period; or what spec.resolve says."""
    if case.row.number not in AT_ONCE and not case.settled:
        return _say(case, "Undecided", _pair(case))
    answer, accepted = case.migration.spec.resolve, case.marks.resolved
    if answer is None:
        return _say(case, case.row.reason, _pair(case), ambiguous=True)
    if answer == accepted:
        return _as_told(case, answer.keep)
    if answer.evidence != case.evidence:
        detail = f"spec.resolve answers evidence {answer.evidence}, which is no longer what is seen; {_pair(case)}"
        return _say(case, case.row.reason, detail, ambiguous=True)
    marks = case.marks.model_copy(update={"resolved": answer})
    return _say(case, "Resolving", f"spec.resolve is {answer.keep}", marks=marks, ambiguous=True, requeue_after=0.0)


def _pair(case: Case) -> str:
    view, intent = case.view, case.intent
    return (
        f"source {intent.source}: {described(view.source)}; target {intent.target}: {described(view.target)};"
        f" evidence {case.evidence}"
    )


def _as_told(case: Case, keep: str) -> MigrationDecision:
    """Drop the copy that is not to be kept, then let the other one's CPUs run. Nothing is done to an unknown side."""
    view, intent = case.view, case.intent
    kept, dropped = (view.source, view.target) if keep == "KeepSource" else (view.target, view.source)
    here, there = (intent.source, intent.target) if keep == "KeepSource" else (intent.target, intent.source)
    if isinstance(kept, Absent) and isinstance(dropped, Absent):
        return _finish(case, "VMDown", f"spec.resolve is {keep}, and neither host has anything of the VM")
    if isinstance(kept, Unknown):
        return _say(case, case.row.reason, f"spec.resolve is {keep}, and that host cannot be asked", ambiguous=True)
    if isinstance(dropped, Seen):
        return _drop(case, dropped, there)
    if kind(kept) in ("held", "starting", "paused", "stuck"):
        return _told(case, act.Resume(here, intent.domain_uuid))
    if kind(kept) in HALVES:
        return _told(case, act.DestroyStale(here, intent.domain_uuid))
    if isinstance(dropped, Unknown):
        return _say(case, "TargetUnknown" if keep == "KeepSource" else "SourceUnknown", f"spec.resolve is {keep}")
    return _say(case, case.row.reason, _pair(case), ambiguous=True)


def _drop(case: Case, side: Seen, host: str) -> MigrationDecision:
    remove = act.UndefineStale if kind(side) in WITHOUT_PROCESS else act.DestroyStale
    return _told(case, remove(host, case.intent.domain_uuid))


def _told(case: Case, action: act.MigrationAction) -> MigrationDecision:
    """A person's answer still waits for the grace period, and for jobs other than those of a broken post-copy."""
    if not case.settled or not (case.idle or case.row.reason == "MemoryLost"):
        return _say(case, "Resolving", _pair(case), ambiguous=True)
    return _say(case, "Resolving", action=action, ambiguous=True, requeue_after=0.0)


_EFFECTS: dict[str, Callable[[Case], MigrationDecision]] = {
    "wait": _wait,
    "guide": _guide,
    "settle": _settle,
    "roll back": _roll_back,
    "end source": _end_source,
    "resume source": _resume_source,
    "resume source if ours": _resume_source_if_ours,
    "freeze": _freeze,
    "end target": _end_target,
    "resume target": _resume_target,
    "resume target if ours": _resume_target_if_ours,
    "resume post-copy": _resume_post_copy,
    "down": _down,
    "ended": _ended,
    "doubt": _doubt,
    "ask": _ask,
}
