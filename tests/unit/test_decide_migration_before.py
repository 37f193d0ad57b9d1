# SPDX-License-Identifier: Apache-2.0
"""A migration with an intent, before libvirt is asked: nothing that the hosts show is its doing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from homeostat.api import actions as act
from homeostat.decide import migration_report as report
from homeostat.decide.migration_case import CallEnded, MigrationDecision
from homeostat.decide.migration_table import Side
from homeostat.decide.view import Say
from tests.unit.migrations import (
    ARRIVED,
    BEGUN,
    CANCELED,
    COPIES,
    DARK,
    GONE,
    HELD,
    INCOMING,
    LONG,
    NOW,
    OFF,
    OUT,
    PAUSED,
    REQUEST,
    RUNS,
    SHORT,
    UID,
    decided,
    migration,
    seen,
    view,
)
from tests.unit.test_decide_migration_table import SIDES

UNASKED: dict[str, Any] = {"marks": {"notAsked": "2026-01-01T00:00:00Z"}}


def asked(seconds: float) -> dict[str, Any]:
    """Return the status of one that libvirt was asked for that long ago."""
    return {"marks": {"asked": (NOW - timedelta(seconds=seconds)).isoformat()}}


def unasked(source: Side, target: Side, age: float = LONG, **fields: Any) -> MigrationDecision:
    """Return the decision about a pair that was seen before libvirt was asked."""
    spec = fields.pop("spec", {})
    return decided(migration(UNASKED, **spec), view(source, target, age, **fields))


def test_that_libvirt_is_asked_is_written_down_with_the_request() -> None:
    decision = unasked(RUNS, GONE, 0)
    assert (decision.action, decision.say.reason) == (REQUEST, "Preparing")
    assert decision.marks is not None
    assert (decision.marks.asked, decision.marks.not_asked) == (NOW, None)


def test_it_waits_to_be_on_record() -> None:
    assert unasked(RUNS, GONE, listed=False).action is None


def test_volumes_that_could_not_be_made_ready_end_it() -> None:
    of = migration({"marks": {"notAsked": "2026-01-01T00:00:00Z", "notPrepared": "no space left"}})
    decision = decided(of, view(RUNS, GONE, LONG))
    assert (decision.say, decision.finished) == (Say("StorageNotReady", "no space left"), True)


@pytest.mark.parametrize("source", [OFF, GONE, seen("Shutoff/Crashed"), OUT])
def test_a_vm_that_goes_off_beside_a_stale_definition_was_not_moved(source: Side) -> None:
    assert not unasked(source, OFF, 0).finished
    decision = unasked(source, OFF, SHORT)
    assert (decision.say.reason, decision.action, decision.finished) == ("VMDown", None, True)


def test_a_stale_definition_is_removed_after_the_grace_and_the_migration_can_be_stopped_until_then() -> None:
    assert unasked(RUNS, OFF, SHORT).action is None
    assert unasked(RUNS, OFF).action == act.UndefineStale("b", UID)
    refused = unasked(RUNS, OFF, refused=("5", "it has a managed-save image"), spec={"abort": "Requested"})
    assert (refused.say.reason, refused.finished, refused.action) == ("Aborted", True, None)


def test_a_step_that_libvirt_refused_is_taken_again_and_not_at_once() -> None:
    decision = unasked(RUNS, OFF, refused=("5", "it has a managed-save image"))
    assert decision.action == act.UndefineStale("b", UID)
    assert "managed-save" in decision.say.detail
    assert decision.requeue_after is not None
    assert decision.requeue_after >= 2


@pytest.mark.parametrize("locks", ["Effective", "None"])
def test_a_target_that_falls_silent_has_nothing_of_the_vm(locks: str) -> None:
    of = migration(UNASKED, {"locks": locks})
    assert decided(of, view(RUNS, DARK, SHORT)).say.reason == "TargetUnknown"
    decision = decided(of, view(RUNS, DARK, LONG))
    assert (decision.say.reason, decision.finished, decision.ambiguous) == ("TargetUnreachable", True, False)
    assert unasked(RUNS, OUT, 0).say.reason == "TargetUnreachable"


@pytest.mark.parametrize(("source", "target"), [(RUNS, DARK), (DARK, GONE)])
def test_what_was_made_for_a_copy_is_removed_before_it_ends(source: Side, target: Side) -> None:
    of = migration(UNASKED | {"marks": UNASKED["marks"] | {"volumeMade": "2026-01-01T00:00:00Z"}}, abort="Requested")
    decision = decided(of, view(source, target, LONG))
    assert (decision.say.reason, decision.finished) == ("CleaningUp", False)
    assert "no route to host" in decision.say.detail


def test_one_whose_vm_is_not_to_be_touched_ends() -> None:
    decision = unasked(RUNS, GONE, listed=False, hands_off="ReconcileDisabled")
    assert (decision.say.reason, decision.finished) == ("NotMigratable", True)


def test_a_guest_that_was_paused_is_not_moved_and_not_said_to_have_been() -> None:
    decision = unasked(PAUSED, GONE, SHORT)
    assert (decision.say.reason, decision.finished) == ("VMNotRunning", True)
    assert "Paused/User" in decision.say.detail


@pytest.mark.parametrize("source", [COPIES, HELD, seen("Running/Booted", "Other"), seen("Running/Booted", "Unknown")])
@pytest.mark.parametrize("target", [GONE, OFF])
def test_what_somebody_else_does_to_the_vm_is_waited_for(source: Side, target: Side) -> None:
    decision = unasked(source, target)
    assert (decision.say.reason, decision.action, decision.finished) == ("OtherJob", None, False)


@pytest.mark.parametrize("target", [ARRIVED, INCOMING, PAUSED])
def test_a_process_on_the_target_is_nothing_to_migrate_to(target: Side) -> None:
    decision = unasked(RUNS, target)
    assert (decision.say.reason, decision.action, decision.finished) == ("NotMigratable", None, True)


@pytest.mark.parametrize("source", SIDES)
@pytest.mark.parametrize("age", [0, LONG])
def test_nothing_but_a_definition_that_is_off_on_the_target_is_touched(source: Side, age: float) -> None:
    for target in SIDES:
        decision = unasked(source, target, age)
        assert decision.action in (None, REQUEST, act.UndefineStale("b", UID)), (source, target)
        assert not decision.ambiguous, (source, target)
        written = report.status(migration(UNASKED), view(source, target, age), decision)
        assert written.start_time is None, (source, target)


def test_a_call_is_given_the_grace_from_when_it_was_made() -> None:
    stopped = migration(asked(1), abort="Requested")
    assert not decided(stopped, view(RUNS, GONE, LONG)).finished
    assert decided(migration(asked(LONG), abort="Requested"), view(RUNS, GONE, LONG)).say.reason == "Aborted"
    lost = CallEnded("client socket is closed")
    assert not decided(migration(asked(1)), view(RUNS, GONE, LONG, ended=lost)).finished
    assert not decided(migration(asked(1)), view(OFF, GONE, LONG)).finished


def test_a_guest_that_is_paused_while_libvirt_is_asked_has_not_shown_that_it_began() -> None:
    waiting = decided(migration(asked(LONG)), view(PAUSED, GONE, LONG, calling=True))
    assert (waiting.say.reason, waiting.finished) == ("NotMoved", False)
    for source, target in ((PAUSED, GONE), (PAUSED, DARK)):
        decision = decided(migration(asked(1)), view(source, target, 0))
        assert report.status(migration(asked(1)), view(source, target, 0), decision).start_time is None
    begun = decided(migration(asked(1)), view(HELD, DARK, 0))
    assert report.status(migration(asked(1)), view(HELD, DARK, 0), begun).start_time == NOW


def test_a_definition_on_the_target_after_libvirt_was_asked_has_had_the_guest_run() -> None:
    decision = decided(migration(asked(LONG)), view(CANCELED, OFF, SHORT))
    assert decision.marks is not None
    assert decision.marks.target_ran == NOW
    assert decided(migration(BEGUN | asked(LONG)), view(HELD, OFF, LONG)).action == act.DestroyStale("a", UID)
