# SPDX-License-Identifier: Apache-2.0
"""What a migration cost: what its progress said last, and after the end what libvirt says of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import libvirt
import pytest

from homeostat.api.migration import CostStatus
from homeostat.decide import migration_report as report
from homeostat.decide.migration import decide
from homeostat.decide.migration_policy import MIB, Progress
from homeostat.hosts import jobs
from homeostat.hosts.migration import Cost
from tests.unit.migrations import ARRIVED, CANCELED, GONE, NOW, intent_of, migration, view

COMPLETED = {"type": libvirt.VIR_DOMAIN_JOB_COMPLETED, "operation": 0, "data_processed": 600 * MIB, "downtime": 40}


@dataclass
class Moved:
    """A domain as libvirt-python shows it; what it says of its last job is forgotten when that was read carelessly."""

    stats: dict[str, Any]

    def jobStats(self, flags: int) -> dict[str, Any]:  # noqa: N802
        kept = self.stats
        if not flags & libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED:
            self.stats = {"type": libvirt.VIR_DOMAIN_JOB_NONE}
        return kept if flags & libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED else {"type": libvirt.VIR_DOMAIN_JOB_NONE}


@pytest.mark.parametrize(
    ("stats", "cost"),
    [
        (COMPLETED, Cost(600 * MIB, 40)),
        (COMPLETED | {"operation": libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN}, Cost(600 * MIB, 40)),
        ({key: value for key, value in COMPLETED.items() if key != "downtime"}, Cost(600 * MIB)),
        (COMPLETED | {"operation": libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT}, None),
        (COMPLETED | {"type": libvirt.VIR_DOMAIN_JOB_FAILED}, None),
        ({"type": libvirt.VIR_DOMAIN_JOB_NONE}, None),
    ],
)
def test_libvirt_is_asked_for_the_last_job_and_does_not_forget_it(stats: dict[str, Any], cost: Cost | None) -> None:
    one = Moved(stats)
    assert [jobs.cost(one), jobs.cost(one)] == [cost, cost]


def progress(transferred: int) -> Progress:
    return Progress(1.0, 1, 0, 64 * MIB, 0, 0, 300, transferred=transferred)


def test_an_attempt_that_broke_off_cost_what_was_sent_until_then() -> None:
    sent = report.cost_so_far(report.cost_so_far(None, progress(3 * MIB)), progress(5 * MIB + 1))
    begun = NOW - timedelta(seconds=9)
    broken = migration({"startTime": begun, "cost": sent.wire()})
    seen = view(CANCELED, GONE, 60)
    told = report.status(broken, seen, decide(broken, intent_of(broken), seen))
    assert told.reason == "RolledBack"
    assert told.cost == CostStatus(transferred_mib=5, total_seconds=9)


def test_what_libvirt_says_after_the_end_goes_before_what_was_seen_on_the_way() -> None:
    sent = report.cost_so_far(None, progress(3 * MIB))
    moved = migration({"startTime": NOW - timedelta(seconds=9), "cost": sent.wire()})
    seen = view(GONE, ARRIVED, 60)
    told = report.status(moved, seen, decide(moved, intent_of(moved), seen))
    assert told.reason == "Migrated"
    assert report.cost_at_end(told.cost, 600 * MIB, 40) == CostStatus(
        transferred_mib=600, downtime_milliseconds=40, total_seconds=9
    )
    assert report.cost_at_end(told.cost, 600 * MIB, None).downtime_milliseconds is None


def test_a_job_that_was_seen_just_before_its_end_takes_nothing_from_the_cost() -> None:
    """The source is asked for its job first, and for the domain after that."""
    known = view(GONE, ARRIVED)
    of = migration({"startTime": NOW - timedelta(seconds=9), "cost": {"transferredMiB": 3}})
    done = report.status(of, known, decide(of, intent_of(of), known))
    cost = report.with_progress(done, progress(5 * MIB)).cost
    assert cost is not None
    assert (cost.transferred_mib, cost.total_seconds) == (5, 9)
