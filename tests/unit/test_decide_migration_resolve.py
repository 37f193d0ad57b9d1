# SPDX-License-Identifier: Apache-2.0
"""A migration that only a person can decide: what is done meanwhile, and what becomes of the answer."""

from __future__ import annotations

import pytest

from homeostat.api import actions as act
from homeostat.decide.migration_table import Side, evidence
from tests.unit.migrations import (
    ARRIVED,
    BEGUN,
    BROKEN,
    CANCELED,
    DARK,
    GONE,
    HELD,
    LONG,
    NOW,
    OFF,
    OUT,
    PAUSED,
    RUNS,
    SHORT,
    STRANDED,
    UID,
    answered,
    decided,
    migration,
    seen,
    shown,
    view,
)


def test_two_that_run_are_frozen_at_once_and_ended_never() -> None:
    decision = shown(CANCELED, ARRIVED, 0)
    assert (decision.action, decision.ambiguous) == (act.Suspend("a", UID), True)
    frozen = shown(PAUSED, ARRIVED)
    assert (frozen.action, frozen.ambiguous, frozen.say.reason) == (None, True, "SplitBrain")
    assert frozen.evidence in frozen.say.detail


def test_two_that_run_while_libvirt_is_not_done_on_the_target_are_frozen_when_it_lasts() -> None:
    ending = seen("Running/Migrated", "In")
    assert shown(CANCELED, ending, 0).action is None
    decision = shown(CANCELED, ending, SHORT)
    assert (decision.action, decision.ambiguous) == (act.Suspend("a", UID), True)
    assert shown(PAUSED, ending).action is None
    frozen = migration(BEGUN | {"marks": {"frozen": NOW}})
    assert decided(frozen, view(PAUSED, GONE, SHORT)).action == act.Resume("a", UID)


@pytest.mark.parametrize(("source", "target"), [(HELD, DARK), (HELD, HELD), (CANCELED, DARK), (GONE, STRANDED)])
def test_what_names_no_owner_is_ambiguous_when_it_lasts(source: Side, target: Side) -> None:
    assert shown(source, target, SHORT).say.reason == "Undecided"
    decision = shown(source, target)
    assert (decision.ambiguous, decision.action, decision.finished) == (True, None, False)


def test_an_answer_is_written_down_before_it_is_carried_out() -> None:
    decision = answered(PAUSED, ARRIVED, "KeepTarget", accepted=False)
    assert decision.action is None
    assert decision.marks is not None
    assert decision.marks.resolved is not None
    assert answered(PAUSED, ARRIVED, "KeepTarget").action == act.DestroyStale("a", UID)
    assert answered(PAUSED, ARRIVED, "KeepTarget", age=SHORT).action is None


@pytest.mark.parametrize("keep", ["KeepSource", "KeepTarget"])
def test_a_vm_that_is_on_neither_host_may_run_elsewhere_until_a_person_says_that_it_does_not(keep: str) -> None:
    decision = shown(GONE, GONE)
    assert (decision.say.reason, decision.ambiguous, decision.finished) == ("MovedElsewhere", True, False)
    told = answered(GONE, GONE, keep)
    assert (told.say.reason, told.finished, told.action) == ("VMDown", True, None)
    assert shown(GONE, OUT).say.reason == "VMDown"


def test_an_answer_to_something_else_says_so() -> None:
    stale = migration(BEGUN, resolve={"keep": "KeepSource", "evidence": "0" * 16})
    decision = decided(stale, view(PAUSED, ARRIVED, LONG))
    assert (decision.action, decision.marks, decision.ambiguous) == (None, None, True)
    assert "no longer what is seen" in decision.say.detail


@pytest.mark.parametrize(
    ("source", "target", "keep", "action"),
    [
        (PAUSED, ARRIVED, "KeepSource", act.DestroyStale("b", UID)),
        (PAUSED, OFF, "KeepSource", act.UndefineStale("b", UID)),
        (HELD, DARK, "KeepSource", act.Resume("a", UID)),
        (HELD, DARK, "KeepTarget", None),
        (CANCELED, DARK, "KeepSource", None),
        (HELD, HELD, "KeepTarget", act.DestroyStale("a", UID)),
        (GONE, HELD, "KeepTarget", act.Resume("b", UID)),
        (GONE, STRANDED, "KeepTarget", act.DestroyStale("b", UID)),
        (GONE, STRANDED, "KeepSource", act.DestroyStale("b", UID)),
        (BROKEN, GONE, "KeepSource", act.DestroyStale("a", UID)),
        (RUNS, seen("Shutoff/Unknown", lost=True), "KeepSource", act.UndefineStale("b", UID)),
    ],
)
def test_an_answer_is_carried_out(source: Side, target: Side, keep: str, action: object) -> None:
    assert answered(source, target, keep).action == action


def test_a_whole_answer_ends_with_one_copy() -> None:
    """What follows each step is shown to the next decision, as the hosts would show it."""
    first = {"keep": "KeepSource", "evidence": evidence("attempt", PAUSED, ARRIVED)}
    of = migration(BEGUN | {"marks": {"resolved": first, "resolvedHeard": NOW}}, resolve=first)
    steps = [decided(of, view(PAUSED, target, LONG)).action for target in (ARRIVED, OFF, GONE)]
    assert steps == [act.DestroyStale("b", UID), act.UndefineStale("b", UID), act.Resume("a", UID)]
    assert decided(of, view(seen("Running/Unpaused"), GONE)).say.reason == "RolledBack"


@pytest.mark.parametrize(("source", "dark"), [(HELD, DARK), (CANCELED, DARK), (PAUSED, DARK)])
def test_that_nothing_runs_on_a_silent_host_is_void_when_it_shows_a_process(source: Side, dark: Side) -> None:
    answer = {"keep": "KeepSource", "evidence": evidence("attempt", source, dark)}
    of = migration(BEGUN | {"locks": "None"}, resolve=answer)
    accepted = decided(of, view(source, dark, LONG)).marks
    assert accepted is not None
    assert accepted.resolved_heard is None
    known = migration(BEGUN | {"marks": accepted.wire()}, resolve=answer)
    for side in (CANCELED, PAUSED):
        decision = decided(known, view(side, ARRIVED, LONG))
        assert decision.action in (None, act.Suspend("a", UID))
        assert decision.ambiguous
    assert decided(known, view(PAUSED, ARRIVED, LONG)).say.reason == "SplitBrain"
    anew = {"keep": "KeepSource", "evidence": evidence("attempt", PAUSED, ARRIVED)}
    again = migration(BEGUN | {"marks": accepted.wire()}, resolve=anew)
    marks = decided(again, view(PAUSED, ARRIVED, LONG)).marks
    assert marks is not None
    assert marks.resolved is not None
    assert marks.resolved_heard is not None


@pytest.mark.parametrize(("source", "target", "keep"), [(OUT, HELD, "KeepSource"), (OUT, STRANDED, "KeepSource")])
def test_a_host_that_is_out_of_service_is_never_kept(source: Side, target: Side, keep: str) -> None:
    decision = answered(source, target, keep)
    assert (decision.action, decision.ambiguous) == (None, True)
    assert "cannot be asked" in decision.say.detail
