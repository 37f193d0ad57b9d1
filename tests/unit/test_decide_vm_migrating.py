# SPDX-License-Identifier: Apache-2.0
"""The decision about a VM while a migration of it is in flight: it records where the VM may be, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.api import actions as act
from homeostat.api.meta import FINALIZER
from homeostat.api.observed import Absent, Answer, Present
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import report
from homeostat.decide.view import Failure, HostView, VMView
from homeostat.decide.vm import decide
from tests.unit import migrations
from tests.unit import test_decide_vm as vms

ENDS = {"candidates": [vms.candidate("a"), vms.candidate("b")]}
DELETED = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
HALTED = {"runStrategy": "Halted"}
STOPPED = {"runStrategy": "Manual", "power": {"state": "Stopped"}}
FAILURES = (None, Failure(act.Start("a", vms.UID), "internal error"))


def in_flight(*hosts: HostView, **fields: Any) -> VMView:
    """Return a view with the migration of the VM from a to b in flight."""
    return vms.view(*hosts, migration=migrations.migration(), **fields)


def process(of: VirtualMachine, shown: str) -> Answer:
    state, reason = shown.split("/")
    return Present(vms.domain(of, state=state, reason=reason))


@settings(max_examples=1000, deadline=None)
@given(
    spec=st.sampled_from(vms.SPECS),
    status=st.sampled_from(vms.STATUSES),
    meta=st.sampled_from(vms.METAS),
    answers=st.tuples(*[st.sampled_from(vms.ANSWERS)] * 3),
    fresh=st.booleans(),
    failure=st.sampled_from(FAILURES),
)
def test_whatever_is_seen_no_host_is_touched_or_asked_and_no_candidate_dropped(
    spec: dict[str, Any],
    status: dict[str, Any],
    meta: dict[str, Any],
    answers: tuple[str, str, str],
    fresh: bool,
    failure: Failure | None,
) -> None:
    wish = vms.vm(spec, status, **meta)
    hosts = [vms.host(name, vms.answer_of(word, wish)) for name, word in zip("abc", answers, strict=True)]
    seen = in_flight(*hosts, fresh=fresh, failure=failure)
    decision = decide(wish, seen, vms.NOW)
    assert (decision.look, decision.failed) == (None, None)
    assert isinstance(decision.action, act.RecordCandidates | act.AddFinalizer | None)
    if isinstance(decision.action, act.RecordCandidates):
        before = [each.host_uuid for each in wish.status.candidates]
        after = [each.host_uuid for each in decision.action.candidates]
        missing = [vms.UUIDS[end] for end in "ab" if vms.UUIDS[end] not in before]
        assert missing
        assert after == before + missing
    elif "annotations" not in meta:
        assert {vms.UUIDS["a"], vms.UUIDS["b"]} <= {each.host_uuid for each in wish.status.candidates}


def test_both_ends_are_recorded_then_the_finalizer_then_nothing_and_status_names_the_migration() -> None:
    new = vms.vm()
    seen = in_flight(vms.host("a", process(new, "Running/Booted")), vms.host("b", Absent()))
    both = tuple(act.Candidate(name, f"uid-{name}", vms.UUIDS[name]) for name in "ab")
    assert decide(new, seen, vms.NOW).action == act.RecordCandidates(both)
    assert decide(vms.vm(status=ENDS), seen, vms.NOW).action == act.AddFinalizer()
    ready = vms.settled(status=ENDS)
    decision = decide(ready, seen, vms.NOW)
    assert decision.action is None
    told = report.status(ready, seen, decision, vms.NOW)
    assert told.migration is not None
    assert (told.migration.name, told.migration.uid, told.state) == ("move", "attempt", "Moving")


def test_a_third_host_that_is_recorded_stays_recorded() -> None:
    elsewhere = vms.settled(status={"candidates": [vms.candidate("c"), vms.candidate("a")]})
    action = decide(elsewhere, in_flight(*(vms.host(name, Absent()) for name in "abc")), vms.NOW).action
    assert isinstance(action, act.RecordCandidates)
    assert [each.hypervisor for each in action.candidates] == ["c", "a", "b"]


def test_an_end_that_another_machine_answers_for_is_not_recorded() -> None:
    """Its migration is not begun: what is asked for is that the target of the intent is recorded."""
    reinstalled = vms.host("b", Absent(), host_uuid=vms.UUIDS["c"])
    decision = decide(vms.settled(), in_flight(vms.host("a", Absent()), reinstalled), vms.NOW)
    assert decision.action is None


@pytest.mark.parametrize(
    ("source", "target", "spec", "meta", "reason"),
    [
        ("Running/Booted", "Paused/Migration", {}, {}, "Migrating"),
        ("Paused/Migration", "Running/Migrated", {}, {}, "Migrating"),
        ("Shutoff/Migrated", "Running/Migrated", {}, {}, "Migrating"),
        ("Running/Booted", "Paused/Migration", HALTED, {}, "MigrationFirst"),
        ("Running/Booted", "Paused/Migration", STOPPED, {}, "MigrationFirst"),
        ("Running/Booted", "Paused/Migration", {}, DELETED, "MigrationFirst"),
        ("Paused/Migration", "Running/Migrated", {}, DELETED, "MigrationFirst"),
        ("Paused/Migration", "Paused/Migration", {}, {}, "MigrationUnclear"),
        ("Paused/Migration", "Paused/Migration", {}, DELETED, "MigrationUnclear"),
        ("Shutoff/Destroyed", "Shutoff/Failed", {}, {}, "MigrationUnclear"),
        ("Shutoff/Destroyed", "Shutoff/Failed", HALTED, {}, "MigrationUnclear"),
    ],
)
def test_a_stop_or_a_deletion_waits_and_what_is_said_follows_whose_cpus_run(
    source: str, target: str, spec: dict[str, Any], meta: dict[str, Any], reason: str
) -> None:
    wish = vms.settled(spec, ENDS, **({"finalizers": [FINALIZER]} | meta))
    seen = in_flight(vms.host("a", process(wish, source)), vms.host("b", process(wish, target)))
    decision = decide(wish, seen, vms.NOW)
    assert (decision.say.reason, decision.action) == (reason, None)


def test_a_side_that_cannot_be_asked_says_nothing_of_the_other() -> None:
    wish = vms.settled(status=ENDS)
    runs = vms.host("a", process(wish, "Running/Booted"))
    assert decide(wish, in_flight(runs, vms.host("b", vms.DOWN)), vms.NOW).say.reason == "Migrating"
    dark = in_flight(vms.host("a", vms.DOWN), vms.host("b", vms.DOWN))
    assert decide(wish, dark, vms.NOW).say.reason == "MigrationUnclear"
