# SPDX-License-Identifier: Apache-2.0
"""What is said of a guest that stands still, and done about a request, a stop and a definition."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from homeostat.api import actions as act
from homeostat.api.observed import Absent, Present
from homeostat.decide import report
from homeostat.decide.view import Failure
from homeostat.decide.vm import decide
from tests.unit.test_decide_vm import DOWN, NOW, UID, candidate, domain, host, owner, settled, view


@pytest.mark.parametrize(
    ("state", "reason", "said"),
    [
        ("Paused", "StartingUp", "Starting"),
        ("Paused", "Migration", "PausedByJob"),
        ("Paused", "Save", "PausedByJob"),
        ("Paused", "User", "PausedByOthers"),
        ("PMSuspended", "Unknown", "GuestSuspended"),
        ("Crashed", "Panicked", "GuestCrashed"),
    ],
)
def test_a_guest_whose_cpus_stand_still_is_not_said_to_run(state: str, reason: str, said: str) -> None:
    wish = settled()
    seen = view(host("a", Present(domain(wish, state=state, reason=reason))))
    decision = decide(wish, seen, NOW)
    assert (decision.action, decision.say.reason) == (None, said)
    conditions = report.status(wish, seen, decision, NOW).conditions
    assert {c.type: c.status for c in conditions if c.type in ("Ready", "Running")} == dict.fromkeys(
        ("Ready", "Running"), "False"
    )
    again = settled({"power": {"request": "now"}}, {"reason": "Restarting", "since": "2025-12-31T23:00:00Z"})
    assert decide(again, seen, NOW).action == act.Destroy("a", UID), "the way out is a field"


def test_a_definition_that_is_refused_for_a_running_domain_is_tried_less_and_less_often() -> None:
    wish = settled()
    there = view(host("a", Present(domain(wish, state="Running", reason="Booted", persistent=False, inactive=None))))
    refused = decide(wish, there, NOW).action
    assert isinstance(refused, act.Define)
    failed = replace(there, failure=Failure(refused, "unsupported configuration"))
    waits = []
    for _ in range(3):
        counted = decide(wish, failed, NOW)
        assert (counted.action, counted.say.reason, counted.failed) == (None, "DefineFailed", failed.failure)
        wish = settled(status=report.status(wish, failed, counted, NOW).wire() | {"candidates": [candidate("a")]})
        waiting = decide(wish, there, NOW)
        assert waiting.action is None or waiting.requeue_after is None
        waits.append(round(waiting.requeue_after or 0))
        assert isinstance(decide(wish, there, NOW + timedelta(seconds=301)).action, act.Define)
    assert waits == [0, 10, 20]


def test_a_guest_is_asked_before_it_is_ended_however_long_its_host_was_silent_while_it_was_deleted() -> None:
    gone: dict[str, Any] = {"deletionTimestamp": "2025-12-31T20:00:00Z"}
    waited = settled(status={"reason": "DeletingWaits", "since": "2025-12-31T20:00:00Z"}, **gone)
    running = view(host("a", Present(domain(waited, state="Running", reason="Booted"))))
    first = decide(waited, running, NOW)
    assert (first.say.reason, first.action, first.requeue_after) == ("DeletingStops", None, 0.0)
    asked = settled(status={"reason": "DeletingStops", "since": "2026-01-01T00:00:00Z"}, **gone)
    assert isinstance(decide(asked, running, NOW).action, act.Shutdown)
    late = NOW + timedelta(seconds=asked.spec.termination_grace_period_seconds + 1)
    assert decide(asked, running, late).action == act.Destroy("a", UID)


SHUT = {"state": "Shutoff", "reason": "Shutdown", "request": ""}


@pytest.mark.parametrize(
    ("strategy", "seen", "stays"),
    [
        ("Manual", {"state": "Running", "reason": "Booted", "request": ""}, "NotRequested"),
        ("Manual", SHUT, "NotRequested"),
        ("Manual", SHUT | {"request": "earlier"}, ""),
        ("RerunOnFailure", SHUT, "Finished"),
        ("RerunOnFailure", SHUT | {"reason": "Crashed"}, ""),
        ("RerunOnFailure", {"state": "Running", "reason": "Booted", "request": ""}, ""),
        ("Always", SHUT, ""),
    ],
)
def test_a_vm_whose_definition_is_gone_is_not_started_unasked(strategy: str, seen: dict[str, Any], stays: str) -> None:
    """Its host was silent, then it was declared out of service; or somebody removed the definition by hand."""
    lost = (host("a", DOWN, released=True, closed=("OutOfService", "")), host("b", Absent()))
    silent = {"host": "a", "reason": "HostUnreachable", "domain": seen}
    for hosts in (lost, (host("a", Absent()),)):
        wish = settled({"runStrategy": strategy}, silent)
        for _ in range(3):
            there = view(*hosts)
            decision = decide(wish, there, NOW)
            assert (decision.action is None, decision.say.reason if stays else "") == (bool(stays), stays)
            written = report.status(wish, there, decision, NOW).wire() | {"candidates": [candidate("a")]}
            wish = settled({"runStrategy": strategy}, written)


def test_that_a_vm_is_finished_outlasts_libvirts_memory_and_its_host() -> None:
    once = settled({"runStrategy": "RerunOnFailure"}, {"host": "a", "reason": "HostUnreachable"})
    forgotten = view(host("a", Present(domain(once, owner=owner(once, off="Shutdown")))))
    status = report.status(once, forgotten, decide(once, forgotten, NOW), NOW)
    assert status.domain is not None
    assert (status.domain.state, status.domain.reason) == ("Shutoff", "Shutdown")


def test_a_start_that_is_not_over_has_served_no_request() -> None:
    asked = settled({"runStrategy": "Manual", "power": {"request": "two"}}, {"domain": SHUT | {"request": "one"}})
    starting = domain(asked, state="Paused", reason="StartingUp", live_owner=owner(asked, request="two"))
    seen = view(host("a", Present(starting)))
    status = report.status(asked, seen, decide(asked, seen, NOW), NOW)
    assert status.domain is not None
    assert status.domain.request == "one"
