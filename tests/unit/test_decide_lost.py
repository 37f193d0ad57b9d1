# SPDX-License-Identifier: Apache-2.0
"""A VM that was last seen running and is off for no known reason: its process may be left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from homeostat.api import actions as act
from homeostat.api.observed import Absent, Present
from homeostat.decide import report
from homeostat.decide.vm import decide
from tests.unit.test_decide_vm import DOWN, NOW, UID, UNASKED, candidate, domain, host, owner, settled, view

DISKS = {"disks": [{"name": "root", "pool": "fast", "size": "1Gi"}]}
VOLUMES = {"default": frozenset({f"shop_web_root_{UID}.qcow2"})}
RAN: dict[str, Any] = {"domain": {"state": "Running", "reason": "Booted"}, "host": "a"}
GONE = "2026-01-01T00:00:00Z"
LOST = RAN | {"domain": {"state": "Unknown", "reason": "RecordLost", "since": "2025-12-31T00:00:00Z"}}


@pytest.mark.parametrize("meta", [{}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}])
def test_that_a_process_may_be_left_is_on_record_before_anything_is_started_beside_it(meta: dict[str, Any]) -> None:
    """Whoever goes on after a crash in the middle of that start finds what libvirt says of the refused process."""
    ran = settled(DISKS, RAN, **meta)
    there = view(host("a", Present(domain(ran)), volumes=VOLUMES))
    first = decide(ran, there, NOW)
    assert (first.action, first.say.reason, first.requeue_after) == (None, "RecordLost", 0.0)
    assert not report.passing(ran, first)
    written = report.status(ran, there, first, NOW).domain
    assert written is not None
    assert written.reason == "RecordLost"
    then = decide(settled(DISKS, LOST, **meta), there, NOW).action
    assert isinstance(then, act.Mark if meta else act.Start)


def test_a_definition_with_other_disks_is_made_after_a_start_of_the_old_one_was_not_refused() -> None:
    rescue = {"name": "rescue", "pool": "fast", "source": {"type": "Volume", "volume": {"name": "v", "format": "raw"}}}
    volumes = {"default": VOLUMES["default"] | {"v"}}
    edited = settled({"disks": [rescue]}, LOST, generation=4)
    ran_from = domain(settled(DISKS))

    def step(**seen: Any) -> Any:
        return decide(edited, view(host("a", Present(replace(ran_from, **seen)), volumes=volumes)), NOW).action

    probe = step()
    assert isinstance(probe, act.Mark)
    assert probe.owner.probe
    assert step(owner=probe.owner) == step(owner=probe.owner, reason="Failed") == act.Start("a", UID, paused=True)
    began = {"state": "Paused", "reason": "User", "owner": probe.owner, "live_owner": probe.owner}
    assert step(**began) == act.Destroy("a", UID)
    assert isinstance(step(owner=probe.owner, reason="Destroyed"), act.Define)


def test_off_for_no_known_reason_after_running_starts_only_on_the_same_host() -> None:
    there = Present(domain(settled(DISKS)))
    moved = settled({"placement": {"host": "b"}, **DISKS}, LOST)
    assert decide(moved, view(host("a", there, volumes=VOLUMES), host("b", Absent())), NOW).action == act.Start(
        "a", UID
    )
    going = settled(DISKS, LOST, deletionTimestamp="2026-01-01T00:00:00Z")
    probe = decide(going, view(host("a", there)), NOW).action
    assert isinstance(probe, act.Mark)
    assert probe.owner.probe
    probing = Present(domain(going, owner=owner(going, probe=True)))
    assert decide(going, view(host("a", probing)), NOW).action == act.Start("a", UID, paused=True)


@pytest.mark.parametrize(
    "status", [LOST, LOST | {"candidates": [candidate("a"), candidate("b")]}], ids=["not listed", "listed"]
)
def test_a_probe_is_a_start_and_waits_for_every_host_where_the_vm_may_be(status: dict[str, Any]) -> None:
    silent = host("b", DOWN) if "candidates" in status else host("b", UNASKED, awaited=True)
    for spec, meta, reason in (
        ({"runStrategy": "Halted"}, {}, "HostUnreachable" if "candidates" in status else "HostNotAsked"),
        ({}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "DeletingWaits"),
    ):
        machine = settled(DISKS | spec, status, **meta)
        probing = Present(domain(machine, owner=owner(machine, probe=True)))
        decision = decide(machine, view(host("a", probing), silent), NOW)
        assert (decision.action, decision.say.reason) == (None, reason)
        alone = decide(machine, view(host("a", probing), host("b", Absent())), NOW).action
        assert isinstance(alone, act.Start if status is LOST or meta else act.RecordCandidates)


def test_of_two_definitions_of_a_vm_that_goes_the_one_whose_process_may_be_left_is_probed_when_it_is_alone() -> None:
    going = settled(DISKS, LOST | {"candidates": [candidate("a"), candidate("b")]}, deletionTimestamp=GONE)
    lost = host("a", Present(domain(going, owner=owner(going, probe=True))))
    other = Present(domain(going, reason="Destroyed"))
    assert decide(going, view(lost, host("b", other)), NOW).action == act.Undefine("b", UID)
    assert decide(going, view(lost, host("b", Absent())), NOW).action == act.Start("a", UID, paused=True)
    stranger = decide(going, view(lost, host("b", Present(domain(going, owner=None)))), NOW)
    assert (stranger.action, stranger.say.reason) == (None, "DeletingWaits")


def test_two_hosts_where_a_process_may_be_left_are_named_and_a_person_says_of_one_that_there_is_none() -> None:
    both = LOST | {"host": None, "candidates": [candidate("a"), candidate("b")]}
    going = settled(DISKS, both, deletionTimestamp=GONE)
    off = Present(domain(going))
    waits = decide(going, view(host("a", off), host("b", off)), NOW)
    assert (waits.action, waits.say.reason) == (None, "DeletingWaits")
    assert "a process may be left on a and on b" in waits.say.detail
    told = settled(DISKS | {"confirmedOff": {"host": "b", "since": GONE}}, both, deletionTimestamp=GONE)
    assert decide(told, view(host("a", off), host("b", off)), NOW).action == act.Undefine("b", UID)


@pytest.mark.parametrize("reason", ["Unknown", "Failed", "Crashed", "Daemon"])
def test_a_start_that_came_to_nothing_beside_a_lost_process_does_not_have_it_forgotten(reason: str) -> None:
    """A libvirtd that ended in the middle of a start that the lock refused says Crashed of the refused process."""
    lost = {"domain": {"state": "Unknown", "reason": "RecordLost", "since": "2025-12-31T00:00:00Z"}, "host": "a"}
    going = settled(DISKS, lost, deletionTimestamp="2026-01-01T00:00:00Z")
    there = Present(domain(going, reason=reason))
    action = decide(going, view(host("a", there)), NOW).action
    assert isinstance(action, act.Mark)
    assert action.owner.probe
    starting = Present(domain(going, state="Paused", reason="StartingUp"))
    for answer in (there, starting):
        known = view(host("a", answer))
        seen = report.status(going, known, decide(going, known, NOW), NOW).domain
        assert seen is not None
        assert seen.reason == "RecordLost"


def test_a_start_by_hand_takes_back_the_mark_that_it_went_off() -> None:
    """Else a libvirtd that lost its record of that process would be believed."""
    metas: list[dict[str, Any]] = [{}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}]
    for meta in metas:
        for strategy in ("Manual", "Halted"):
            ran = settled({**DISKS, "runStrategy": strategy}, RAN, **meta)
            off = owner(ran, off="Shutdown")
            by_hand = domain(ran, state="Running", reason="Booted", owner=off, live_owner=off)
            mark = decide(ran, view(host("a", Present(by_hand))), NOW).action
            assert mark == act.Mark("a", UID, replace(off, off=None))
            marked = replace(by_hand, owner=replace(off, off=None))
            assert not isinstance(decide(ran, view(host("a", Present(marked))), NOW).action, act.Mark)
            lost = decide(ran, view(host("a", Present(domain(ran, owner=replace(off, off=None))))), NOW)
            assert (lost.action, lost.say.reason) == (None, "RecordLost")


def test_a_probe_that_is_refused_proves_nothing() -> None:
    lost = {"domain": {"state": "Unknown", "reason": "RecordLost", "since": "2025-12-31T00:00:00Z"}, "host": "a"}
    going = settled(DISKS, lost, deletionTimestamp="2026-01-01T00:00:00Z")
    refused = domain(going, reason="Failed", owner=owner(going, probe=True))
    assert decide(going, view(host("a", Present(refused))), NOW).action == act.Start("a", UID, paused=True)
    ended = domain(going, reason="Destroyed", owner=owner(going, probe=True))
    assert decide(going, view(host("a", Present(ended))), NOW).action == act.Undefine("a", UID)


def test_without_a_disk_no_lock_tells_so_a_person_has_to() -> None:
    there = view(host("a", Present(domain(settled()))))
    lost = {"domain": {"state": "Unknown", "reason": "RecordLost", "since": "2025-12-31T00:00:00Z"}, "host": "a"}
    metas: list[dict[str, Any]] = [{}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}]
    for gone in metas:
        decision = decide(settled(status=lost, **gone), there, NOW)
        assert (decision.action, decision.say.reason) == (None, "RecordLost")
        early = {"confirmedOff": {"host": "a", "since": "2025-12-30T00:00:00Z"}}
        assert decide(settled(early, lost, **gone), there, NOW).action is None
        told = {"confirmedOff": {"host": "a", "since": "2025-12-31T00:00:01Z"}}
        assert decide(settled(told, lost, **gone), there, NOW).action == (
            act.Undefine("a", UID) if gone else act.Start("a", UID)
        )
