# SPDX-License-Identifier: Apache-2.0
"""The decisions about a VM: the protocol of a start, and that nothing follows from what is not known."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from homeostat.api import actions as act
from homeostat.api import reasons
from homeostat.api.hypervisor import HypervisorSpec
from homeostat.api.meta import FINALIZER
from homeostat.api.observed import Absent, Answer, Domain, HostFacts, Owner, Pool, Present, Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import report, runstrategy, wanted
from homeostat.decide.view import Decision, HostView, Say, VMView
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
UNASKED = Unknown("HostNotAsked", "it is being connected to")


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


def test_of_two_hypervisors_of_one_host_the_recorded_one_speaks_for_it() -> None:
    running = Present(domain(settled(), state="Running", reason="Booted"))
    for names in (("a", "b"), ("b", "a")):
        seen = view(*(host(name, running, host_uuid=UUIDS["a"]) for name in names))
        assert report.status(settled(), seen, decide(settled(), seen, NOW), NOW).host == "a"


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


def test_deletion_needs_an_answer_from_every_candidate_or_a_field() -> None:
    gone: dict[str, Any] = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert decide(settled(**gone), view(host("a", DOWN)), NOW).say.reason == "DeletingWaits"
    assert decide(settled(**gone), view(host("a", Absent())), NOW).action == act.RemoveFinalizer()
    assert decide(settled({"abandonHosts": ["a"]}, **gone), view(host("a", DOWN)), NOW).action == act.RemoveFinalizer()
    assert decide(settled(**gone), view(host("a", DOWN, released=True)), NOW).action == act.RemoveFinalizer()


def test_a_disk_that_was_seen_is_never_made_anew() -> None:
    disks = {"disks": [{"name": "root", "pool": "fast", "size": "1Gi"}]}
    empty = host("a", Absent(), volumes={"default": frozenset()})
    assert isinstance(decide(settled(disks), view(empty), NOW).action, act.CreateVolume)
    known = settled(disks, {"disks": [{"name": "root", "storage": "one"}]})
    assert decide(known, view(empty), NOW).say.reason == "DiskMissing"


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


def test_another_order_of_disks_is_another_order_of_booting() -> None:
    disks = [{"name": name, "pool": "fast", "size": "1Gi"} for name in ("root", "data")]
    before, after = settled({"disks": disks}), settled({"disks": disks[::-1]})
    seen = view(host("a", Present(domain(before, state="Running", reason="Booted"))))
    status = report.status(after, seen, decide(after, seen, NOW), NOW)
    assert status.pending_changes == ("boot order: root then data running, data then root wanted",)


ANSWERS = (
    "absent", "unknown", "unasked", "off", "off-known", "probed", "running", "paused", "foreign", "saved", "behind",
)  # fmt: skip
DISKS = {"disks": [{"name": "root", "pool": "fast", "size": "1Gi"}]}
SPECS: list[dict[str, Any]] = [
    {},
    {"runStrategy": "Halted"},
    {"runStrategy": "Manual"},
    {"runStrategy": "RerunOnFailure"},
    {"execution": "Paused"},
    {"deletionPolicy": "Release"},
    {"takeover": "Unowned"},
    {"placement": {"host": "b"}},
    DISKS,
    DISKS | {"runStrategy": "Halted"},
]
ON_A, ON_BOTH = ({"candidates": [candidate(name) for name in names]} for names in ("a", "ab"))
STATUSES: list[dict[str, Any]] = [
    {},
    ON_A,
    ON_BOTH,
    ON_A | {"host": "a", "domain": {"state": "Running", "reason": "Booted"}},
    ON_A | {"host": "a", "domain": {"state": "Unknown", "reason": "RecordLost"}},
    ON_BOTH | {"domain": {"state": "Unknown", "reason": "RecordLost"}},
]
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
        case "unasked":
            return UNASKED
        case "off":
            return Present(domain(of))
        case "off-known":
            return Present(domain(of, reason="Destroyed"))
        case "probed":
            return Present(domain(of, owner=owner(of, probe=True)))
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


@pytest.mark.parametrize("meta", METAS, ids=["new", "held", "going", "disabled"])
@pytest.mark.parametrize("status", STATUSES, ids=["none", "on a", "on both", "ran", "lost", "lost on both"])
def test_whatever_is_seen_no_start_or_removal_follows_from_the_unknown(
    status: dict[str, Any], meta: dict[str, Any]
) -> None:
    """All combinations: a sample of them finds what is wrong in one of thousands only now and then."""
    for spec in SPECS:
        wish = vm(spec, status, **meta)
        for a, b, fresh in product(ANSWERS, ANSWERS, (True, False)):
            hosts = (
                host(name, answer_of(word, wish), awaited=word == "unasked") for name, word in (("a", a), ("b", b))
            )
            seen = view(*hosts, fresh=fresh)
            decision = decide(wish, seen, NOW)
            assert decision.say.reason in reasons.VM
            assert report.status(wish, seen, decision, NOW).state
            _check(wish, seen, decision, {"a": a, "b": b})


SILENT = ("unknown", "unasked")


def _check(wish: VirtualMachine, seen: VMView, decision: Decision, words: dict[str, str]) -> None:
    action = decision.action
    if isinstance(action, act.HostAction):
        assert seen.fresh
        assert words[action.host] not in SILENT
        assert not (words[action.host] == "foreign" and wish.spec.takeover == "Never")
    may_be = {c.hypervisor for c in wish.status.candidates} or ({"a", "b"} if wish.metadata.finalizers else set())
    if wish.status.domain is not None:
        may_be |= {name for name, word in words.items() if word == "unasked"}
    if isinstance(action, act.Start):
        assert not any(words[name] in SILENT for name in may_be)
        assert sum(word not in ("absent", "foreign", *SILENT) for word in words.values()) == 1
    if isinstance(action, act.RemoveFinalizer) and wish.spec.deletion_policy == "Destroy":
        assert all(words[name] in ("absent", "foreign") for name in may_be)
    if wish.metadata.annotations:
        assert action is None
        assert decision.look is None


def test_a_host_that_a_new_operator_has_not_asked_yet_may_have_what_a_person_moved_and_nothing_that_never_was() -> None:
    seen = {"domain": {"state": "Running", "reason": "Booted"}}
    for status, awaited, waits in ((seen, True, True), (seen, False, False), ({}, True, False)):
        machine = settled(status=status)
        for here in (Present(domain(machine, reason="Destroyed")), Absent()):
            decision = decide(machine, view(host("a", here), host("b", UNASKED, awaited=awaited)), NOW)
            assert (decision.say.reason == "HostNotAsked") == waits
            assert (decision.action is None) == waits
    gone = settled(status=seen, deletionTimestamp="2026-01-01T00:00:00Z")
    decision = decide(gone, view(host("a", Absent()), host("b", UNASKED, awaited=True)), NOW)
    assert (decision.say.reason, decision.action) == ("DeletingWaits", None)
    abandoning = settled({"abandonHosts": ["b"]}, seen, deletionTimestamp="2026-01-01T00:00:00Z")
    decision = decide(abandoning, view(host("a", Absent()), host("b", UNASKED, awaited=True)), NOW)
    assert decision.action == act.RemoveFinalizer()


def test_a_host_not_asked_yet_ends_no_run_and_a_step_is_not_written_at_once() -> None:
    running = settled(status={"state": "Running", "reason": "Running"})
    for reason, waits in (("HostNotAsked", True), ("Starting", False), ("HostUnreachable", False)):
        assert report.passing(running, Decision(Say(reason))) == waits
    assert report.passing(settled(), Decision(Say("Starting")))


def test_a_store_that_was_set_back_restarts_no_process() -> None:
    machine = settled({"power": {"request": "old"}})
    for generation, stops in ((3, True), (4, False)):
        mark = owner(machine, request="new", generation=generation)
        seen = domain(machine, state="Running", reason="Booted", owner=mark, live_owner=mark)
        decision = decide(machine, view(host("a", Present(seen))), NOW)
        assert (decision.say.reason == "Restarting") == stops
