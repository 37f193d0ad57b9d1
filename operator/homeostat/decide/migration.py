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
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import migration_checkpoints as checkpoints
from homeostat.decide.migration_before import before, begin
from homeostat.decide.migration_case import (
    LOOK_SECONDS,
    Case,
    MigrationDecision,
    MigrationView,
    after_grace,
    joined,
    say,
)
from homeostat.decide.migration_guide import guide
from homeostat.decide.migration_resolve import ask, pair
from homeostat.decide.migration_table import UNTOLD, Seen, Side, evidence, job, kind, row_of
from homeostat.decide.migration_volumes import finish
from homeostat.decide.view import Say

HELD = "cannot acquire state change lock"
"""What libvirt says for as long as it has a job, and for ever when it has lost the end of one (measured)."""
TOO_LATE = ("SwitchingOver", "Confirming", "PostCopying", "PostCopyInterrupted")


def decide(migration: VirtualMachineMigration, intent: IntentStatus, view: MigrationView) -> MigrationDecision:
    """The next step. The same observations at the same time always give the same one."""
    confirmed, locks = intent.started_paused == "Enabled", intent.locks == "Effective"
    row = row_of(view.source, view.target, confirmed=confirmed, locks=locks)
    case = Case(migration, intent, view, row, evidence(intent.attempt, view.source, view.target))
    if view.abandoned:  # not that nothing runs there: so nothing is let run here either, and its deletion goes on
        return finish(case, "Aborted", f"the VM is being deleted, and its spec.abandonHosts gives up {view.abandoned}")
    return _with_refusal(case, before(case) if case.unasked else _EFFECTS[row.effect](case))


def first_seen(migration: VirtualMachineMigration, source: Side, target: Side, now: datetime) -> datetime:
    """Since when this pair of observations has been seen, by status; now, if it is new."""
    seen, intent = migration.status.decision, migration.status.intent
    if seen is None or intent is None or seen.evidence != evidence(intent.attempt, source, target):
        return now
    return seen.since


def in_flight(migrations: Iterable[VirtualMachineMigration], vm: VirtualMachine) -> VirtualMachineMigration | None:
    """The migration that alone may touch the VM's domain now, on either host; None when there is none.

    One that is being deleted counts until it has ended, an Ambiguous one until it is resolved.
    """
    return next((each for each in migrations if _is_of(each, vm) and each.status.intent and not ended(each)), None)


def queued(migrations: Iterable[VirtualMachineMigration]) -> bool:
    """Whether one of a VM's migrations is still to be carried out."""
    return any(not each.status.intent and not ended(each) and not each.metadata.deleting for each in migrations)


def ended(migration: VirtualMachineMigration) -> bool:
    """Whether status says that the attempt is over."""
    return ended_at(migration) is not None


def ended_at(migration: VirtualMachineMigration) -> datetime | None:
    """When the attempt was seen to be over; None while it is not."""
    finished = condition(migration.status.conditions, "Finished")
    if finished is None or finished.status != "True":
        return None
    return migration.status.completion_time or finished.last_transition_time


def _is_of(migration: VirtualMachineMigration, vm: VirtualMachine) -> bool:
    return (migration.metadata.namespace, migration.spec.vm_ref.name) == (vm.metadata.namespace, vm.metadata.name)


# Waiting
# -----------------------------------------------------------------------------------------------------------


def _with_refusal(case: Case, decision: MigrationDecision) -> MigrationDecision:
    """The decision, with libvirt's words when it refused the step of this row the last time, and not at once again."""
    number, words = case.view.refused
    if number != case.row.number or decision.finished:
        return decision
    hint = "if that lasts, restart libvirtd there, which ends no VM" if HELD in words else ""
    detail = joined(decision.say.detail, f"libvirt refused the last step: {words}", hint)
    wait = max(decision.requeue_after or 0.0, LOOK_SECONDS)
    return replace(decision, say=Say(decision.say.reason, detail), requeue_after=wait)


def _wait(case: Case) -> MigrationDecision:
    """Nothing can be done; who asked to stop is told so, and what a host says that does not tell its job."""
    if case.row.number == "8" and case.view.calling and case.migration.status.start_time is None:
        return say(case, "Preparing")  # the source was looked at before its job began
    return say(case, case.row.reason, joined(_too_late(case), case.view.untold))


def _too_late(case: Case) -> str:
    late = case.stop and case.row.reason in TOO_LATE
    return f"{case.stop}, and it can no longer be stopped" if late else ""


# Acting
# ------------------------------------------------------------------------------------------------------------


def _seen_twice(case: Case, reason: str, action: act.MigrationAction) -> MigrationDecision:
    """Let CPUs run: only when the same was seen before, so that the target was looked at after the source."""
    return say(case, reason, action=action if case.twice else None, requeue_after=0.0)


def _settle(case: Case) -> MigrationDecision:
    target, source, uuid = case.view.target, case.view.source, case.intent.domain_uuid
    if isinstance(target, Seen) and not target.persistent:
        return say(case, "Arrived", action=act.PersistTarget(case.intent.target, uuid), requeue_after=0.0)
    if (lacking := checkpoints.missing(case.marks, target)) and not case.settled:
        return _redefine(case, "Arrived", lacking[0])
    if isinstance(source, Seen):
        return after_grace(case, "Arrived", act.UndefineStale(case.intent.source, uuid))
    return finish(case, "Migrated", checkpoints.left_out(lacking), moved=True)


def _redefine(case: Case, reason: str, one: CheckpointStatus) -> MigrationDecision:
    """One that is refused is tried again until the grace period is over, which begins anew with each that is not."""
    action = act.RedefineCheckpoint(case.intent.target, case.intent.domain_uuid, one.xml)
    return say(case, reason, f"checkpoint {one.name!r} is redefined", action=action, requeue_after=0.5)


def _roll_back(case: Case) -> MigrationDecision:
    """The source runs and nothing is under way: not begun yet, or it came to nothing."""
    if isinstance(case.view.target, Seen):
        return _remove_target(case)
    if case.view.calling:
        waits = f"{case.stop}; libvirt's call has to return first, or to show a job that can be stopped"
        reason = "Preparing" if case.migration.status.start_time is None else "NotMoved"
        return say(case, reason, waits if case.stop else "")
    ended = case.view.ended or case.marks.not_prepared
    if not case.stop and not ended and case.migration.status.start_time is None:
        return begin(case)
    return _came_to_nothing(case)


def _remove_target(case: Case) -> MigrationDecision:
    """A definition there has had the guest run: what it wrote stays, and who keeps the VM is told."""
    decision = after_grace(case, "NotMoved", act.UndefineStale(case.intent.target, case.intent.domain_uuid))
    if case.marks.target_ran or not _has_run_there(case):
        return decision
    return replace(decision, marks=case.marks.model_copy(update={"target_ran": case.view.now}))


def _has_run_there(case: Case) -> bool:
    """It is made right before the guest's CPUs run: not if only we let them run, nor if they were refused.

    None was there when libvirt was asked, nor when a copy was made ready.
    """
    source, target = case.view.source, case.view.target
    if case.intent.started_paused == "Enabled":
        return False
    canceled = isinstance(source, Seen) and source.reason == "MigrationCanceled"
    begun = case.migration.status.start_time or case.marks.asked or canceled
    refused = isinstance(target, Seen) and target.reason == "Failed"
    return case.marks.volume_made is not None or (bool(begun) and not refused)


def _came_to_nothing(case: Case) -> MigrationDecision:
    """Say why, once no call that is still on its way can begin it after all."""
    if _may_still_begin(case):
        return say(case, "NotMoved")
    call, begun = case.view.ended, case.migration.status.start_time is not None
    if case.marks.not_prepared:
        return finish(case, "StorageNotReady", case.marks.not_prepared)
    if case.marks.timed_out:
        return finish(case, "TimedOut", f"the {case.marks.timed_out.lower()} time-out has passed")
    if case.stop:
        return finish(case, "Aborted", case.stop)
    words = call.message if call else case.migration.status.last_message or ""
    reason = "RolledBack" if begun else "NoPostCopy" if call and call.no_post_copy else "Refused"
    return finish(case, reason, f"libvirt said: {words}" if words else "")


def _end_source(case: Case) -> MigrationDecision:
    decision = after_grace(case, case.row.reason, act.DestroyStale(case.intent.source, case.intent.domain_uuid))
    if decision.action is None:
        return decision
    return replace(decision, marks=case.marks.model_copy(update={"ended_source": case.view.now}))


def _end_target(case: Case) -> MigrationDecision:
    return after_grace(case, case.row.reason, act.DestroyStale(case.intent.target, case.intent.domain_uuid))


def _resume_source(case: Case) -> MigrationDecision:
    return _seen_twice(case, "Resuming", act.Resume(case.intent.source, case.intent.domain_uuid))


def _resume_source_if_ours(case: Case) -> MigrationDecision:
    kept = case.marks.resolved is not None and case.marks.resolved.keep == "KeepSource"
    if kept or case.marks.frozen or case.marks.force_completed:
        return _resume_source(case)
    return say(case, "NotMoved") if case.view.calling else _came_to_nothing(case)


def _resume_target(case: Case) -> MigrationDecision:
    return _seen_twice(case, "Resuming", act.Resume(case.intent.target, case.intent.domain_uuid))


def _resume_target_if_ours(case: Case) -> MigrationDecision:
    """A source that we ended had not run since the switchover; one that went off by itself may have."""
    return _resume_target(case) if case.marks.ended_source and kind(case.view.source) == "off" else ask(case)


def _resume_post_copy(case: Case) -> MigrationDecision:
    """Ask libvirt to go on, again and again: that it says it failed proves nothing, QEMU may go on by itself then."""
    view, said = case.view, case.migration.status.last_message
    detail = joined(_too_late(case), f"libvirt said: {said}" if said else "", view.untold)
    waiting = say(case, "PostCopyInterrupted", detail)
    if kind(view.source) != "postcopy-failed" or view.calling or UNTOLD in (job(view.source), job(view.target)):
        return waiting
    left = view.resume - view.called
    if left > 0:  # a call that fails at once wakes this up again
        return replace(waiting, requeue_after=min(left, LOOK_SECONDS))
    return replace(waiting, action=act.ResumePostCopy(view.request))


def _down(case: Case) -> MigrationDecision:
    """The VM is down: it may be started again once no call that is still on its way can move it then."""
    if not case.twice or _may_still_begin(case):
        return say(case, "RollingBack", requeue_after=1.0)
    return finish(case, "VMDown")


def _may_still_begin(case: Case) -> bool:
    """Whether libvirt may yet carry out the call: nothing was ever seen of it, and it was not refused.

    What was seen may have been so for long before libvirt was asked: the grace period counts from then.
    """
    begun, call, asked = case.migration.status.start_time is not None, case.view.ended, case.marks.asked
    lately = asked is not None and (case.view.now - asked).total_seconds() < case.view.grace
    return not (begun or (case.settled and not lately) or (call is not None and call.refused))


def _ended(case: Case) -> MigrationDecision:
    lacking = checkpoints.missing(case.marks, case.view.target)
    if lacking and isinstance(case.view.target, Seen) and not case.settled:
        return _redefine(case, "ArrivedThenOff", lacking[0])
    if isinstance(case.view.source, Seen) and isinstance(case.view.target, Seen):
        return after_grace(case, "ArrivedThenOff", act.UndefineStale(case.intent.source, case.intent.domain_uuid))
    return finish(case, "MigratedThenOff", checkpoints.left_out(lacking), moved=True)


# What a person decides
# ----------------------------------------------------------------------------------------------


def _freeze(case: Case) -> MigrationDecision:
    """Both run: stop one at once, which harms nothing, and end neither."""
    if kind(case.view.source) not in ("running", "arrived"):
        return ask(case)
    action = act.Suspend(case.intent.source, case.intent.domain_uuid)
    marks = case.marks.model_copy(update={"frozen": case.view.now})
    return say(case, "SplitBrain", pair(case), action=action, marks=marks, ambiguous=True, requeue_after=0.0)


def _freeze_if_it_lasts(case: Case) -> MigrationDecision:
    """Of a migration no longer than the two looks, the source may be shown before it and the target after it."""
    return _freeze(case) if case.twice else say(case, "Undecided", pair(case), requeue_after=0.0)


def _doubt(case: Case) -> MigrationDecision:
    """The target is unknown. A call that was refused, with no job ever seen, has not brought anything there."""
    call = case.view.ended
    if case.migration.status.start_time is None and call is not None and call.refused and case.settled:
        return finish(case, "TargetUnreachable", f"libvirt said: {call.message}")
    return ask(case) if case.row.number == "12b" else _wait(case)


_EFFECTS: dict[str, Callable[[Case], MigrationDecision]] = {
    "wait": _wait,
    "guide": guide,
    "settle": _settle,
    "roll back": _roll_back,
    "end source": _end_source,
    "resume source": _resume_source,
    "resume source if ours": _resume_source_if_ours,
    "freeze": _freeze,
    "freeze if it lasts": _freeze_if_it_lasts,
    "end target": _end_target,
    "resume target": _resume_target,
    "resume target if ours": _resume_target_if_ours,
    "resume post-copy": _resume_post_copy,
    "down": _down,
    "ended": _ended,
    "doubt": _doubt,
    "ask": ask,
}
