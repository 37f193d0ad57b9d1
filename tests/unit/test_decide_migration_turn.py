# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: one migration of a VM at a time, limits, ports, fairness, and who is looked at when one ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.api.migration import VirtualMachineMigration
from homeostat.decide.migration_plan import plan
from homeostat.decide.migration_planning import Fleet
from homeostat.decide.migration_turn import MOST_NEXT, behind, next_in_turn
from homeostat.decide.view import VMView
from tests.unit import migrations
from tests.unit.planning import NOW, TO_B, fleet, host, machine, migration, moving, pair, running, spec

# Ports


def test_each_vm_on_its_way_to_a_host_has_a_port_of_its_own() -> None:
    ports = spec(migration={"ports": {"first": 50000, "last": 50001}, "maxInbound": 5})
    hosts = (host("a", running(machine())), host("b", spec=ports))
    first = plan(migration(), machine(), fleet(*hosts)).intent
    assert first is not None
    assert first.port in (50000, 50001)
    taken = moving("m1", "c", "b", port=first.port)
    second = plan(migration(), machine(), fleet(*hosts, others=(taken,))).intent
    assert second is not None
    assert {first.port, second.port} == {50000, 50001}
    both = (taken, moving("m2", "c", "b", port=second.port))
    waits = plan(migration(), machine(), fleet(*hosts, others=both))
    assert (waits.say.reason, waits.intent) == ("Queued", None)
    assert waits.say.detail == "all spec.migration.ports of Hypervisor b are taken, behind shop/m1, shop/m2"
    elsewhere = moving("m1", "b", "a", port=first.port)
    third = plan(migration(), machine(), fleet(*hosts, others=(elsewhere,))).intent
    assert third is not None
    assert third.port == first.port


def test_without_ports_the_target_chooses() -> None:
    intent = plan(migration(), machine(), pair(machine())).intent
    assert intent is not None
    assert intent.port is None


# Turns


def waiting(name: str, created: str, source: str, target: str, vm: str = "") -> VirtualMachineMigration:
    status = {"reason": "Queued", "source": source, "target": target}
    return migration(name, created, vmRef={"name": vm or f"vm-{name}"}, status=status)


EARLY, LATE = "2025-12-31T00:00:00Z", "2026-01-02T00:00:00Z"


def queued(*others: VirtualMachineMigration, most: int = 10) -> str:
    found = plan(migration(**TO_B), machine(), pair(machine(), host("c"), others=others, most=most))
    assert (found.say.reason == "Queued") == (found.intent is None)
    if found.intent is None and "same VM" not in found.say.detail:
        assert (found.source, found.target) == ("a", "b")
    return found.say.detail if found.intent is None else ""


def test_a_host_that_is_full_is_waited_for_and_the_message_says_behind_what() -> None:
    assert queued(moving("m1", "a", "c")) == ""
    full = queued(moving("m1", "a", "c"), moving("m2", "a", "d"))
    assert full == "spec.migration.maxOutbound of Hypervisor a is 2, behind shop/m1, shop/m2"
    assert "maxInbound of Hypervisor b" in queued(moving("m1", "c", "b"), moving("m2", "d", "b"))
    assert "the cluster's limit of 1" in queued(moving("m1", "c", "d"), most=1)


def test_those_that_wait_longer_go_first_and_hold_up_nobody_elsewhere() -> None:
    one = moving("m1", "a", "c")
    assert queued(one, waiting("m2", EARLY, "a", "c")) != ""
    assert queued(one, waiting("m2", LATE, "a", "c")) == ""
    # m3 waits for host c, not for the cluster: it must not keep this one from the cluster's last place
    stuck = (moving("m1", "d", "c"), moving("m2", "e", "c"), waiting("m3", EARLY, "d", "c"))
    assert queued(*stuck, most=3) == ""
    assert queued(*stuck, most=2) != ""


@pytest.mark.parametrize("wish", ["a", "b", "c"])
def test_while_one_is_under_way_another_one_of_the_vm_waits_wherever_it_is_to_go(wish: str) -> None:
    under_way = moving("m1", "a", "b", vm="web")
    on_both = fleet(host("a", running(machine())), host("b", running(machine())), host("c"), others=(under_way,))
    found = plan(migration(target={"host": wish}), machine(), on_both)
    assert found.say.reason == "Queued"


def test_one_vm_is_moved_by_one_migration_at_a_time() -> None:
    assert "moves the same VM" in queued(moving("m1", "c", "d", vm="web"))
    assert "moves the same VM" in queued(waiting("m1", EARLY, "a", "c", vm="web"))
    assert queued(waiting("m1", LATE, "a", "c", vm="web")) == ""


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")).filter(lambda m: m[0] != m[1]), max_size=12))
def test_whatever_waits_no_limit_is_passed_and_somebody_can_always_begin(moves: list[tuple[str, str]]) -> None:
    """Grant in any pass whoever may begin, as the controller would; all begin, and no host has more than its limit."""
    view = VMView("cluster", {name: host(name) for name in "abc"}, fresh=True)
    left = [waiting(f"m{n:02}", f"2025-01-{n + 1:02}T00:00:00Z", *move) for n, move in enumerate(moves)]
    under_way: list[VirtualMachineMigration] = []
    while left:
        known = Fleet(view, (*under_way, *left), 3, NOW)
        ready = [
            each
            for each in left
            if not behind(each, view.hosts[each.status.source or ""], view.hosts[each.status.target or ""], known)
        ]
        if not ready:
            assert under_way, "nothing is under way and nobody may begin"
            under_way.pop(0)
            continue
        first = ready[-1]
        left.remove(first)
        under_way.append(moving(first.metadata.name, first.status.source or "", first.status.target or ""))
        assert len(under_way) <= 3
        for name in "abc":
            ends = [each.status.intent for each in under_way]
            assert sum(each is not None and each.source == name for each in ends) <= 2
            assert sum(each is not None and each.target == name for each in ends) <= 2


# What comes next


def waits(name: str, second: int, source: str, target: str, vm: str = "other") -> VirtualMachineMigration:
    created = {"name": name, "uid": name, "creationTimestamp": f"2026-01-01T00:00:{second:02}Z"}
    status = {"intent": None, "reason": "Queued", "source": source, "target": target}
    return migrations.migration(status, None, created, vmRef={"name": vm})


def after(*others: VirtualMachineMigration) -> list[str]:
    """Names of those that are looked at when a migration of VM web from a to b has ended."""
    return [each.metadata.name for each in next_in_turn(migrations.migration(), others)]


def test_those_that_wait_at_a_host_of_it_or_for_its_vm_come_next_the_oldest_first() -> None:
    near = (waits("late", 3, "a", "x"), waits("early", 1, "y", "b"), waits("same", 2, "y", "x", vm="web"))
    assert after(*near, waits("far", 0, "y", "x")) == ["early", "same", "late"]


def test_those_that_are_under_way_or_were_not_planned_are_left_alone() -> None:
    new = waits("new", 1, "a", "b")
    unplanned = new.model_copy(update={"status": new.status.model_copy(update={"reason": "Accepted"})})
    assert after(migrations.migration(), unplanned) == []


def test_a_long_queue_is_not_looked_at_as_a_whole() -> None:
    assert after(*(waits(f"m{number}", number, "a", "b") for number in range(20))) == [
        f"m{number}" for number in range(MOST_NEXT)
    ]
