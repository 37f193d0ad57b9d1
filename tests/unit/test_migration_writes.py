# SPDX-License-Identifier: Apache-2.0
"""What of a migration's status is written at once, and what by and by."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from homeostat.api.migration import VirtualMachineMigration
from homeostat.decide import migration_report as report
from homeostat.decide.migration import decide, first_seen
from homeostat.decide.migration_policy import MIB, Advice, Progress
from homeostat.decide.migration_table import Side
from tests.unit.migrations import COPIES, DARK, INCOMING, NOW, intent_of, migration, view

BEGAN = NOW + timedelta(microseconds=123_456)
FIRST = Progress(40.0, 2, 300 * MIB, 512 * MIB, 10 * MIB, 8 * MIB, 100)


def after(
    old: VirtualMachineMigration, seconds: float, progress: Progress, target: Side = INCOMING, **known: Any
) -> tuple[bool, VirtualMachineMigration]:
    """Whether the status is written so long after the beginning, and the migration if it is."""
    now = BEGAN + timedelta(seconds=seconds)
    since = first_seen(old, COPIES, target, now)
    seen = replace(view(COPIES, target, **known), now=now, since=since)
    told = report.status(old, seen, decide(old, intent_of(old), seen))
    figures, cost = report.progress(progress, old.status.progress), report.cost_so_far(old.status.cost, progress)
    status = told.model_copy(update={"progress": figures, "cost": cost})
    stored = VirtualMachineMigration.model_validate(old.model_dump(by_alias=True) | {"status": status.wire()})
    return report.due(old.status, status, progress, 5.0), stored


def test_what_stays_the_same_keeps_its_time_though_clocks_show_fractions_of_seconds() -> None:
    due, first = after(migration(), 0, FIRST)
    assert due
    assert first.status.decision is not None
    _, later = after(first, 7.5, FIRST)
    assert later.status.decision == first.status.decision


def test_figures_alone_wait_and_all_else_is_written_at_once() -> None:
    _, first = after(migration(), 0, FIRST)
    soon = replace(FIRST, elapsed=44.9, remaining=200 * MIB)
    assert not after(first, 4.9, soon)[0]
    assert after(first, 5.1, replace(soon, elapsed=45.1))[0]
    assert after(first, 1, soon, DARK)[0]
    aborting = Advice("Abort", "it took longer than 600 s", time_out="Completion")
    assert after(first, 1, soon, advice=aborting)[0]


def test_the_longer_it_takes_the_longer_figures_wait() -> None:
    _, first = after(migration(), 0, replace(FIRST, elapsed=3000.0))
    assert not after(first, 300, replace(FIRST, elapsed=3300.0))[0]
    assert after(first, 334, replace(FIRST, elapsed=3334.0))[0]


def test_while_it_is_stopped_nothing_is_written_though_the_rates_change() -> None:
    def at(old: VirtualMachineMigration, seconds: float, rate: int) -> tuple[bool, VirtualMachineMigration]:
        words = f"it took longer than 600 s; the guest writes {rate} MiB/s"
        advice = Advice("Abort", words, time_out="Completion")
        return after(old, seconds, replace(FIRST, elapsed=40 + seconds), advice=advice)

    _, asked = at(migration(), 0, 100)
    _, told = at(asked, 1, 200)
    assert not at(told, 3, 300)[0]
    assert not at(told, 4.9, 400)[0]


def test_a_downtime_limit_that_is_not_told_just_now_stays_as_it_was_known() -> None:
    known = report.progress(FIRST, None)
    assert known.downtime_limit_milliseconds is not None
    untold = report.progress(replace(FIRST, downtime_limit_ms=None), known)
    assert untold.downtime_limit_milliseconds == known.downtime_limit_milliseconds
