# SPDX-License-Identifier: Apache-2.0
"""What a migration shows that only a person can decide, and what becomes of the answer."""

from __future__ import annotations

from homeostat.api import actions as act
from homeostat.api.observed import Absent, Unknown
from homeostat.decide.migration_case import Case, MigrationDecision, say
from homeostat.decide.migration_table import HALVES, WITHOUT_PROCESS, OutOfService, Seen, Side, described, kind
from homeostat.decide.migration_volumes import finish

AT_ONCE = ("11", "11b", "11c")
"""Rows that are Ambiguous at once: both hosts have run the VM."""


def ask(case: Case) -> MigrationDecision:
    """Ambiguous, unless it passes within the grace period; or what spec.resolve says."""
    if case.row.number not in AT_ONCE and not case.settled:
        return say(case, "Undecided", pair(case))
    answer, accepted = case.migration.spec.resolve, case.marks.resolved
    if answer is None:
        return say(case, case.row.reason, pair(case), ambiguous=True)
    if answer == accepted and not _heard_otherwise(case, answer.keep):
        return _as_told(case, answer.keep)
    if answer.evidence != case.evidence:
        detail = f"spec.resolve answers evidence {answer.evidence}, which is no longer what is seen; {pair(case)}"
        return say(case, case.row.reason, detail, ambiguous=True)
    heard = None if isinstance(_sides(case, answer.keep)[1], Unknown | OutOfService) else case.view.now
    marks = case.marks.model_copy(update={"resolved": answer, "resolved_heard": heard})
    return say(case, "Resolving", f"spec.resolve is {answer.keep}", marks=marks, ambiguous=True, requeue_after=0.0)


def _sides(case: Case, keep: str) -> tuple[Side, Side]:
    """The side that is kept, and the other one."""
    view = case.view
    return (view.source, view.target) if keep == "KeepSource" else (view.target, view.source)


def _heard_otherwise(case: Case, keep: str) -> bool:
    """Whether the other copy, whose host was silent when the answer was accepted, has a process after all."""
    return case.marks.resolved_heard is None and kind(_sides(case, keep)[1]) not in WITHOUT_PROCESS


def pair(case: Case) -> str:
    """Both observations in words, and their evidence."""
    view, intent = case.view, case.intent
    return (
        f"source {intent.source}: {described(view.source)}; target {intent.target}: {described(view.target)};"
        f" evidence {case.evidence}"
    )


def _as_told(case: Case, keep: str) -> MigrationDecision:
    """Drop the copy that is not to be kept, then let the other one's CPUs run. Nothing is done to an unknown side."""
    intent, (kept, dropped) = case.intent, _sides(case, keep)
    here, there = (intent.source, intent.target) if keep == "KeepSource" else (intent.target, intent.source)
    if isinstance(kept, Absent) and isinstance(dropped, Absent):
        return finish(case, "VMDown", f"spec.resolve is {keep}, and neither host has anything of the VM")
    if isinstance(kept, Unknown | OutOfService):
        return say(case, case.row.reason, f"spec.resolve is {keep}, and that host cannot be asked", ambiguous=True)
    if isinstance(dropped, Seen):
        return _drop(case, dropped, there)
    if kind(kept) in ("held", "starting", "paused", "stuck"):
        return _told(case, act.Resume(here, intent.domain_uuid))
    if kind(kept) in HALVES:
        return _told(case, act.DestroyStale(here, intent.domain_uuid))
    if isinstance(dropped, Unknown):
        return say(case, "TargetUnknown" if keep == "KeepSource" else "SourceUnknown", f"spec.resolve is {keep}")
    return say(case, case.row.reason, pair(case), ambiguous=True)


def _drop(case: Case, side: Seen, host: str) -> MigrationDecision:
    remove = act.UndefineStale if kind(side) in WITHOUT_PROCESS else act.DestroyStale
    return _told(case, remove(host, case.intent.domain_uuid))


def _told(case: Case, action: act.MigrationAction) -> MigrationDecision:
    """A person's answer still waits for the grace period, and for jobs other than those of a broken post-copy."""
    if not case.settled or not (case.idle or case.row.reason == "MemoryLost"):
        return say(case, "Resolving", pair(case), ambiguous=True)
    return say(case, "Resolving", action=action, ambiguous=True, requeue_after=0.0)
