# SPDX-License-Identifier: Apache-2.0
"""What is said of a migration: its status, made anew from the decision and what was seen; and a side from an answer."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal, cast

from homeostat.api import reasons
from homeostat.api.meta import Condition, rfc3339, set_condition
from homeostat.api.migration import (
    CostStatus,
    DecisionStatus,
    MarksStatus,
    ObservationStatus,
    ProgressStatus,
    VirtualMachineMigration,
    VirtualMachineMigrationStatus,
)
from homeostat.api.observed import ACTIVE_STATES, Absent, Answer, Present, Unknown
from homeostat.decide.migration import ended_at
from homeostat.decide.migration_case import MigrationDecision, MigrationView
from homeostat.decide.migration_planning import Plan
from homeostat.decide.migration_policy import MIB, Progress, progress_due
from homeostat.decide.migration_table import OutOfService, Seen, Side, kind
from homeostat.decide.view import Say

Truth = Literal["True", "False", "Unknown"]
RECORD_LOST = "RecordLost"
INCOMING = (("Paused", "Migration"), ("Paused", "StartingUp"))
NOT_BEGUN = ("5", "12", "12b", "15", "16", "16b", "16c", "25", "26", "26b", "28")
"""Rows that are also seen when libvirt has not begun, or was not asked yet."""


def side_of(
    answer: Answer, job: str | None, old: ObservationStatus | None, *, released: bool, cpus: bool | None = None
) -> Side:
    """One host's side, from its answer and its job (Out, In, Other, Unknown, None).

    `old` is what status says of this side: it tells whether a process was the last that was seen of a domain that is
    off and that libvirt gives no reason for. `released`: the host is declared out of service, and silent since.
    """
    match answer:
        case Present(domain=domain):
            lost = domain.state == "Shutoff" and old is not None and _lost(domain.reason, old)
            return Seen(domain.state, domain.reason, job, domain.persistent, lost, cpus, domain.checkpoints)
        case Absent():
            return answer
        case Unknown():
            return OutOfService() if released else answer


def _lost(reason: str, old: ObservationStatus) -> bool:
    """Failed is also what libvirt says of an incoming process that it ended because its CPUs could not run."""
    incoming = (old.state, old.reason) in INCOMING
    had_process = old.reason == RECORD_LOST or old.state in ACTIVE_STATES
    return had_process and (reason == "Unknown" or (reason == "Failed" and not incoming))


def status(
    migration: VirtualMachineMigration, view: MigrationView, decision: MigrationDecision
) -> VirtualMachineMigrationStatus:
    """The whole status of a migration with an intent, but for progress and cost, which are kept as they are."""
    old, now, row = migration.status, view.now, reasons.MIGRATION[decision.say.reason]
    marks = decision.marks or old.marks
    begun = old.start_time or (now if _begun(old, view, decision) else None)
    since = old.since if old.since and (old.phase, old.reason) == (row.state, decision.say.reason) else now
    return old.model_copy(
        update={
            "observed_generation": migration.metadata.generation,
            "phase": row.state,
            "reason": decision.say.reason,
            "since": since,
            "source": old.intent.source if old.intent else old.source,
            "target": old.intent.target if old.intent else old.target,
            "marks": marks,
            "decision": _decision(migration, view, decision),
            "start_time": begun,
            "completion_time": old.completion_time or (now if decision.finished else None),
            "last_message": (view.ended.message if view.ended else "") or old.last_message,
            "cost": _cost(old, now, begun) if decision.finished else old.cost,
            "conditions": conditions(migration, decision.say, now, ambiguous=decision.ambiguous, since=since),
        }
    )


def _begun(old: VirtualMachineMigrationStatus, view: MigrationView, decision: MigrationDecision) -> bool:
    """Whether what is seen proves that libvirt has begun: not by a source that was paused otherwise."""
    number, unasked = decision.row.number, old.marks is not None and old.marks.not_asked is not None
    return not unasked and number not in NOT_BEGUN and (number != "10" or kind(view.source) == "held")


def planned(migration: VirtualMachineMigration, plan: Plan, now: datetime) -> VirtualMachineMigrationStatus:
    """The whole status of a migration that has no intent yet, with the one that it is to have."""
    old, say = migration.status, plan.say
    row = reasons.MIGRATION[say.reason]
    return old.model_copy(
        update={
            "observed_generation": migration.metadata.generation,
            "phase": row.state,
            "reason": say.reason,
            "since": old.since if old.since and (old.phase, old.reason) == (row.state, say.reason) else now,
            "source": plan.source or old.source,
            "target": plan.target or old.target,
            "intent": plan.intent,
            "policy": plan.policy,
            "marks": MarksStatus(not_asked=now) if plan.intent else old.marks,
            "completion_time": old.completion_time or (now if row.ready != "Unknown" else None),
            "conditions": conditions(migration, say, now),
        }
    )


def progress(progress: Progress, old: ProgressStatus | None) -> ProgressStatus:
    """What is shown of a copy under way; the downtime limit last known, when libvirt does not tell it just now."""
    known = old.downtime_limit_milliseconds if old else None
    done = 100 - min(100, -(-100 * progress.remaining // progress.size)) if progress.size else 0
    return ProgressStatus(
        percent=done,
        remaining_mib=progress.remaining // MIB,
        dirty_mib_per_second=progress.dirty_rate // MIB,
        bandwidth_mib_per_second=progress.bandwidth // MIB,
        downtime_limit_milliseconds=known if progress.downtime_limit_ms is None else progress.downtime_limit_ms,
        iteration=progress.iteration,
        elapsed_seconds=int(progress.elapsed),
    )


def with_progress(status: VirtualMachineMigrationStatus, found: Progress) -> VirtualMachineMigrationStatus:
    """The status with what is shown of a copy; also in the last pass, when the job was seen right before its end."""
    figures = {"progress": progress(found, status.progress), "cost": cost_so_far(status.cost, found)}
    return status.model_copy(update=figures)


def due(
    old: VirtualMachineMigrationStatus, new: VirtualMachineMigrationStatus, progress: Progress | None, least: float
) -> bool:
    """Whether a status is to be written now: anything but figures at once, `progress` by and by (`progress_due`)."""
    figures = {"progress", "cost"}
    if progress is None or old.progress is None or new.wire(exclude=figures) != old.wire(exclude=figures):
        return new.wire() != old.wire()
    return progress_due(old.progress.elapsed_seconds, progress.elapsed, least)


def cost_so_far(old: CostStatus | None, progress: Progress) -> CostStatus:
    """What an attempt has cost when a copy under way has come this far."""
    return (old or CostStatus()).model_copy(update={"transferred_mib": progress.transferred // MIB})


def cost_at_end(old: CostStatus | None, transferred: int, downtime_ms: int | None) -> CostStatus:
    """What an attempt cost by what libvirt said after its end: bytes, milliseconds (None: it did not say)."""
    update = {"transferred_mib": transferred // MIB, "downtime_milliseconds": downtime_ms}
    return (old or CostStatus()).model_copy(update=update)


def expiry(migration: VirtualMachineMigration) -> datetime | None:
    """When the object may be deleted: its ttl after the end; None for one that has not ended, or is being deleted."""
    end = ended_at(migration)
    if end is None or migration.metadata.deleting:
        return None
    return end + timedelta(seconds=migration.spec.ttl_seconds_after_finished)


def _decision(migration: VirtualMachineMigration, view: MigrationView, decision: MigrationDecision) -> DecisionStatus:
    old = migration.status.decision
    return DecisionStatus.model_validate(
        {
            "row": decision.row.number,
            "owner": decision.row.owner,
            "since": view.since,
            "evidence": decision.evidence,
            "source": _observation(view.source, old.source if old else None, view.now),
            "target": _observation(view.target, old.target if old else None, view.now),
        }
    )


def _observation(side: Side, old: ObservationStatus | None, now: datetime) -> ObservationStatus:
    """A side as it is written down; what a host that cannot be asked showed last stays, for `side_of` to read."""
    if isinstance(side, Seen):
        new = ObservationStatus(
            answer="Present",
            state=side.state,
            reason=RECORD_LOST if side.lost else side.reason,
            job=side.job or "None",
            definition="Persistent" if side.persistent else "Transient",
            since=now,
        )
    else:
        names = {"absent": "Absent", "out": "OutOfService", "unknown": "Unknown"}
        kept = {} if isinstance(side, Absent) or old is None else {"state": old.state, "reason": old.reason}
        new = ObservationStatus.model_validate({"answer": names[kind(side)], "since": now, **kept})
    same = old is not None and old.model_copy(update={"since": new.since}) == new
    return old if same and old is not None else new


def _cost(old: VirtualMachineMigrationStatus, now: datetime, begun: datetime | None) -> CostStatus | None:
    if begun is None or old.completion_time is not None:
        return old.cost
    return (old.cost or CostStatus()).model_copy(update={"total_seconds": int((now - begun).total_seconds())})


def conditions(
    migration: VirtualMachineMigration,
    say: Say,
    now: datetime,
    *,
    ambiguous: bool = False,
    since: datetime | None = None,
) -> tuple[Condition, ...]:
    """Finished, Succeeded, Ambiguous and Queued; what waits for a host or a person says since when."""
    row, generation, rows = reasons.MIGRATION[say.reason], migration.metadata.generation, migration.status.conditions
    waits = row.state in ("Unknown", "Ambiguous") or say.reason == "PostCopyInterrupted"
    text = row.sentence(say.detail, rfc3339(since) if since and waits else "")
    finished, queued = row.ready != "Unknown", say.reason == "Queued"
    for kind_, value in (
        ("Finished", "True" if finished else "False"),
        ("Succeeded", row.ready),
        ("Ambiguous", "True" if ambiguous else "False"),
        ("Queued", "True" if queued else "False"),
    ):
        told = kind_ in ("Finished", "Succeeded") or value == "True"
        reason, message = (say.reason, text) if told else ("NotAmbiguous" if kind_ == "Ambiguous" else "NotQueued", "")
        rows = set_condition(rows, kind_, cast(Truth, value), reason, message or reasons.OTHER[reason], generation, now)
    return rows
