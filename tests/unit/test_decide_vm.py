# SPDX-License-Identifier: Apache-2.0
"""The decisions about a VM: the protocol of a start, and that nothing follows from what is not known."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.api import actions as act
from homeostat.api import reasons
from homeostat.api.hypervisor import HypervisorSpec
from homeostat.api.meta import FINALIZER
from homeostat.api.observed import Absent, Answer, Domain, HostFacts, Owner, Pool, Present, Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import report, runstrategy, wanted
from homeostat.decide.view import Decision, Failure, HostView, Say, VMView
from homeostat.decide.vm import decide

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UID = "11111111-1111-4111-8111-111111111111"
CLUSTER = "cluster"
UUIDS = {name: f"00000000-0000-4000-8000-00000000000{n}" for n, name in enumerate(("a", "b", "c"))}
SPEC = HypervisorSpec.model_validate(
    {
        "uri": "qemu+tcp://198.51.100.1/system",
        "acceleration": "Emulation",
        "pools": [{"name": "fast", "pool": "default", "storageID": "one", "allowedNamespaces": ["*"]}],
    }
)


OWN_POOL = {"name": "fast", "pool": "default", "allowedNamespaces": ["*"]}
VOLUMES = {"default": frozenset({f"shop_web_root_{UID}.qcow2"})}


def candidate(host: str) -> dict[str, str]:
    return {"hypervisor": host, "uid": f"uid-{host}", "hostUUID": UUIDS[host]}


def vm(spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **meta: Any) -> VirtualMachine:
    metadata = {"name": "web", "namespace": "shop", "uid": UID, "generation": 3, "resourceVersion": "7"} | meta
    whole = {"memory": {"size": "64Mi"}} | (spec or {})
    return VirtualMachine.model_validate({"metadata": metadata, "spec": whole, "status": status or {}})


def settled(spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **meta: Any) -> VirtualMachine:
    """A VM recorded on host a, with its finalizer."""
    return vm(spec, {"candidates": [candidate("a")]} | (status or {}), **({"finalizers": [FINALIZER]} | meta))


def host(name: str, answer: Answer, **other: Any) -> HostView:
    facts = HostFacts(
        UUIDS[name],
        name,
        "9.0.0",
        "7.2.0",
        4,
        8192,
        default_cpu_model="qemu64",
        pools=(Pool("default", "Active", "/pool"),),
    )
    fields: dict[str, Any] = {
        "labels": {},
        "host_uuid": UUIDS[name],
        "facts": facts,
        "free_cpus": 8,
        "free_memory_mib": 4096,
    }
    return HostView(name=name, uid=f"uid-{name}", spec=SPEC, answer=answer, **(fields | other))


def view(*hosts: HostView, fresh: bool = True, **other: Any) -> VMView:
    return VMView(CLUSTER, {h.name: h for h in hosts}, fresh=fresh, **other)


def owner(of: VirtualMachine, **other: Any) -> Owner:
    return replace(Owner(CLUSTER, "shop", "web", of.metadata.uid, of.metadata.generation), **other)


def domain(
    of: VirtualMachine, on: HostView | None = None, state: str = "Shutoff", reason: str = "Unknown", **other: Any
) -> Domain:
    config = wanted.config(of, on or host("a", Absent()), None)
    active = state != "Shutoff"
    mine = owner(of)
    fields: dict[str, Any] = {
        "persistent": True,
        "owner": mine,
        "live_owner": mine if active else None,
        "live": config if active else None,
        "inactive": config,
    }
    return Domain(UID, "shop_web", state, reason, **(fields | other))


DOWN = Unknown("ConnectionLost", "no route to host", NOW)


def test_first_a_host_is_recorded_then_the_finalizer_then_the_definition_then_in_a_later_pass_the_start() -> None:
    new = vm()
    first = decide(new, view(host("a", Absent())), NOW)
    assert first.action == act.RecordCandidates((act.Candidate("a", "uid-a", UUIDS["a"]),))
    recorded = vm(status={"candidates": [candidate("a")]})
    assert decide(recorded, view(host("a", Absent())), NOW).action == act.AddFinalizer()
    defined = decide(settled(), view(host("a", Absent())), NOW).action
    assert isinstance(defined, act.Define)
    there = host("a", Present(domain(settled())))
    assert decide(settled(), view(there), NOW).action == act.Start("a", UID)


def test_nothing_is_done_to_a_host_on_cached_knowledge() -> None:
    for answer in (Absent(), Present(domain(settled())), Present(domain(settled(), state="Running", reason="Booted"))):
        for wish in (settled(), settled({"runStrategy": "Halted"}), settled(deletionTimestamp="2026-01-01T00:00:00Z")):
            decision = decide(wish, view(host("a", answer), fresh=False), NOW)
            assert decision.action is None


def test_a_candidate_that_cannot_be_asked_blocks_every_start() -> None:
    both = settled(status={"candidates": [candidate("a"), candidate("b")]})
    decision = decide(both, view(host("a", Present(domain(both))), host("b", DOWN)), NOW)
    assert decision.action is None
    assert decision.say.reason == "HostUnreachable"
    assert "b" in decision.say.detail


def test_lost_status_makes_every_hypervisor_a_candidate() -> None:
    lost = vm(finalizers=[FINALIZER])
    assert decide(lost, view(host("a", Absent()), host("b", DOWN)), NOW).action is None
    assert isinstance(decide(lost, view(host("a", Absent()), host("b", Absent())), NOW).action, act.RecordCandidates)


def test_a_host_out_of_service_lets_the_vm_go_elsewhere() -> None:
    decision = decide(
        settled(), view(host("a", DOWN, released=True, closed=("OutOfService", "")), host("b", Absent())), NOW
    )
    assert decision.action == act.RecordCandidates((act.Candidate("b", "uid-b", UUIDS["b"]),))


def test_another_machine_behind_the_uri_is_not_the_candidate() -> None:
    other = host("a", Absent(), host_uuid=UUIDS["c"])
    decision = decide(settled(), view(other, host("b", Absent())), NOW)
    assert decision.action is None
    assert decision.say.reason == "HostUnreachable"


def test_a_newer_mark_than_the_object_stops_starts_until_every_host_answered() -> None:
    old = settled()
    newer = Present(domain(old, owner=owner(old, generation=9)))
    blocked = decide(old, view(host("a", newer), host("b", DOWN)), NOW)
    assert blocked.action is None
    assert blocked.say.reason == "StoreBehind"
    assert decide(old, view(host("a", newer), host("b", Absent())), NOW).action is not None


def test_a_managed_save_stops_a_start_until_its_owner_says_what_becomes_of_it() -> None:
    saved = Present(domain(settled(), managed_save=True))
    assert decide(settled(), view(host("a", saved)), NOW).say.reason == "ManagedSaveFound"
    for wish, action in (("Restore", act.Start("a", UID)), ("Discard", act.DiscardManagedSave("a", UID))):
        told = settled({"managedSave": {"host": "a", "action": wish}})
        assert decide(told, view(host("a", Present(domain(told, managed_save=True)))), NOW).action == action


def test_an_image_is_restored_where_it_is_whatever_the_placement() -> None:
    wish = settled({"placement": {"host": "b"}, "managedSave": {"host": "a", "action": "Restore"}})
    saved = Present(domain(wish, managed_save=True))
    assert decide(wish, view(host("a", saved), host("b", Absent())), NOW).action == act.Start("a", UID)


def test_an_image_on_the_second_host_that_has_a_definition_stops_starts_too() -> None:
    off, saved = Present(domain(settled())), Present(domain(settled(), managed_save=True))
    both = view(host("a", off), host("b", saved))
    assert decide(settled(), both, NOW).say.reason == "ManagedSaveFound"
    drop = settled({"managedSave": {"host": "b", "action": "Discard"}})
    assert decide(drop, both, NOW).action == act.DiscardManagedSave("b", UID)
    back = settled({"managedSave": {"host": "b", "action": "Restore"}})
    assert decide(back, both, NOW).action == act.Undefine("a", UID)
    running = view(host("a", Present(domain(settled(), state="Running", reason="Booted"))), host("b", saved))
    assert (decide(settled(), running, NOW).action, decide(back, running, NOW).action) == (None, None)
    assert decide(drop, running, NOW).action == act.DiscardManagedSave("b", UID)


def test_an_image_from_before_the_vm_was_elsewhere_is_not_restored_over_newer_disks() -> None:
    """The wish is left in the spec from an earlier time."""
    old = {"host": "b", "candidates": [candidate("b")]}
    image, newer = host("a", Present(domain(settled(), managed_save=True))), host("b", Present(domain(settled())))
    wish = settled({"managedSave": {"host": "a", "action": "Restore"}}, old)
    decision = decide(wish, view(image, newer), NOW)
    assert (decision.action, decision.say.reason) == (None, "ManagedSaveFound")
    drop = settled({"managedSave": {"host": "a", "action": "Discard"}}, old)
    assert decide(drop, view(image, newer), NOW).action == act.DiscardManagedSave("a", UID)


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


def test_of_two_hypervisors_of_one_host_the_recorded_one_speaks_for_it() -> None:
    running = Present(domain(settled(), state="Running", reason="Booted"))
    for names in (("a", "b"), ("b", "a")):
        seen = view(*(host(name, running, host_uuid=UUIDS["a"]) for name in names))
        assert report.status(settled(), seen, decide(settled(), seen, NOW), NOW).host == "a"


def test_of_two_hypervisors_of_one_host_the_one_that_sees_the_vm_speaks_for_it() -> None:
    """The recorded one has a dead address, and a person who takes it for another machine gives that up."""
    running = host("b", Present(domain(settled(), state="Running", reason="Booted")), host_uuid=UUIDS["a"])
    for released in (False, True):
        seen = view(host("a", DOWN, released=released), running, host("c", Absent()))
        assert decide(settled(), seen, NOW).say.reason == "Running"
        elsewhere = settled(status={"candidates": [candidate("c")]})
        begun = replace(seen, hosts={**seen.hosts, "c": host("c", Present(domain(elsewhere)))})
        assert not isinstance(decide(elsewhere, begun, NOW).action, act.Start)


def test_foreign_domains_are_not_touched() -> None:
    for foreign in (
        None,
        Owner("other", "shop", "web", UID),
        Owner(CLUSTER, "shop", "web", "earlier"),
        Owner(CLUSTER, "x", "y", UID),
    ):
        for state in ("Shutoff", "Running"):
            for wish in (
                settled(),
                settled({"runStrategy": "Halted"}),
                settled(deletionTimestamp="2026-01-01T00:00:00Z"),
            ):
                answer = Present(
                    domain(wish, state=state, owner=foreign, live_owner=foreign if state == "Running" else None)
                )
                action = decide(wish, view(host("a", answer)), NOW).action
                assert action is None or isinstance(action, act.RemoveFinalizer)


def test_two_that_run_are_left_to_a_person() -> None:
    running = Present(domain(settled(), state="Running", reason="Booted"))
    decision = decide(settled(), view(host("a", running), host("b", running)), NOW)
    assert (decision.action, decision.say.reason) == (None, "RunningTwice")


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


def test_deletion_needs_an_answer_from_every_candidate_or_a_field() -> None:
    gone: dict[str, Any] = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert decide(settled(**gone), view(host("a", DOWN)), NOW).say.reason == "DeletingWaits"
    assert decide(settled(**gone), view(host("a", Absent())), NOW).action == act.RemoveFinalizer()
    assert decide(settled({"abandonHosts": ["a"]}, **gone), view(host("a", DOWN)), NOW).action == act.RemoveFinalizer()
    assert decide(settled(**gone), view(host("a", DOWN, released=True)), NOW).action == act.RemoveFinalizer()


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


def test_a_disk_that_was_seen_is_never_made_anew() -> None:
    disks = {"disks": [{"name": "root", "pool": "fast", "size": "1Gi"}]}
    empty = host("a", Absent(), volumes={"default": frozenset()})
    assert isinstance(decide(settled(disks), view(empty), NOW).action, act.CreateVolume)
    known = settled(disks, {"disks": [{"name": "root", "storage": "one"}]})
    assert decide(known, view(empty), NOW).say.reason == "DiskMissing"


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


def test_a_disk_left_by_an_earlier_vm_of_this_name_is_asked_about() -> None:
    left = host("a", Absent(), volumes={"default": frozenset({"shop_web_root_0000.qcow2"})})
    disk = {"name": "root", "pool": "fast", "size": "1Gi"}
    assert decide(settled({"disks": [disk]}), view(left), NOW).say.reason == "RetainedDisk"
    told = settled({"disks": [disk | {"source": {"type": "Blank", "blank": {"whenRetained": "Ignore"}}}]})
    assert isinstance(decide(told, view(left), NOW).action, act.CreateVolume)


def test_a_stop_is_on_record_then_asks_then_asks_again_then_ends_the_process() -> None:
    spec = {"runStrategy": "Halted", "terminationGracePeriodSeconds": 30}
    since = {"state": "Stopping", "reason": "Stopping", "since": "2026-01-01T00:00:00Z"}
    stopping = settled(spec, since)
    running = host("a", Present(domain(stopping, state="Running", reason="Booted", agent_connected=True)))

    def after(seconds: float, asked: float | None) -> Decision:
        return decide(stopping, view(running, asked_seconds_ago=asked), NOW + timedelta(seconds=seconds))

    first = decide(settled(spec), view(running), NOW)
    assert (first.say.reason, first.action, first.requeue_after) == ("Stopping", None, 0.0)
    assert after(1, None).action == after(1, 700.0).action == act.Shutdown("a", UID, agent=True)
    assert after(3, 2.0).action is None
    assert after(12, 11.0).action == act.Shutdown("a", UID, agent=False)
    assert after(31, 3.0).action == act.Destroy("a", UID)
    assert [round(after(*when).requeue_after or 0) for when in ((1, None), (3, 2.0), (25, 11.0))] == [10, 8, 6]


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


def test_a_stranger_elsewhere_is_a_conflict_while_the_vm_runs() -> None:
    wish = settled()
    running = host("a", Present(domain(wish, state="Running", reason="Booted")))
    stranger = host("b", Present(domain(wish, owner=None)))
    seen = view(running, stranger)
    status = report.status(wish, seen, decide(wish, seen, NOW), NOW)
    assert status.reason == "Running"
    assert ("Conflict", "True", "ForeignDomain") in {(c.type, c.status, c.reason) for c in status.conditions}


def test_a_domain_that_was_taken_over_keeps_its_name() -> None:
    wish = settled({"memory": {"size": "128Mi"}, "takeover": "Unowned"})
    legacy = replace(domain(settled(), reason="Destroyed"), name="legacy")
    defined = decide(wish, view(host("a", Present(legacy))), NOW).action
    assert isinstance(defined, act.Define)
    assert defined.name == "legacy"


def test_the_table_of_run_strategies() -> None:
    ask = runstrategy.starts
    for way in runstrategy.WAYS_OFF:
        assert ask("Always", way, served=True)
        assert not ask("Halted", way, served=False)
        assert ask("Manual", way, served=True) == (way == "Evacuated")
        assert ask("Manual", way, served=False)
        assert not ask("Manual", way, served=False, power_state="Stopped")
        assert ask("RerunOnFailure", way, served=True) == (way != "Shutdown")


def test_a_finished_vm_stays_finished_when_libvirt_forgets_why_it_is_off() -> None:
    once = settled({"runStrategy": "RerunOnFailure"})
    off = domain(once, reason="Shutdown")
    mark = decide(once, view(host("a", Present(off))), NOW).action
    assert isinstance(mark, act.Mark)
    assert mark.owner.off == "Shutdown"
    forgotten = replace(off, reason="Unknown", owner=mark.owner)
    decision = decide(once, view(host("a", Present(forgotten))), NOW)
    assert (decision.action, decision.say.reason) == (None, "Finished")


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


def test_a_request_is_served_once() -> None:
    asked = settled({"runStrategy": "Manual", "power": {"request": "two"}})
    prepared = decide(
        asked,
        view(host("a", Present(domain(asked, reason="Destroyed", owner=owner(asked, request="one", off="Destroyed"))))),
        NOW,
    ).action
    assert isinstance(prepared, act.Define)
    assert (prepared.owner.request, prepared.owner.off, prepared.owner.was) == ("two", None, "Destroyed")
    crashed_before_start = domain(asked, reason="Destroyed", owner=prepared.owner)
    assert decide(asked, view(host("a", Present(crashed_before_start))), NOW).action == act.Start("a", UID)
    ended = domain(asked, reason="Shutdown", owner=prepared.owner)
    assert isinstance(decide(asked, view(host("a", Present(ended))), NOW).action, act.Mark)


def test_only_what_we_paused_is_resumed() -> None:
    running = settled()
    ours = domain(running, state="Paused", reason="User", live_owner=owner(running, paused=True))
    theirs = domain(running, state="Paused", reason="User")
    assert decide(running, view(host("a", Present(ours))), NOW).action == act.Resume("a", UID)
    assert decide(running, view(host("a", Present(theirs))), NOW).say.reason == "PausedByOthers"


def test_a_changed_spec_is_pending_with_its_differences() -> None:
    small = settled()
    running = Present(domain(small, state="Running", reason="Booted"))
    big = settled({"memory": {"size": "128Mi"}})
    seen = view(host("a", running))
    status = report.status(big, seen, decide(big, seen, NOW), NOW)
    assert status.pending_changes == ("memory: 64 MiB running, 128 MiB wanted",)
    conditions = {c.type: (c.status, c.reason) for c in status.conditions}
    assert conditions["RestartRequired"] == ("True", "SpecChanged")
    assert conditions["Synchronized"] == ("False", "RestartRequired")
    assert conditions["Ready"][0] == "True"


ANSWERS = st.sampled_from(["absent", "unknown", "off", "off-known", "running", "paused", "foreign", "saved", "behind"])
SPECS = st.sampled_from(
    [
        {},
        {"runStrategy": "Halted"},
        {"runStrategy": "Manual"},
        {"runStrategy": "RerunOnFailure"},
        {"execution": "Paused"},
        {"deletionPolicy": "Release"},
        {"takeover": "Unowned"},
        {"placement": {"host": "b"}},
    ]
)
STATUSES = st.sampled_from(
    [
        {},
        {"candidates": [candidate("a")]},
        {"candidates": [candidate("a"), candidate("b")]},
        {"candidates": [candidate("a")], "host": "a", "domain": {"state": "Running", "reason": "Booted"}},
    ]
)
METAS: list[dict[str, Any]] = [
    {},
    {"finalizers": [FINALIZER]},
    {"finalizers": [FINALIZER], "deletionTimestamp": "2026-01-01T00:00:00Z"},
    {"finalizers": [FINALIZER], "annotations": {"homeostat.dev/reconcile": "disabled"}},
]


def answer_of(word: str, of: VirtualMachine) -> Answer:
    match word:
        case "absent":
            return Absent()
        case "unknown":
            return DOWN
        case "off":
            return Present(domain(of))
        case "off-known":
            return Present(domain(of, reason="Destroyed"))
        case "running":
            return Present(domain(of, state="Running", reason="Booted"))
        case "paused":
            return Present(domain(of, state="Paused", reason="User"))
        case "foreign":
            return Present(domain(of, owner=None))
        case "saved":
            return Present(domain(of, managed_save=True))
        case _:
            return Present(domain(of, owner=owner(of, generation=99)))


@settings(max_examples=1500, deadline=None)
@given(SPECS, STATUSES, st.sampled_from(METAS), ANSWERS, ANSWERS, st.booleans())
def test_whatever_is_seen_no_start_or_removal_follows_from_the_unknown(
    spec: dict[str, Any], status: dict[str, Any], meta: dict[str, Any], a: str, b: str, fresh: bool
) -> None:
    wish = vm(spec, status, **meta)
    seen = view(host("a", answer_of(a, wish)), host("b", answer_of(b, wish)), fresh=fresh)
    decision = decide(wish, seen, NOW)
    assert decision.say.reason in reasons.VM
    assert report.status(wish, seen, decision, NOW).state
    _check(wish, seen, decision, {"a": a, "b": b})


def _check(wish: VirtualMachine, seen: VMView, decision: Decision, words: dict[str, str]) -> None:
    action = decision.action
    if isinstance(action, act.HostAction):
        assert seen.fresh
        assert words[action.host] != "unknown"
        assert not (words[action.host] == "foreign" and wish.spec.takeover == "Never")
    may_be = {c.hypervisor for c in wish.status.candidates} or ({"a", "b"} if wish.metadata.finalizers else set())
    if isinstance(action, act.Start):
        assert not any(words[name] == "unknown" for name in may_be)
        assert sum(words[name] in ("off", "off-known", "running", "paused", "saved", "behind") for name in words) == 1
    if isinstance(action, act.RemoveFinalizer) and wish.spec.deletion_policy == "Destroy":
        assert all(words[name] in ("absent", "foreign") for name in may_be)
    if wish.metadata.annotations:
        assert action is None
        assert decision.look is None


def test_a_host_not_asked_yet_ends_no_run_and_a_step_is_not_written_at_once() -> None:
    running = settled(status={"state": "Running", "reason": "Running"})
    for reason, waits in (("HostNotAsked", True), ("Starting", False), ("HostUnreachable", False)):
        assert report.passing(running, Decision(Say(reason))) == waits
    assert report.passing(settled(), Decision(Say("Starting")))


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


def test_a_store_that_was_set_back_restarts_no_process() -> None:
    machine = settled({"power": {"request": "old"}})
    for generation, stops in ((3, True), (4, False)):
        mark = owner(machine, request="new", generation=generation)
        seen = domain(machine, state="Running", reason="Booted", owner=mark, live_owner=mark)
        decision = decide(machine, view(host("a", Present(seen))), NOW)
        assert (decision.say.reason == "Restarting") == stops
