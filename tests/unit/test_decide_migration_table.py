# SPDX-License-Identifier: Apache-2.0
"""The decision table: each row by what was measured or read in libvirt, and that no pair has two."""

from __future__ import annotations

import itertools

import pytest

from homeostat.api.observed import Absent, Unknown
from homeostat.decide.migration_table import EFFECTS, ROWS, WORDS, OutOfService, Seen, Side, job, kind, row_of, rows_of
from homeostat.hosts.words import _REASONS as REASONS
from tests.unit.migrations import (
    ARRIVED,
    CANCELED,
    COPIES,
    DARK,
    GONE,
    HELD,
    INCOMING,
    OFF,
    OUT,
    PAUSED,
    RUNS,
    SWITCHES,
    seen,
)

POSTCOPY = seen("Paused/Postcopy", "Out")
BROKEN = seen("Paused/PostcopyFailed", "Out")
FETCHES = seen("Running/Postcopy", "In")
STRANDED = seen("Running/PostcopyFailed", "In")
MIGRATED = seen("Shutoff/Migrated")
LOST = seen("Shutoff/Unknown", lost=True)
STUCK = seen("Paused/IOError")

EXAMPLES: list[tuple[str, Side, Side]] = [
    ("1", COPIES, GONE),
    ("1", COPIES, INCOMING),
    ("1", COPIES, seen("Paused/StartingUp", persistent=False)),
    ("1", COPIES, DARK),
    ("1b", COPIES, ARRIVED),
    ("2", SWITCHES, INCOMING),
    ("2", SWITCHES, DARK),
    ("3", SWITCHES, ARRIVED),
    ("3", POSTCOPY, ARRIVED),
    ("3b", GONE, seen("Running/Migrated", "In")),
    ("4", GONE, ARRIVED),
    ("4", MIGRATED, ARRIVED),
    ("4", OFF, ARRIVED),
    ("5", CANCELED, GONE),
    ("5", CANCELED, seen("Shutoff/Failed")),
    ("5", RUNS, GONE),
    ("5", RUNS, OUT),
    ("6", HELD, ARRIVED),
    ("6", seen("Paused/APIError"), ARRIVED),
    ("6", HELD, seen("Running/Unknown")),
    ("6b", HELD, PAUSED),
    ("7", HELD, GONE),
    ("7", seen("Paused/APIError"), GONE),
    ("7", HELD, OUT),
    ("7b", HELD, seen("Shutoff/Shutdown")),
    ("7b", HELD, seen("Shutoff/Unknown")),
    ("7b", HELD, LOST),
    ("7c", GONE, seen("Running/Unpaused")),
    ("7c", GONE, STUCK),
    ("7d", GONE, PAUSED),
    ("8", HELD, INCOMING),
    ("8", RUNS, INCOMING),
    ("8b", HELD, seen("Running/Migrated", "In")),
    ("8b", PAUSED, seen("Running/Migrated", "In")),
    ("9", HELD, HELD),
    ("9b", RUNS, HELD),
    ("9c", GONE, HELD),
    ("10", HELD, DARK),
    ("10", PAUSED, DARK),
    ("11", CANCELED, ARRIVED),
    ("11", PAUSED, ARRIVED),
    ("11b", CANCELED, STUCK),
    ("11c", CANCELED, PAUSED),
    ("11d", CANCELED, seen("Running/Migrated", "In")),
    ("12", RUNS, DARK),
    ("12b", RUNS, DARK),
    ("13", DARK, ARRIVED),
    ("13", DARK, STUCK),
    ("13b", DARK, PAUSED),
    ("14", DARK, INCOMING),
    ("15", DARK, GONE),
    ("15b", DARK, OFF),
    ("16", seen("Shutoff/Crashed"), GONE),
    ("16b", GONE, GONE),
    ("16c", GONE, OUT),
    ("17", OFF, INCOMING),
    ("18", MIGRATED, OFF),
    ("18b", GONE, OFF),
    ("19", POSTCOPY, FETCHES),
    ("19b", SWITCHES, FETCHES),
    ("19c", DARK, FETCHES),
    ("20", BROKEN, STRANDED),
    ("20", BROKEN, seen("Paused/PostcopyFailed", "In")),
    ("20", seen("Paused/PostcopyFailed", "Unknown"), STRANDED),
    ("20b", BROKEN, FETCHES),
    ("21", GONE, STRANDED),
    ("22", seen("Paused/PostcopyFailed"), GONE),
    ("22b", BROKEN, GONE),
    ("22b", seen("Paused/PostcopyFailed", "Unknown"), GONE),
    ("22c", BROKEN, OFF),
    ("22d", seen("Paused/PostcopyFailed", "Unknown"), OFF),
    ("23", CANCELED, PAUSED),
    ("24", GONE, PAUSED),
    ("24", MIGRATED, PAUSED),
    ("24b", OFF, PAUSED),
    ("24b", OUT, PAUSED),
    ("25", PAUSED, GONE),
    ("26", DARK, DARK),
    ("26b", GONE, DARK),
    ("27", RUNS, LOST),
    ("27b", LOST, ARRIVED),
    ("28", RUNS, seen("Running/Migrated", "Unknown")),
    ("28", seen("Running/Booted", "Other"), GONE),
    ("none", seen("NoState/Unknown"), GONE),
    ("none", HELD, seen("Paused/Unknown", persistent=False)),  # may never have run: not row 6
    ("none", RUNS, seen("Running/Postcopy")),
]
CONFIRMED = ("23", "24", "24b")
LOCKED = ("12",)


@pytest.mark.parametrize(("number", "source", "target"), EXAMPLES)
def test_a_pair_is_in_its_row(number: str, source: Side, target: Side) -> None:
    row = row_of(source, target, confirmed=number in CONFIRMED, locks=number in LOCKED)
    assert row.number == number


def test_every_row_has_an_example() -> None:
    assert [row.number for row in ROWS if row.number not in {number for number, _, _ in EXAMPLES}] == []


def every_side() -> list[Side]:
    """One side of each kind with each job, and every state and reason of libvirt."""
    states = {**REASONS, "Blocked": ("Unknown",), "PMSuspended": ("Unknown",), "NoState": ("Unknown",)}
    sides: list[Side] = [Unknown("Lost"), OutOfService(), Absent()]
    for state, reasons in states.items():
        for reason, work, persistent, lost in itertools.product(
            reasons, (None, "Out", "In", "Other", "Unknown"), (True, False), (False, True)
        ):
            sides.append(Seen(state, reason, work, persistent, lost))
    return list({(kind(side), job(side)): side for side in sides}.values())


SIDES = every_side()


def test_every_kind_of_side_occurs() -> None:
    assert {kind(side) for side in SIDES} == WORDS.keys()


def test_no_pair_is_in_two_rows() -> None:
    for source, target, confirmed, locks in itertools.product(SIDES, SIDES, (True, False), (True, False)):
        found = [row.number for row in rows_of(source, target, confirmed=confirmed, locks=locks)]
        assert len(found) <= 1, (source, target, found)


def test_every_row_names_an_effect_and_every_effect_has_a_row() -> None:
    assert {row.effect for row in ROWS} == EFFECTS.keys()


ENDING = ("settle", "roll back", "end source", "end target", "ended")


def test_no_row_that_ends_or_removes_something_is_one_with_a_job_but_that_of_a_half_that_nothing_can_end() -> None:
    rows = [row for row in ROWS if row.effect in ENDING]
    assert {row.effect for row in rows} == set(ENDING)
    with_job = [row for row in rows if (row.source.jobs, row.target.jobs) != ("-", "-")]
    assert [(row.number, row.source.kinds) for row in with_job] == [("22c", frozenset({"postcopy", "postcopy-failed"}))]


def test_nothing_but_waiting_and_asking_follows_from_an_unknown_side() -> None:
    for source, target in itertools.product(SIDES, SIDES):
        row = row_of(source, target, confirmed=False, locks=False)
        if DARK.__class__ in (type(source), type(target)):
            assert row.effect in ("wait", "ask", "doubt", "guide")
