# SPDX-License-Identifier: Apache-2.0
"""Where a VM may be, what keeps its volumes, and a store that was set back to a backup."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from homeostat.api import actions as act
from homeostat.api.hypervisor import HypervisorSpec
from homeostat.api.meta import FINALIZER
from homeostat.api.observed import Absent, Present
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import report
from homeostat.decide.view import HostView
from homeostat.decide.vm import decide
from tests.unit.test_decide_vm import DOWN, NOW, SPEC, UID, UUIDS, candidate, domain, host, owner, settled, view, vm

OWN_POOL = {"name": "fast", "pool": "default", "allowedNamespaces": ["*"]}
VOLUMES = {"default": frozenset({f"shop_web_root_{UID}.qcow2"})}


def test_an_image_from_before_the_vm_was_elsewhere_is_not_restored_over_newer_disks() -> None:
    """The wish is left in the spec from an earlier time."""
    old = {"host": "b", "candidates": [candidate("b")]}
    image, newer = host("a", Present(domain(settled(), managed_save=True))), host("b", Present(domain(settled())))
    wish = settled({"managedSave": {"host": "a", "action": "Restore"}}, old)
    decision = decide(wish, view(image, newer), NOW)
    assert (decision.action, decision.say.reason) == (None, "ManagedSaveOld")
    unsaid = settled(status=old)
    assert decide(unsaid, view(image, newer), NOW).say.reason == "ManagedSaveFound"
    meant = settled({"managedSave": {"host": "a", "action": "Restore"}}, old | {"reason": "ManagedSaveFound"})
    decision = decide(meant, view(image, newer), NOW)
    assert (decision.action, decision.say.reason) == (act.Undefine("b", UID), "ManagedSaveFound")
    drop = settled({"managedSave": {"host": "a", "action": "Discard"}}, old)
    assert decide(drop, view(image, newer), NOW).action == act.DiscardManagedSave("a", UID)


def test_a_disk_that_was_added_is_made_before_a_running_domain_without_a_definition_gets_one_that_shows_it() -> None:
    root, data = ({"name": name, "pool": "fast", "size": "1Gi"} for name in ("root", "data"))
    ran, wish = settled({"disks": [root]}), settled({"disks": [root, data]}, generation=4)
    transient = Present(domain(ran, state="Running", reason="Booted", persistent=False, inactive=None))
    first = decide(wish, view(host("a", transient, volumes=VOLUMES)), NOW).action
    assert isinstance(first, act.CreateVolume)
    both = {"default": VOLUMES["default"] | {first.name}}
    assert isinstance(decide(wish, view(host("a", transient, volumes=both)), NOW).action, act.Define)


def test_of_two_hypervisors_of_one_host_the_one_that_sees_the_vm_speaks_for_it() -> None:
    """The recorded one has a dead address, and a person who takes it for another machine gives that up."""
    running = host("b", Present(domain(settled(), state="Running", reason="Booted")), host_uuid=UUIDS["a"])
    for released in (False, True):
        seen = view(host("a", DOWN, released=released), running, host("c", Absent()))
        assert decide(settled(), seen, NOW).say.reason == "Running"
        elsewhere = settled(status={"candidates": [candidate("c")]})
        begun = replace(seen, hosts={**seen.hosts, "c": host("c", Present(domain(elsewhere)))})
        assert not isinstance(decide(elsewhere, begun, NOW).action, act.Start)


def test_a_host_where_the_vm_may_be_stays_on_record_until_it_is_proved_or_given_up() -> None:
    here = host("b", Present(domain(settled())))
    b, old = act.Candidate("b", "uid-b", UUIDS["b"]), act.Candidate("a", "uid-a", UUIDS["a"])
    going: dict[str, Any] = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    for unproved in (
        (),  # its Hypervisor is gone
        (host("a", DOWN, host_uuid=""),),  # it was made again, and has not answered
        (host("a", DOWN, host_uuid=UUIDS["c"]),),  # it is another machine now
        (host("c", DOWN, host_uuid=UUIDS["a"]),),  # another one names its machine
        (host("a", Present(domain(settled(), owner=None))),),
    ):
        kept = (b, replace(old, hypervisor="c", uid="uid-c") if [h.name for h in unproved] == ["c"] else old)
        for wish in (settled(), settled(**going)):
            assert decide(wish, view(here, *unproved), NOW).action == act.RecordCandidates(kept)
        rows = [{"hypervisor": each.hypervisor, "uid": each.uid, "hostUUID": each.host_uuid} for each in kept]
        recorded = decide(settled(status={"candidates": rows}), view(here, *unproved), NOW)
        assert recorded.action is None, "it is not started, and not written again"
    for proved in (host("a", Absent()), host("a", DOWN, released=True)):
        assert decide(settled(), view(here, proved), NOW).action == act.RecordCandidates((b,))
    told = settled({"abandonHosts": ["a"]}, **going)
    assert decide(told, view(here, host("a", DOWN)), NOW).action == act.RecordCandidates((b,))


def test_a_host_that_cannot_be_recorded_is_waited_for() -> None:
    here, nameless = host("b", Present(domain(settled()))), host("a", DOWN, host_uuid="")
    metas: list[dict[str, Any]] = [{}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}]
    for meta in metas:
        lost = vm(finalizers=[FINALIZER], **meta)
        decision = decide(lost, view(here, nameless), NOW)
        assert (decision.action, decision.say.reason) == (None, "DeletingWaits" if meta else "HostUnreachable")


def test_a_vm_is_not_deleted_beside_a_domain_of_its_uuid_that_has_not_its_mark() -> None:
    """It may be its own, whose metadata an edit from outside removed: then its disks are in use."""
    disk = {"disks": [{"name": "root", "pool": "fast", "size": "1Gi", "deletionPolicy": "Delete"}]}
    gone: dict[str, Any] = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    for wish in (settled(disk, **gone), vm(disk, finalizers=[FINALIZER], **gone)):
        for state in ("Running", "Shutoff"):
            stripped = host("a", Present(domain(wish, state=state, owner=None)), volumes=VOLUMES)
            decision = decide(wish, view(stripped), NOW)
            assert (decision.action, decision.say.reason) == (None, "DeletingWaits")
            assert all(word in decision.say.detail for word in ("takeover", "Release", UID, "Hypervisor a"))
    stripped = host("a", Present(domain(settled(disk), owner=None)), volumes=VOLUMES)
    taken = decide(settled(disk | {"takeover": "Unowned"}, **gone), view(stripped), NOW)
    assert taken.action == act.Undefine("a", UID)
    left = decide(settled(disk | {"abandonHosts": ["a"]}, **gone), view(stripped), NOW)
    assert left.action == act.RemoveFinalizer(), "its disks stay"


def test_a_disk_that_a_host_given_up_may_use_is_retained() -> None:
    disk = {"disks": [{"name": "root", "pool": "fast", "size": "1Gi", "deletionPolicy": "Delete"}]}
    both, gone = {"candidates": [candidate("a"), candidate("b")]}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    own = HypervisorSpec.model_validate(SPEC.model_dump(by_alias=True, exclude_none=True) | {"pools": [OWN_POOL]})
    here, delete = (
        host("a", Absent(), volumes=VOLUMES),
        act.DeleteVolume("a", "default", next(iter(VOLUMES["default"]))),
    )
    released, abandoned = settled(disk, both, **gone), settled(disk | {"abandonHosts": ["b"]}, both, **gone)
    retained: tuple[tuple[VirtualMachine, list[HostView]], ...] = (
        (released, [host("b", DOWN, released=True)]),
        (abandoned, [host("b", DOWN)]),
        (abandoned, [host("b", Present(domain(released, owner=None)))]),
        (abandoned, []),
    )
    for wish, others in retained:
        assert decide(wish, view(here, *others), NOW).action == act.RemoveFinalizer()
    assert decide(released, view(here, host("b", Absent(), volumes=VOLUMES)), NOW).action == delete
    apart = replace(here, spec=own)
    for others in ([replace(host("b", DOWN), spec=own)], []):
        assert decide(abandoned, view(apart, *others), NOW).action == delete


def test_a_disk_that_a_definition_shows_is_never_made_anew_and_ties_the_vm_to_its_storage() -> None:
    """A status can be lost, and the file system of the pool be unmounted at the same time."""
    disks = {"disks": [{"name": "root", "pool": "fast", "size": "1Gi"}]}
    own = HypervisorSpec.model_validate(SPEC.model_dump(by_alias=True, exclude_none=True) | {"pools": [OWN_POOL]})
    defined = replace(host("a", Present(domain(settled(disks))), volumes={"default": frozenset()}), spec=own)
    decision = decide(settled(disks), view(defined), NOW)
    assert (decision.action, decision.say.reason) == (None, "DiskMissing")
    elsewhere = settled(disks | {"placement": {"host": "b"}})
    decision = decide(elsewhere, view(defined, replace(host("b", Absent()), spec=own)), NOW)
    assert (decision.action, decision.say.reason) == (None, "DiskElsewhere")


@pytest.mark.parametrize("meta", [{}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}])
def test_a_store_that_was_set_back_stops_nothing_until_every_host_answered_and_then_not_by_an_old_clock(
    meta: dict[str, Any],
) -> None:
    reason = "DeletingStops" if meta else "Stopping"
    old = {"state": "Stopping", "reason": reason, "since": "2025-12-01T00:00:00Z"}
    wish = settled({"runStrategy": "Halted"}, old, generation=4, **meta)
    mark = owner(wish, generation=10, request="newer")
    running = domain(wish, state="Running", reason="Booted", owner=mark, live_owner=mark)
    silent = decide(wish, view(host("a", Present(running)), host("b", DOWN)), NOW)
    assert (silent.action, silent.say.reason) == (None, "DeletingWaits" if meta else "StoreBehind")
    told: list[tuple[str, object]] = []
    for _ in range(5):
        seen = view(host("a", Present(running)), host("b", Absent()))
        decision = decide(wish, seen, NOW)
        told.append((decision.say.reason, decision.action and type(decision.action)))
        if isinstance(decision.action, act.Mark) and decision.action.live:
            running = replace(running, live_owner=decision.action.owner)
        elif isinstance(decision.action, act.Mark):
            running = replace(running, owner=decision.action.owner)
        status = report.status(wish, seen, decision, NOW).wire() | {"candidates": [candidate("a")]}
        wish = settled({"runStrategy": "Halted"}, status, generation=4, **meta)
    behind: list[tuple[str, object]] = [("StoreBehind", None), ("StoreBehind", act.Mark), ("StoreBehind", act.Mark)]
    assert told == [*behind, (reason, None), (reason, act.Shutdown)]


def test_after_a_store_was_set_back_later_edits_count() -> None:
    wish = settled({"power": {"request": "old"}}, {"reason": "StoreBehind"}, generation=4)
    mark = replace(owner(wish), generation=4, request="old")
    caught_up = domain(wish, state="Running", reason="Booted", owner=mark, live_owner=mark)
    edited = settled({"power": {"request": "now"}}, generation=5)
    assert decide(wish, view(host("a", Present(caught_up)), host("b", DOWN)), NOW).say.reason == "Running"
    assert decide(edited, view(host("a", Present(caught_up)), host("b", DOWN)), NOW).say.reason == "Restarting"


def test_a_store_that_was_set_back_starts_no_vm_for_an_older_request() -> None:
    wish = settled({"runStrategy": "Manual", "power": {"request": "old"}}, generation=4)
    ended = domain(wish, owner=owner(wish, generation=10, request="newer", off="Shutdown"))
    mark = decide(wish, view(host("a", Present(ended))), NOW).action
    assert isinstance(mark, act.Mark)
    decision = decide(wish, view(host("a", Present(replace(ended, owner=mark.owner)))), NOW)
    assert (decision.action, decision.say.reason) == (None, "NotRequested")
