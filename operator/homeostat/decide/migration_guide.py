# SPDX-License-Identifier: Apache-2.0
"""A migration while its source copies: what its policy advises is done, and it is stopped when that is asked for."""

from __future__ import annotations

from homeostat.api import actions as act
from homeostat.decide.migration_case import ASK_AGAIN_SECONDS, LOOK_SECONDS, Case, MigrationDecision, say


def guide(case: Case) -> MigrationDecision:
    """The source runs and copies: the one place where it can be stopped."""
    if case.stop:
        return _abort(case, case.stop)
    advice, source = case.view.advice, case.intent.source
    match advice.step:
        case "Abort":
            return _abort(case, advice.detail, timed_out=advice.time_out)
        case "SetMaxDowntime":
            return say(case, "Copying", action=act.SetMaxDowntime(source, case.intent.domain_uuid, advice.milliseconds))
        case "PostCopy":
            return _step(case, act.StartPostCopy(source, case.intent.domain_uuid), "post_copy")
        case "Suspend":
            return _step(case, act.Suspend(source, case.intent.domain_uuid), "force_completed")
        case _:
            return say(case, "Copying", advice.detail)


def _step(case: Case, action: act.MigrationAction, mark: str) -> MigrationDecision:
    marks = case.marks.model_copy(update={mark: case.view.now, "timed_out": case.view.advice.time_out or None})
    return say(case, "Copying", case.view.advice.detail, action=action, marks=marks)


def _abort(case: Case, why: str, *, timed_out: str = "") -> MigrationDecision:
    asked = case.marks.aborted
    if asked is not None and timed_out:  # the rates in its words change all the time
        why = f"the {timed_out.lower()} time-out has passed"
    if asked is not None and (left := ASK_AGAIN_SECONDS - (case.view.now - asked).total_seconds()) > 0:
        return say(case, "Aborting", why, requeue_after=min(left, LOOK_SECONDS))
    update = {"aborted": case.view.now, "timed_out": timed_out or case.marks.timed_out}
    action = act.AbortMigration(case.intent.source, case.intent.domain_uuid)
    return say(case, "Aborting", why, action=action, marks=case.marks.model_copy(update=update))
