# SPDX-License-Identifier: Apache-2.0
"""The decisions of a migration: what is done about each pair, and what is never done, whatever is seen."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.api import actions as act
from homeostat.api import reasons
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.observed import Absent, Checkpoint, Domain, Present, Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import migration_report as report
from homeostat.decide.migration import ended, first_seen, in_flight
from homeostat.decide.migration_case import CallEnded, MigrationDecision, MigrationView
from homeostat.decide.migration_policy import Advice
from homeostat.decide.migration_table import WITHOUT_PROCESS, OutOfService, Seen, Side, evidence, job, kind
from tests.unit.migrations import (
    ARRIVED,
    BEGUN,
    CANCELED,
    COPIES,
    DARK,
    GONE,
    GRACE,
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
    SWITCHES,
    UID,
    answered,
    decided,
    migration,
    seen,
    shown,
    view,
)
from tests.unit.test_decide_migration_table import SIDES

CONFIRMED = {"startedPaused": "Enabled"}


# Beginning


def test_libvirt_is_asked_when_the_target_is_on_record_and_has_nothing() -> None:
    assert shown(RUNS, GONE, begun=False).action == REQUEST
    assert shown(RUNS, GONE, begun=False, listed=False).action is None
    assert shown(RUNS, GONE, begun=False, calling=True).action is None
    assert shown(RUNS, OUT, begun=False).say.reason == "TargetUnreachable"


def test_a_call_that_has_just_begun_or_just_come_to_nothing_is_called_what_it_is() -> None:
    assert shown(RUNS, INCOMING, begun=False, calling=True).say.reason == "Preparing"
    assert shown(RUNS, INCOMING, calling=True).say.reason == "RollingBack"
    assert shown(RUNS, INCOMING, begun=False).say.reason == "RollingBack"
    assert shown(RUNS, GONE, calling=True).say.reason == "NotMoved"


def test_a_stale_definition_on_the_target_is_removed_before() -> None:
    assert shown(RUNS, OFF, SHORT, begun=False).action is None
    assert shown(RUNS, OFF, begun=False).action == act.UndefineStale("b", UID)


def test_a_call_that_was_refused_ends_it_at_once_and_any_other_after_the_grace() -> None:
    refused = shown(RUNS, GONE, 0, begun=False, ended=CallEnded("no such host", refused=True))
    assert (refused.say.reason, refused.finished) == ("Refused", True)
    assert "no such host" in refused.say.detail
    lost = CallEnded("client socket is closed")
    assert not shown(RUNS, GONE, SHORT, begun=False, ended=lost).finished
    assert shown(RUNS, GONE, begun=False, ended=lost).say.reason == "Refused"


def test_an_attempt_is_made_once() -> None:
    decision = shown(CANCELED, GONE, 0)
    assert (decision.action, decision.say.reason) == (None, "RolledBack")


def test_a_target_that_could_never_be_reached_ends_it_without_a_person() -> None:
    refused = CallEnded("unable to connect", refused=True)
    assert shown(RUNS, DARK, begun=False, ended=refused).say.reason == "TargetUnreachable"
    assert shown(RUNS, DARK, begun=True, ended=refused).ambiguous


# Stopping


@pytest.mark.parametrize(
    ("of", "known"),
    [
        (migration(abort="Requested"), {}),
        (migration(meta={"deletionTimestamp": "2026-01-01T00:00:00Z"}), {}),
        (migration(), {"vm_stops": "the VM is being deleted"}),
    ],
)
def test_it_is_stopped_while_the_source_copies(of: VirtualMachineMigration, known: dict[str, Any]) -> None:
    decision = decided(of, view(COPIES, INCOMING, **known))
    assert (decision.say.reason, decision.action) == ("Aborting", act.AbortMigration("a", UID))
    assert decision.marks is not None
    asked = marked(of, decision)
    assert decided(asked, view(COPIES, INCOMING, **known)).action is None
    later = view(COPIES, INCOMING, **known, now=NOW + timedelta(seconds=11))
    assert decided(asked, later).action == act.AbortMigration("a", UID)


@pytest.mark.parametrize(
    ("source", "target"),
    [(SWITCHES, INCOMING), (SWITCHES, ARRIVED), (seen("Paused/Postcopy", "Out"), seen("Running/Postcopy", "In"))],
)
def test_it_says_when_it_is_too_late_to_stop(source: Side, target: Side) -> None:
    decision = decided(migration(abort="Requested"), view(source, target, LONG))
    assert decision.action is None
    assert "can no longer be stopped" in decision.say.detail


def test_a_stopped_one_says_why_it_ended() -> None:
    assert decided(migration(BEGUN, abort="Requested"), view(CANCELED, GONE)).say.reason == "Aborted"
    timed_out = migration(BEGUN | {"marks": {"timedOut": "Completion"}})
    assert decided(timed_out, view(CANCELED, GONE)).say.reason == "TimedOut"
    unbegun = migration(abort="Requested")
    assert not decided(unbegun, view(RUNS, GONE, SHORT)).finished  # a call that is still on its way may begin it
    assert decided(unbegun, view(RUNS, GONE, LONG)).say.reason == "Aborted"


def test_advice_is_taken_while_the_source_copies() -> None:
    def advised(advice: Advice) -> MigrationDecision:
        return shown(COPIES, INCOMING, advice=advice)

    assert advised(Advice("SetMaxDowntime", milliseconds=100)).action == act.SetMaxDowntime("a", UID, 100)
    switch = advised(Advice("PostCopy"))
    assert switch.action == act.StartPostCopy("a", UID)
    assert switch.marks is not None
    assert switch.marks.post_copy == NOW
    forced = advised(Advice("Suspend", time_out="Completion"))
    assert forced.action == act.Suspend("a", UID)
    assert forced.marks is not None
    assert (forced.marks.force_completed, forced.marks.timed_out) == (NOW, "Completion")
    assert advised(Advice("Abort", time_out="Progress")).action == act.AbortMigration("a", UID)


# Arriving


def test_it_has_arrived_when_the_source_has_nothing_left() -> None:
    assert shown(GONE, ARRIVED, 0).say.reason == "Migrated"
    assert shown(GONE, replace(ARRIVED, persistent=False)).action == act.PersistTarget("b", UID)
    assert shown(seen("Shutoff/Migrated"), ARRIVED, SHORT).action is None
    assert shown(seen("Shutoff/Migrated"), ARRIVED).action == act.UndefineStale("a", UID)
    assert shown(GONE, seen("Running/Unpaused"), 0).say.reason == "Migrated"


FIRST, SECOND = Checkpoint("first", "<first/>"), Checkpoint("second", "<second/>")


def with_marks(source: Side, target: Side, age: float, begun: MigrationDecision) -> MigrationDecision:
    """The decision when the marks of an earlier one are on record."""
    assert begun.marks is not None
    return decided(marked(migration(BEGUN), begun), view(source, target, age))


def marked(of: VirtualMachineMigration, decision: MigrationDecision) -> VirtualMachineMigration:
    """The migration with the marks of a decision on record."""
    return of.model_copy(update={"status": of.status.model_copy(update={"marks": decision.marks})})


def test_checkpoints_are_written_down_before_the_call_and_defined_on_the_target_parents_first() -> None:
    begun = shown(replace(RUNS, checkpoints=(FIRST, SECOND)), GONE, begun=False)
    assert begun.action == REQUEST
    assert begun.marks is not None
    assert [(each.name, each.xml) for each in begun.marks.checkpoints] == [
        ("first", "<first/>"),
        ("second", "<second/>"),
    ]
    assert with_marks(GONE, ARRIVED, 0, begun).action == act.RedefineCheckpoint("b", UID, "<first/>")
    half = replace(ARRIVED, checkpoints=(FIRST,))
    assert with_marks(GONE, half, SHORT, begun).action == act.RedefineCheckpoint("b", UID, "<second/>")
    whole = with_marks(GONE, replace(ARRIVED, checkpoints=(FIRST, SECOND)), 0, begun)
    assert (whole.say.reason, whole.say.detail) == ("Migrated", "")


def test_checkpoints_of_a_vm_that_went_off_on_the_target_are_defined_there_too() -> None:
    begun = shown(replace(RUNS, checkpoints=(FIRST,)), GONE, begun=False)
    off = seen("Shutoff/Shutdown")
    assert with_marks(seen("Shutoff/Migrated"), off, SHORT, begun).action == act.RedefineCheckpoint(
        "b", UID, "<first/>"
    )
    assert with_marks(GONE, replace(off, checkpoints=(FIRST,)), SHORT, begun).say.reason == "MigratedThenOff"


def test_a_checkpoint_that_cannot_be_defined_is_given_up_after_the_grace_and_named() -> None:
    begun = shown(replace(RUNS, checkpoints=(FIRST, SECOND)), GONE, begun=False)
    left = with_marks(GONE, replace(ARRIVED, checkpoints=(FIRST,)), LONG, begun)
    assert left.say.reason == "Migrated"
    assert left.say.detail.endswith(": second")
    # The grace begins anew with each that is defined.
    assert (
        len({evidence("1", GONE, replace(ARRIVED, checkpoints=found)) for found in ((), (FIRST,), (FIRST, SECOND))})
        == 3
    )


def test_what_is_written_down_of_checkpoints_is_what_there_is_at_the_last_call() -> None:
    begun = shown(replace(RUNS, checkpoints=(FIRST,)), GONE, begun=False)
    again = marked(migration(), begun)
    for found in ((), (FIRST, SECOND)):
        marks = decided(again, view(replace(RUNS, checkpoints=found), GONE)).marks
        assert marks is not None
        assert [each.name for each in marks.checkpoints] == [each.name for each in found]


def test_a_lost_reply_ends_the_source_and_never_the_target() -> None:
    assert shown(HELD, ARRIVED, SHORT).action is None
    assert shown(HELD, ARRIVED).action == act.DestroyStale("a", UID)
    assert shown(SWITCHES, ARRIVED).action is None  # libvirt has not given up
    assert shown(OFF, ARRIVED).action == act.UndefineStale("a", UID)


def test_a_target_that_ran_and_went_off_keeps_the_vm() -> None:
    assert shown(HELD, seen("Shutoff/Unknown")).action == act.DestroyStale("a", UID)
    assert shown(OFF, seen("Shutoff/Unknown")).action == act.UndefineStale("a", UID)
    assert shown(GONE, seen("Shutoff/Shutdown")).say.reason == "MigratedThenOff"


def test_a_source_that_goes_on_although_the_target_has_run_is_told_of() -> None:
    crashed = seen("Shutoff/Crashed")
    first = shown(CANCELED, crashed, SHORT)
    assert first.marks is not None
    assert first.marks.target_ran == NOW
    left = with_marks(CANCELED, GONE, LONG, first)
    assert left.say.reason == "RolledBack"
    assert "older than its disks" in left.say.detail
    for source, target, begun, intent in (
        (RUNS, crashed, False, None),  # a stale one, before libvirt is asked
        (CANCELED, seen("Shutoff/Failed"), True, None),
        (CANCELED, crashed, True, CONFIRMED),
    ):
        assert shown(source, target, begun=begun, intent=intent).marks is None
    assert "older" not in shown(CANCELED, GONE).say.detail


def test_the_source_goes_on_when_the_target_has_nothing() -> None:
    assert shown(HELD, GONE, 0).action is None  # the target may have been looked at before the source
    assert shown(HELD, GONE, SHORT).action == act.Resume("a", UID)
    assert shown(HELD, OUT, SHORT).action == act.Resume("a", UID)


def test_a_source_that_somebody_paused_is_left_alone() -> None:
    assert shown(PAUSED, GONE).say.reason == "RolledBack"
    for mark in ("frozen", "forceCompleted"):
        ours = migration(BEGUN | {"marks": {mark: "2026-01-01T00:00:00Z"}})
        assert decided(ours, view(PAUSED, GONE, SHORT)).action == act.Resume("a", UID)


def test_confirmed_switchover_lets_the_target_run_when_the_source_is_gone() -> None:
    assert shown(GONE, PAUSED, SHORT, intent=CONFIRMED).action == act.Resume("b", UID)
    assert shown(CANCELED, PAUSED, SHORT, intent=CONFIRMED).action is None
    assert shown(CANCELED, PAUSED, intent=CONFIRMED).action == act.DestroyStale("b", UID)


def test_confirmed_switchover_never_revives_memory_that_may_be_older_than_the_disks() -> None:
    """The source ran on after a lost reply, and then went off by itself."""
    decision = shown(OFF, PAUSED, intent=CONFIRMED)
    assert (decision.action, decision.ambiguous) == (None, True)
    ours = migration(BEGUN | {"marks": {"endedSource": "2026-01-01T00:00:00Z"}}, CONFIRMED)
    assert decided(ours, view(OFF, PAUSED, SHORT)).action == act.Resume("b", UID)


def test_the_end_of_the_source_is_on_record_before_it_is_ended() -> None:
    decision = shown(HELD, PAUSED, intent=CONFIRMED)
    assert decision.action == act.DestroyStale("a", UID)
    assert decision.marks is not None
    assert decision.marks.ended_source == NOW


def test_a_vm_that_went_off_is_down_not_moved() -> None:
    assert not shown(seen("Shutoff/Crashed"), GONE, 0).finished
    assert shown(seen("Shutoff/Crashed"), GONE, SHORT).say.reason == "VMDown"
    assert reasons.MIGRATION["VMDown"].ready == "False"


# Whatever is seen

ANY = st.sampled_from(SIDES)
FLAG = st.booleans()
AGES = st.sampled_from([0.0, SHORT, LONG, 1000.0])
ENDS = (act.DestroyStale, act.UndefineStale)


@st.composite
def anything(draw: st.DrawFn) -> tuple[VirtualMachineMigration, MigrationView]:
    """A migration without an answer, and a view of it."""
    written = ("aborted", "forceCompleted", "frozen", "asked", "notAsked")
    marks = {name: "2026-01-01T00:00:00Z" for name in written if draw(FLAG)}
    confirmed = CONFIRMED if draw(FLAG) else {}
    locks = {"locks": "Effective"} if draw(FLAG) else {}
    spec: dict[str, Any] = {"abort": "Requested"} if draw(FLAG) else {}
    of = migration((BEGUN if draw(FLAG) else {}) | {"marks": marks}, confirmed | locks, **spec)
    advice = draw(st.sampled_from([Advice(step) for step in ("Wait", "Abort", "PostCopy", "Suspend")]))
    call = draw(st.sampled_from([None, CallEnded("lost"), CallEnded("no", refused=True)]))
    known = view(draw(ANY), draw(ANY), draw(AGES), advice=advice, ended=call, calling=draw(FLAG))
    return of, known


def side_on(known: MigrationView, host: str) -> Side:
    return known.source if host == "a" else known.target


@settings(max_examples=1500)
@given(anything())
def test_nothing_forbidden_is_ever_done(case: tuple[VirtualMachineMigration, MigrationView]) -> None:
    of, known = case
    decision = decided(of, known)
    action, age = decision.action, (known.now - known.since).total_seconds()
    assert decided(of, known) == decision
    assert decision.say.reason in reasons.MIGRATION
    assert not (decision.finished and (action or decision.ambiguous))
    if action is None:
        return
    host = action.request.host if isinstance(action, act.ResumePostCopy) else action.host
    assert isinstance(side_on(known, host), Seen), "never on a side that is unknown or has nothing"
    if isinstance(action, ENDS):
        assert age >= GRACE
        assert isinstance(known.source, Seen) or isinstance(known.target, Seen)
        other = side_on(known, "b" if host == "a" else "a")
        assert not isinstance(other, Unknown)
        assert decision.row.owner != {"a": "Source", "b": "Target"}[host]
    if isinstance(action, act.UndefineStale):
        assert kind(side_on(known, host)) in WITHOUT_PROCESS
    if isinstance(action, act.Resume):
        assert age > 0
    if isinstance(action, act.Resume) and host == "a":
        assert kind(known.source) in ("held", "paused", "stuck")
        assert isinstance(known.target, Absent | OutOfService)
    if not (job(known.source) == job(known.target) == "-" or decision.row.number == "22c"):
        tuning = act.AbortMigration | act.StartPostCopy | act.SetMaxDowntime | act.ResumePostCopy
        frozen = decision.row.number == "11d" and age > 0
        assert isinstance(action, tuning) or (
            isinstance(action, act.Suspend) and (job(known.source) == "Out" or frozen)
        )
    if isinstance(action, act.Migrate):
        assert isinstance(known.target, Absent)
        assert of.status.start_time is None


@settings(max_examples=500)
@given(ANY, ANY, st.sampled_from(["KeepSource", "KeepTarget"]), AGES)
def test_an_answer_never_touches_an_unknown_side_or_hurries(source: Side, target: Side, keep: str, age: float) -> None:
    decision = answered(source, target, keep, age=age)
    action = decision.action
    if action is None or not isinstance(action, ENDS):
        return
    assert age >= GRACE
    assert isinstance(source if action.host == "a" else target, Seen)
    if decision.ambiguous:
        assert not isinstance(source if keep == "KeepSource" else target, Unknown)


# What is said


def reported(of: VirtualMachineMigration, known: MigrationView) -> VirtualMachineMigration:
    """The migration with the status that the decision about what is known gives it."""
    return of.model_copy(update={"status": report.status(of, known, decided(of, known))})


def test_the_time_of_a_pair_survives_the_operator_and_ends_with_the_pair() -> None:
    of = migration(BEGUN)
    known = view(HELD, ARRIVED, 0)
    written = report.status(of, known, decided(of, known))
    again = of.model_copy(update={"status": written})
    later = NOW + timedelta(seconds=30)
    assert first_seen(again, HELD, ARRIVED, later) == NOW
    assert first_seen(again, HELD, DARK, later) == later
    assert report.status(again, replace(known, now=later), decided(again, known)) == written  # nothing churns


def test_a_finished_one_says_so_and_expires_and_an_ambiguous_one_never() -> None:
    of = migration(BEGUN)
    known = view(GONE, ARRIVED)
    done = reported(of, known)
    assert {each.type: each.status for each in done.status.conditions} == {
        "Finished": "True",
        "Succeeded": "True",
        "Ambiguous": "False",
        "Queued": "False",
    }
    assert ended(done)
    assert report.expiry(done) == NOW + timedelta(days=1)
    doubted = view(HELD, HELD, LONG)
    open_ = reported(of, doubted)
    assert {each.type: each.status for each in open_.status.conditions}["Ambiguous"] == "True"
    assert report.expiry(open_) is None


def test_a_record_that_was_lost_is_told_from_a_domain_that_went_off() -> None:
    off = Present(Domain(UID, "shop_web", "Shutoff", "Unknown", persistent=True))
    of = migration(BEGUN)
    known = view(HELD, ARRIVED)
    old = report.status(of, known, decided(of, known)).decision
    assert old is not None
    assert report.side_of(off, None, old.source, released=False) == seen("Shutoff/Unknown", lost=True)
    assert report.side_of(off, None, None, released=False) == seen("Shutoff/Unknown")
    unknown = report.status(of, view(DARK, ARRIVED), decided(of, view(DARK, ARRIVED))).decision
    assert unknown is not None
    kept = of.model_copy(update={"status": of.status.model_copy(update={"decision": old})})
    dark = report.status(kept, view(DARK, ARRIVED), decided(kept, view(DARK, ARRIVED))).decision
    assert dark is not None
    assert report.side_of(off, None, dark.source, released=False) == seen("Shutoff/Unknown", lost=True)


def test_a_host_out_of_service_is_unknown_no_more() -> None:
    assert report.side_of(DARK, None, None, released=True) == OUT
    assert report.side_of(DARK, None, None, released=False) == DARK


def test_the_vm_is_left_alone_from_the_intent_to_the_end() -> None:
    vm = VirtualMachine.model_validate(
        {"metadata": {"name": "web", "namespace": "shop"}, "spec": {"memory": {"size": "64Mi"}}}
    )
    of = migration(BEGUN)
    assert in_flight([of], vm) is of
    unplanned = of.model_copy(update={"status": of.status.model_copy(update={"intent": None})})
    known = view(GONE, ARRIVED)
    done = reported(of, known)
    other = of.model_copy(update={"metadata": of.metadata.model_copy(update={"namespace": "bank"})})
    assert in_flight([unplanned, done, other], vm) is None


@pytest.mark.parametrize(
    ("before", "lost"), [("Paused/Migration", False), ("Paused/StartingUp", False), ("Running/Booted", True)]
)
def test_an_incoming_process_whose_cpus_could_not_run_was_ended_by_libvirt(before: str, lost: bool) -> None:
    told = report.status(migration(BEGUN), view(CANCELED, seen(before)), shown(CANCELED, seen(before))).decision
    assert told is not None
    off = Present(Domain(UID, "shop_web", "Shutoff", "Failed", persistent=True))
    assert report.side_of(off, None, told.target, released=False) == seen("Shutoff/Failed", lost=lost)


@pytest.mark.parametrize(("source", "target"), [(HELD, DARK), (CANCELED, DARK), (COPIES, DARK), (DARK, ARRIVED)])
def test_a_host_that_is_given_up_ends_it_and_lets_nothing_run_that_may_run_there(source: Side, target: Side) -> None:
    decision = shown(source, target, abandoned="b", vm_stops="the VM is being deleted")
    assert (decision.say.reason, decision.action, decision.finished) == ("Aborted", None, True)
    assert "spec.abandonHosts" in decision.say.detail
