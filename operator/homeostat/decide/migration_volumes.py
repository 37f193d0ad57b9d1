# SPDX-License-Identifier: Apache-2.0
"""The volumes of a storage copy, in a migration: none is begun, or over, before they are in order."""

from __future__ import annotations

from collections.abc import Callable

from homeostat.api import actions as act
from homeostat.decide import migration_copy as copies
from homeostat.decide.migration_case import Case, MigrationDecision, asked_lately, say
from homeostat.decide.migration_table import Seen, kind

OLDER = (
    "the target had run the VM before it went off there, and libvirt let the source go on: its memory is older than its"
    " disks, so look at its file systems, or have it restarted"
)


def finish(case: Case, reason: str, detail: str = "", *, moved: bool = False) -> MigrationDecision:
    """The attempt is over when its volumes are in order."""
    step = copies.complete if moved else copies.clean
    if (storage := volume_step(case, "Arrived" if moved else "CleaningUp", step)) is not None:
        return storage
    if case.intent.copies:
        left = copies.left(_known(case), moved=moved)
    else:
        left = OLDER if case.marks.target_ran and not moved else ""
    return say(case, reason, "; ".join(filter(None, (detail, left))), requeue_after=None)


def volume_step(
    case: Case, reason: str, decide: Callable[[copies.Volumes], copies.Step | None]
) -> MigrationDecision | None:
    """The next step with the volumes of disks that are copied, on what their pools show now; None when none is left."""
    if not case.intent.copies:
        return None
    if case.view.volumes is None:
        return say(case, reason, look_at_volumes=True, requeue_after=0.0)
    step, error = decide(_known(case)), case.view.volume_error
    if step is None:
        return None
    if decide is copies.prepare and (step.refused or error):
        marks = case.marks.model_copy(update={"not_prepared": error or step.detail})
        return say(case, reason, error or step.detail, marks=marks, requeue_after=0.0)
    return _handle(case, reason, step)


def _handle(case: Case, reason: str, step: copies.Step) -> MigrationDecision:
    """Make or remove a volume; what was just refused is asked for again later."""
    made = isinstance(step.action, act.CreateVolume)
    asked = case.marks.volume_made if made else case.marks.volume_removed
    if step.action is None:
        return say(case, reason, step.detail)
    if case.view.refused[0] == case.row.number and asked_lately(asked, case.view.now):
        return say(case, reason, f"{step.detail}; libvirt said: {case.view.refused[1]}")
    marks = case.marks.model_copy(update={"volume_made" if made else "volume_removed": case.view.now})
    return say(case, reason, step.detail, action=step.action, marks=marks, requeue_after=0.0)


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
