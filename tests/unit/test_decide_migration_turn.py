# SPDX-License-Identifier: Apache-2.0
"""Whose turn it may be when a migration has ended."""

from __future__ import annotations

from homeostat.api.migration import VirtualMachineMigration
from homeostat.decide.migration_plan import MOST_NEXT, next_in_turn
from tests.unit.migrations import migration


def waits(name: str, second: int, source: str, target: str, vm: str = "other") -> VirtualMachineMigration:
    created = {"name": name, "uid": name, "creationTimestamp": f"2026-01-01T00:00:{second:02}Z"}
    status = {"intent": None, "reason": "Queued", "source": source, "target": target}
    return migration(status, None, created, vmRef={"name": vm})


def after(*others: VirtualMachineMigration) -> list[str]:
    """Names of those that are looked at when a migration of VM web from a to b has ended."""
    return [each.metadata.name for each in next_in_turn(migration(), others)]


def test_those_that_wait_at_a_host_of_it_or_for_its_vm_come_next_the_oldest_first() -> None:
    near = (waits("late", 3, "a", "x"), waits("early", 1, "y", "b"), waits("same", 2, "y", "x", vm="web"))
    assert after(*near, waits("far", 0, "y", "x")) == ["early", "same", "late"]


def test_those_that_are_under_way_or_were_not_planned_are_left_alone() -> None:
    new = waits("new", 1, "a", "b")
    unplanned = new.model_copy(update={"status": new.status.model_copy(update={"reason": "Accepted"})})
    assert after(migration(), unplanned) == []


def test_a_long_queue_is_not_looked_at_as_a_whole() -> None:
    assert after(*(waits(f"m{number}", number, "a", "b") for number in range(20))) == [
        f"m{number}" for number in range(MOST_NEXT)
    ]
