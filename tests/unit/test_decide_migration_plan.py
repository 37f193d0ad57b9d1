# SPDX-License-Identifier: Apache-2.0
"""A migration before libvirt is asked: bad input gets a sentence, the target is one that fits, and turns are fair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from homeostat.api import actions as act
from homeostat.api import reasons
from homeostat.api.meta import RECONCILE_ANNOTATION
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.migration_policy import EffectivePolicy
from homeostat.api.observed import Absent, Answer, Owner, Present, Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import migration_report as report
from homeostat.decide import wanted
from homeostat.decide.migratable import marker
from homeostat.decide.migration_peers import Peers
from homeostat.decide.migration_plan import plan, request
from homeostat.decide.migration_planning import Fleet
from homeostat.decide.view import Say
from tests.unit import test_decide_vm as vms
from tests.unit.planning import (
    DISK,
    NOW,
    POOL,
    SPEC,
    TO_B,
    fleet,
    host,
    machine,
    migration,
    moving,
    pair,
    running,
    spec,
)


def refused(of: VirtualMachineMigration, vm: VirtualMachine | None, known: Fleet) -> tuple[str, str]:
    """Return the terminal reason and its details."""
    found = plan(of, vm, known)
    assert reasons.MIGRATION[found.say.reason].ready == "False", found.say
    assert (found.action, found.intent) == (None, None)
    return found.say.reason, found.say.detail


def test_a_plan_is_written_down_with_all_that_cannot_be_read_back() -> None:
    found = plan(migration(), machine(), pair(machine()))
    intent = found.intent
    assert intent is not None
    assert (intent.source, intent.source_uuid) == ("a", vms.UUIDS["a"])
    assert (intent.target, intent.target_uuid) == ("b", vms.UUIDS["b"])
    assert (intent.attempt, intent.domain_uuid) == ("uid-move", vms.UID)
    assert (intent.started_paused, intent.locks) == ("Disabled", "None")
    assert isinstance(found.policy, EffectivePolicy)
    written = report.planned(migration(), found, NOW)
    assert (written.intent, written.policy, written.phase) == (intent, found.policy, "Preparing")


def test_the_finalizer_comes_before_the_intent() -> None:
    found = plan(migration(meta={"finalizers": []}), machine(), pair(machine()))
    assert (found.intent, found.action) == (None, act.AddFinalizer())


def test_nothing_is_planned_on_what_was_not_looked_at_now() -> None:
    found = plan(migration(), machine(), pair(machine(), fresh=False))
    assert found.intent is None
    assert found.look is not None
    assert (set(found.look.hosts), found.look.pools) == ({"a", "b"}, {"a": ("default",), "b": ("default",)})


def test_locks_and_switchover_are_part_of_the_intent() -> None:
    locks = spec(pools=[POOL | {"locks": "Effective"}])
    known = fleet(host("a", running(machine()), spec=locks), host("b", spec=locks))
    found = plan(migration(policy={"switchover": "Confirmed"}), machine(), known)
    assert found.intent is not None
    assert (found.intent.locks, found.intent.started_paused) == ("Effective", "Enabled")
    half = fleet(host("a", running(machine()), spec=locks), host("b"))
    without = plan(migration(), machine(), half)
    assert without.intent is not None
    assert without.intent.locks == "None"


# Bad input


def test_an_unknown_vm() -> None:
    assert refused(migration(), None, pair(machine())) == ("UnknownVM", "spec.vmRef.name is 'web'")


@pytest.mark.parametrize(
    ("state", "answer", "detail"),
    [
        ("Stopped", Absent(), "its state is Stopped"),
        ("Stopped", Present(vms.domain(machine())), "its state is Stopped"),
        ("Paused", running(machine(), state="Paused", reason="User"), "Paused/User"),
    ],
)
def test_a_vm_that_does_not_run(state: str, answer: Answer, detail: str) -> None:
    vm = vms.settled({"disks": [DISK]}, {"state": state})
    reason, said = refused(migration(), vm, fleet(host("a", answer), host("b")))
    assert reason == "VMNotRunning"
    assert detail in said


@pytest.mark.parametrize(
    ("state", "answer"),
    [
        (None, Absent()),
        ("Starting", Present(vms.domain(machine()))),
        ("Starting", running(machine(), state="Paused", reason="StartingUp")),
    ],
)
def test_a_vm_that_is_being_started_is_waited_for(state: str | None, answer: Answer) -> None:
    vm = vms.settled({"disks": [DISK]}, {"state": state} if state else {})
    found = plan(migration(), vm, fleet(host("a", answer), host("b")))
    assert (found.say.reason, found.intent) == ("VMStarting", None)
    assert found.requeue_after


def test_a_source_that_cannot_be_asked_is_waited_for() -> None:
    known = fleet(host("a", Unknown("ConnectionLost", "no route")), host("b"))
    assert plan(migration(), machine(), known).say.reason == "SourceUnknown"


@pytest.mark.parametrize(
    ("target", "b", "reason", "detail"),
    [
        ({"host": "a"}, {}, "TargetIsSource", "the VM is on a"),
        ({"host": "x"}, {}, "UnknownTarget", "Hypervisors are: a, b"),
        ({"host": "b"}, {"answer": Unknown("ConnectionLost", "no route")}, "TargetUnreachable", "no route"),
        ({"host": "b"}, {"closed": ("Cordoned", "it is cordoned")}, "TargetClosed", "Cordoned"),
        ({"host": "b"}, {"host_uuid": vms.UUIDS["a"]}, "TargetIsSource", "the VM is on a"),
        ({"host": "b"}, {"free_memory_mib": 1}, "NoTarget", "64 MiB are asked for"),
        ({"hostSelector": {"matchLabels": {"rack": "7"}}}, {}, "NoHostMatches", "rack=7"),
        (None, {"closed": ("Cordoned", "it is cordoned")}, "NoTarget", "Cordoned"),
        ({"host": "b"}, {"spec": spec(pools=[POOL | {"storageID": "two"}])}, "NotMigratable", "LocalDisk"),
        ({"host": "b"}, {"spec": spec(uri="qemu:///system")}, "NoPeerURI", "Hypervisor b"),
        ({"host": "b"}, {"answer": running(machine(), state="Paused")}, "NotMigratable", "it runs on a and on b"),
    ],
)
def test_a_target_that_will_not_do(target: dict[str, Any] | None, b: dict[str, Any], reason: str, detail: str) -> None:
    fields: dict[str, Any] = {"target": target} if target else {}
    found = refused(migration(**fields), machine(), fleet(host("a", running(machine())), replace(host("b"), **b)))
    assert found[0] == reason
    assert detail in found[1]


def test_a_target_that_was_not_asked_yet_is_waited_for() -> None:
    closed = host("b", Unknown("HostNotAsked"), closed=("Connecting", "it is being connected to"))
    for of in (migration(), migration(**TO_B)):
        assert plan(of, machine(), fleet(host("a", running(machine())), closed)).say.reason == "HostsConnecting"


@pytest.mark.parametrize(
    ("copy", "reason"),
    [({"type": "Full", "disks": ["data"]}, "UnknownDisk"), ({"type": "Full", "disks": ["root"]}, "SharedDiskCopy")],
)
def test_a_storage_copy_that_makes_no_sense(copy: dict[str, Any], reason: str) -> None:
    assert refused(migration(storageCopy=copy), machine(), pair(machine()))[0] == reason


LOCAL = spec(pools=[POOL | {"storageID": None}])
VOLUME = wanted.volume_name(machine(), machine().spec.disks[0])
PATH = wanted.config(machine(), host("a"), None).disks[0].path
COPIED: dict[str, Any] = {"storageCopy": {"type": "Full", "disks": ["root"]}}


def copying(chain: tuple[str, ...] = (PATH,), **there: Any) -> Fleet:
    """Return a fleet where the VM runs on a from a disk of its own, which b is to get."""
    answer = running(machine(), chains=(("ua-disk-root", chain),))
    source = host("a", answer, spec=LOCAL, sizes={("default", VOLUME): 5})
    return fleet(source, host("b", **({"spec": LOCAL} | there)))


def test_a_local_disk_goes_when_it_is_copied_and_the_storage_is_then_checked_by_libvirt() -> None:
    of = migration(**COPIED)
    first = plan(of, machine(), fleet(host("a", running(machine()), spec=LOCAL), host("b", spec=LOCAL)))
    assert first.look is not None
    assert first.look.sizes == (("default", VOLUME),)
    found = plan(of, machine(), copying())
    assert found.intent is not None
    (copy,) = found.intent.copies
    assert (copy.volume, copy.source_pool, copy.target_pool, copy.size_bytes) == (VOLUME, "default", "default", 5)
    assert found.policy is not None
    asked = request(of, found.intent, found.policy, LOCAL)
    assert (asked.copy, asked.copy_disks, asked.unsafe) == ("Full", ("ua-disk-root",), False)


def test_what_is_in_the_way_of_a_copy() -> None:
    known = copying(volumes={"default": frozenset({VOLUME})})
    reason, detail = refused(migration(**COPIED), machine(), known)
    assert reason == "VolumeInTheWay"
    assert VOLUME in detail
    for chain in ((f"{PATH}.snapshot", PATH), (PATH, "/somewhere/base.qcow2"), ()):
        assert refused(migration(**COPIED), machine(), copying(chain))[0] == "NotMigratable"


def test_policies_that_cannot_be_carried_out() -> None:
    several = spec(migration={"policy": {"parallelConnections": 4}})
    known = fleet(host("a", running(machine()), spec=several), host("b"))
    assert refused(migration(policy={"mode": "Auto"}), machine(), known)[0] == "PolicyConflict"


def test_auto_does_without_post_copy_where_it_was_just_refused_and_post_copy_tries_again() -> None:
    def prepared(mode: str, refused_by: str) -> tuple[str, str]:
        over = report.conditions(migration(), Say("NoPostCopy"), NOW)
        status = {"reason": "NoPostCopy", "target": refused_by, "conditions": [each.wire() for each in over]}
        known = pair(machine(), others=(migration("before", status=status),))
        found = plan(migration(policy={"mode": mode}), machine(), known)
        assert found.intent is not None
        assert found.policy is not None
        return found.intent.post_copy, found.policy.auto_converge

    assert prepared("Auto", "c") == ("Enabled", "Disabled")
    assert prepared("Auto", "b") == ("Disabled", "Enabled")
    assert prepared("PostCopy", "b") == ("Enabled", "Disabled")


def test_one_that_is_stopped_before_it_began() -> None:
    assert refused(migration(abort="Requested"), machine(), pair(machine()))[0] == "Aborted"
    gone = migration(meta={"deletionTimestamp": "2026-01-01T00:00:00Z"})
    assert refused(gone, machine(), pair(machine()))[0] == "Aborted"


def test_libvirt_is_asked_for_what_the_policy_and_the_target_say() -> None:
    there = spec(migration={"peerURI": "qemu+tls://b.example:16514/system", "ports": {"first": 50000, "last": 50009}})
    known = fleet(host("a", running(machine())), host("b", spec=there))
    wishes = {"bandwidth": "1Gi", "maxDowntimeMilliseconds": 100, "parallelConnections": 4, "compression": "Zstd"}
    found = plan(migration(policy=wishes), machine(), known)
    assert found.intent is not None
    assert found.policy is not None
    asked = request(migration(), found.intent, found.policy, there)
    assert (asked.host, asked.uuid) == ("a", vms.UID)
    assert (asked.peer, asked.address, asked.port) == (there.migration.peer_uri, "b.example", found.intent.port)
    assert 50000 <= asked.port <= 50009
    assert (asked.bandwidth_mib, asked.connections, asked.compression, asked.tls) == (1024, 4, "zstd", True)
    assert (asked.max_downtime_ms, asked.start_paused, asked.post_copy, asked.unsafe) == (10, False, False, True)
    named = request(migration(), found.intent, found.policy, spec(migration={"address": "198.51.100.9"}))
    assert (named.address, named.peer) == ("198.51.100.9", SPEC["uri"])


# Storage


def test_shared_storage_is_proved_by_a_mark_that_the_source_makes_and_the_target_sees() -> None:
    unmarked: dict[str, Any] = {"volumes": {"default": frozenset[str]()}}
    known = fleet(host("a", running(machine()), **unmarked), host("b", **unmarked))
    mark = plan(migration(), machine(), known).action
    assert isinstance(mark, act.CreateVolume)
    assert (mark.host, mark.pool, mark.name) == ("a", "default", marker(vms.UUIDS["a"]))
    elsewhere = fleet(host("a", running(machine())), host("b", **unmarked))
    reason, detail = refused(migration(**TO_B), machine(), elsewhere)
    assert (reason, detail.split(":")[0]) == ("NotMigratable", "StorageNotProved")
    dark = fleet(host("a", running(machine())), host("b", volumes={"default": Unknown("PoolUnavailable")}))
    waiting = plan(migration(), machine(), dark)
    assert (waiting.intent, waiting.action) == (None, None)


# Choice


def test_the_roomiest_host_that_fits_is_taken_and_a_busy_one_only_if_all_are() -> None:
    roomy = host("c", free_memory_mib=9000)
    known = pair(machine(), roomy)
    assert plan(migration(), machine(), known).target == "c"
    busy = tuple(moving(f"m{n}", "x", "c") for n in range(2))
    assert plan(migration(), machine(), pair(machine(), roomy, others=busy)).target == "b"
    labeled = pair(machine(), replace(roomy, labels={"rack": "1"}), host("a", running(machine())))
    to_rack = migration(target={"hostSelector": {"matchLabels": {"rack": "1"}}})
    assert plan(to_rack, machine(), labeled).target == "c"


# Connection


URI = "qemu+tcp://198.51.100.1/system"


def peers(one: str, other: str) -> Peers:
    """Return two hosts, and the URI that all hosts here have."""
    return Peers(vms.UUIDS[one], vms.UUIDS[other], URI)


def test_before_the_first_migration_between_two_hosts_their_connection_is_tried() -> None:
    known = pair(machine(), reached={})
    found = plan(migration(**TO_B), machine(), known)
    assert (found.intent, found.action, found.say.reason) == (None, None, "Accepted")
    assert found.reach is not None
    assert (found.reach.host, found.reach.uuid, found.reach.peers) == ("a", vms.UID, peers("a", "b"))
    assert plan(migration(**TO_B), machine(), replace(known, reached={peers("a", "b"): ""})).intent is not None
    other = replace(known, reached={peers("a", "b")._replace(uri="qemu+tcp://198.51.100.9/system"): ""})
    assert plan(migration(**TO_B), machine(), other).reach is not None


def test_a_target_that_the_source_cannot_connect_to_is_told_in_libvirts_words() -> None:
    known = pair(machine(), reached={peers("a", "b"): "Connection refused"})
    assert refused(migration(**TO_B), machine(), known) == ("PeerUnreachable", f"from a to {URI}: Connection refused")


def test_where_no_target_is_named_one_is_taken_that_can_be_connected_to() -> None:
    hosts = (host("a", running(machine())), host("b", free_memory_mib=9000), host("c", free_memory_mib=5000))
    words = "Connection refused"
    assert plan(migration(), machine(), fleet(*hosts)).target == "b"
    known = fleet(*hosts, reached={peers("a", "b"): words, peers("a", "c"): ""})
    assert plan(migration(), machine(), known).target == "c"
    tried = plan(migration(), machine(), fleet(*hosts, reached={peers("a", "b"): words}))
    assert tried.reach is not None
    assert tried.reach.peers == peers("a", "c")
    known = fleet(*hosts, reached={peers("a", "b"): words, peers("a", "c"): "no route"})
    reason, detail = refused(migration(), machine(), known)
    assert (reason, words in detail, "no route" in detail) == ("NoTarget", True, True)


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ({"owner": None}, "a domain that nobody manages"),
        ({"owner": Owner("another", "shop", "web", vms.UID)}, "managed from another cluster"),
        ({"managed_save": True}, "spec.managedSave Discard"),
        ({"snapshots": True}, "snapshots"),
    ],
)
def test_what_the_target_has_of_the_vm_and_cannot_be_removed_is_named(domain: dict[str, Any], words: str) -> None:
    vm = machine()
    there = replace(vms.domain(vm, state="Shutoff", reason="Destroyed"), **domain)
    known = fleet(host("a", running(vm)), host("b", Present(there)))
    of = migration(**TO_B)
    reason, detail = refused(of, vm, known)
    assert reason == "NotMigratable"
    assert words in detail


def test_a_stale_definition_of_the_vm_on_the_target_is_no_obstacle() -> None:
    vm = machine()
    there = Present(vms.domain(vm, state="Shutoff", reason="Destroyed"))
    assert plan(migration(**TO_B), vm, fleet(host("a", running(vm)), host("b", there))).intent is not None


def test_a_vm_that_is_not_to_be_touched_or_not_to_run_is_not_moved() -> None:
    disabled = machine()
    disabled = disabled.model_copy(
        update={"metadata": disabled.metadata.model_copy(update={"annotations": {RECONCILE_ANNOTATION: "disabled"}})}
    )
    assert refused(migration(), disabled, pair(disabled))[1].startswith("ReconcileDisabled")
    halted = machine(runStrategy="Halted")
    assert refused(migration(), halted, pair(halted)) == ("VMNotRunning", "the VM is to be stopped")


def test_that_libvirt_was_not_asked_is_written_with_the_intent() -> None:
    written = report.planned(migration(), plan(migration(), machine(), pair(machine())), NOW)
    assert written.marks is not None
    assert written.marks.not_asked == NOW
