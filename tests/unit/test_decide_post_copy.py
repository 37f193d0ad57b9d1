# SPDX-License-Identifier: Apache-2.0
"""What is done about a post-copy that broke, and what is said while a host refuses or does not tell."""

from __future__ import annotations

from homeostat.api import actions as act
from homeostat.api import reasons
from homeostat.decide.migration_case import CallEnded
from homeostat.decide.view import Say
from tests.unit.migrations import (
    ARRIVED,
    BEGUN,
    BROKEN,
    DARK,
    GONE,
    LONG,
    OFF,
    REQUEST,
    RUNS,
    SHORT,
    STRANDED,
    UID,
    decided,
    migration,
    seen,
    shown,
    view,
)


def test_a_broken_post_copy_keeps_both_halves_and_goes_on() -> None:
    assert shown(BROKEN, STRANDED).action == act.ResumePostCopy(REQUEST)
    assert shown(BROKEN, STRANDED, calling=True).action is None
    assert shown(BROKEN, STRANDED, called=29.0).action is None
    assert shown(BROKEN, STRANDED, called=31.0).action == act.ResumePostCopy(REQUEST)
    assert shown(BROKEN, seen("Running/Postcopy", "In")).action is None
    assert shown(BROKEN, DARK).action is None
    lost = shown(BROKEN, GONE)
    assert (lost.action, lost.ambiguous, lost.say.reason) == (None, True, "MemoryLost")


def test_a_half_whose_libvirt_is_busy_is_one_of_a_post_copy_and_not_asked_again() -> None:
    busy = shown(seen("Paused/PostcopyFailed", "Unknown"), STRANDED, untold="a: no answer")
    assert (busy.action, busy.say.reason, busy.say.detail) == (None, "PostCopyInterrupted", "a: no answer")
    assert shown(seen("Paused/PostcopyFailed", "Unknown"), GONE).say.reason == "MemoryLost"


def test_a_broken_post_copy_says_what_libvirt_said_and_that_it_is_too_late_to_stop() -> None:
    said = migration(BEGUN | {"lastMessage": "it failed"}, abort="Requested")
    detail = decided(said, view(BROKEN, STRANDED, LONG)).say.detail
    assert "it can no longer be stopped" in detail
    assert "libvirt said: it failed" in detail


def test_a_wait_for_a_job_that_is_not_told_says_what_the_host_says() -> None:
    decision = shown(seen("Running/Booted", "Unknown"), GONE, untold="a: no answer")
    assert (decision.say.reason, decision.say.detail) == ("OtherJob", "a: no answer")


def test_a_step_that_libvirt_refuses_is_told_as_long_as_its_row_lasts() -> None:
    held = ("4", "cannot acquire state change lock")
    detail = shown(OFF, ARRIVED, refused=held).say.detail
    assert "cannot acquire state change lock" in detail
    assert "restart libvirtd" in detail
    assert "restart" not in shown(OFF, ARRIVED, refused=("4", "no such thing")).say.detail
    assert shown(OFF, ARRIVED, refused=("6", "no")).say.detail == ""
    assert shown(GONE, ARRIVED, refused=held).say == Say("Migrated")


def test_a_guest_that_went_off_in_post_copy_leaves_a_half_that_is_ended_after_the_grace() -> None:
    assert shown(BROKEN, OFF, SHORT).action is None
    assert shown(BROKEN, OFF).action == act.DestroyStale("a", UID)
    assert shown(seen("Paused/PostcopyFailed", "Unknown"), OFF).action is None
    assert shown(BROKEN, seen("Shutoff/Unknown", lost=True)).action is None


def test_a_target_that_cannot_do_post_copy_is_told_from_other_refusals() -> None:
    words = CallEnded("Postcopy is not supported", refused=True, no_post_copy=True)
    found = shown(RUNS, GONE, 0, begun=False, ended=words)
    assert (found.say.reason, found.finished) == ("NoPostCopy", True)
    assert "userfaultfd" in reasons.MIGRATION["NoPostCopy"].sentence(found.say.detail)
