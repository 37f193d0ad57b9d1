# SPDX-License-Identifier: Apache-2.0
"""An API server that is away, forgets, or is set back to a backup; Events, and an operator that may not write them."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest

from tests.lab.rig import SHORT_OPTIONS, Rig
from tests.operator_process import NAMESPACE

RESYNC_SECONDS = 30  # the rig's resync of 10 s, at its longest, and the time to act on it
REST_SECONDS = 15


def test_what_happened_while_a_watch_was_cut_and_the_log_compacted_is_seen_within_one_resync(rig: Rig) -> None:
    names = ("deleted", "edited", "replaced")
    deleted, edited, _ = (rig.vm(name) for name in names)
    rig.patch("vm", "replaced", {"spec": {"runStrategy": "Halted"}})
    hosts = {name: rig.running(name) for name in names[:2]}
    rig.until(lambda: rig.reason("vm", "replaced") == "Halted", "one VM to be halted")
    rig.operator.process.signal(signal.SIGSTOP)
    rig.patch("vm", "edited", {"spec": {"execution": "Paused"}})
    rig.delete("vm", "deleted")
    rig.delete("vm", "replaced")
    rig.plane.kill_apiserver()
    rig.plane.start_apiserver()
    rig.plane.compact()
    rig.operator.process.signal(signal.SIGCONT)
    rig.gone("vm", "deleted", seconds=RESYNC_SECONDS)
    rig.until(lambda: rig.state("vm", "edited") == "Paused", "the edit to be carried out", RESYNC_SECONDS)
    rig.gone("vm", "replaced", seconds=RESYNC_SECONDS)
    uuid = rig.vm("replaced")
    rig.running("replaced")
    assert not hosts["deleted"].qemu_pid(deleted)
    assert hosts["edited"].virsh("domstate", edited).strip() == "paused"
    assert rig.processes(uuid) == 1


def test_an_api_server_that_is_away_costs_no_vm_and_the_operator_goes_on_after_it(rig: Rig) -> None:
    kept, killed = rig.vm("kept"), rig.vm("killed")
    home, host = rig.running("kept"), rig.running("killed")
    process, pid = rig.operator.process.pid, home.qemu_pid(kept)
    rig.plane.kill_apiserver()
    host.kill_qemu(killed)
    rig.stays(lambda: home.qemu_pid(kept) == pid and not host.qemu_pid(killed), "nothing is done without the store")
    rig.plane.start_apiserver()
    rig.until(lambda: host.qemu_pid(killed), "the VM that was killed meanwhile", RESYNC_SECONDS)
    rig.vm("late")
    rig.running("late", seconds=RESYNC_SECONDS)
    rig.until(lambda: all([at_once(rig), at_once(rig)]), "two in a row before a resync: the watch is back")
    assert rig.operator.process.pid == process
    assert home.qemu_pid(kept) == pid
    rig.lab.assert_never_two(killed)


def at_once(rig: Rig) -> bool:
    """Whether a VM that is made now runs within 3 s; a resync can be why one of two that follow each other does."""
    uuid = rig.vm(f"later-{time.monotonic_ns()}", memory={"size": "16Mi"})
    deadline = time.monotonic() + 3
    while (there := rig.host_of(uuid)) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return there is not None


def test_a_store_set_back_to_before_a_vm_was_made_leaves_an_orphan_that_is_told_and_not_touched(rig: Rig) -> None:
    rig.plane.save("before")
    disk = {"name": "data", "pool": "shared", "size": "8Mi", "deletionPolicy": "Delete"}
    uuid = rig.vm("lost", disks=[disk], placement={"host": "h1"})
    host = rig.running("lost")
    pid = host.qemu_pid(uuid)
    rig.plane.roll_back("before")
    assert rig.get("vm", "lost") is None
    rig.until(lambda: rig.status("hv", "h1").get("orphans"), "the orphan to be told", 2 * RESYNC_SECONDS)
    (orphan,) = rig.status("hv", "h1")["orphans"]
    assert (orphan["uuid"], orphan["namespace"], orphan["vm"]) == (uuid, "default", "lost")
    assert host.qemu_pid(uuid) == pid

    rig.vm("lost", disks=[disk], placement={"host": "h1"}, domainUUID=uuid, takeover="PreviousIncarnation")
    rig.running("lost")
    assert host.qemu_pid(uuid) == pid
    rig.until(lambda: not rig.status("hv", "h1").get("orphans"), "no orphan any more", 2 * RESYNC_SECONDS)
    assert len([name for name in host.volumes("shared") if name.startswith("default_lost_data_")]) == 1


def test_a_store_set_back_to_before_an_edit_starts_nothing_until_every_host_has_answered(rig: Rig) -> None:
    uuid = rig.vm("web", placement={"host": "h1"})
    host = rig.running("web")
    rig.plane.save("before")
    rig.patch("vm", "web", {"spec": {"memory": {"size": "96Mi"}, "power": {"request": "again"}}})
    rig.until(lambda: rig.processes(uuid) == 2, "a restart")
    rig.running("web")
    rig.lab.hosts[2].cut()
    rig.until(lambda: rig.state("hv", "h3") == "Unreachable", "a host to be silent")
    rig.plane.roll_back("before")
    rig.until(lambda: rig.condition("vm", "web", "RestartRequired").get("status") == "True", "it", RESYNC_SECONDS)
    assert "memory: 96 MiB running, 64 MiB wanted" in rig.status("vm", "web")["pendingChanges"]
    assert rig.processes(uuid) == 2
    host.kill_qemu(uuid)
    rig.until(lambda: rig.reason("vm", "web") == "StoreBehind", "the VM to be told of as set back")
    rig.stays(lambda: rig.processes(uuid) == 2, "nothing is started", 3)
    rig.lab.hosts[2].join()
    rig.until(lambda: rig.processes(uuid) == 3, "a start after all have answered", RESYNC_SECONDS)
    assert rig.running("web") == host
    definition = host.definition(uuid)
    assert definition is not None
    assert definition.findtext("memory") == str(64 * 1024)
    rig.lab.assert_never_two(uuid)


def events(rig: Rig, uid: str) -> list[dict[str, Any]]:
    """The Events about an object, the oldest first."""
    found = rig.kubectl("get", "events", "-A", "--field-selector", f"involvedObject.uid={uid}", "-o", "json")
    return sorted(json.loads(found)["items"], key=lambda event: int(event["metadata"]["resourceVersion"]))


def since_running(told: list[dict[str, Any]]) -> list[str]:
    """The reasons from the first Running on, without the deletion: steps are told too if they last."""
    reasons = [event["reason"] for event in told if event["reason"] != "Deleting"]
    return reasons[reasons.index("Running") :]


def test_events_tell_the_transitions_of_a_life_and_nothing_at_rest(rig: Rig) -> None:
    uuid = rig.vm("storied")
    host = rig.running("storied")
    host.kill_qemu(uuid)
    rig.until(lambda: rig.processes(uuid) == 2, "it to be healed")
    rig.running("storied")
    rig.stays(lambda: rig.state("vm", "storied") == "Running", "rest", REST_SECONDS)
    assert since_running(events(rig, uuid)) == ["Running", "Starting", "Running"]
    rig.patch("vm", "storied", {"spec": {"runStrategy": "Halted"}})
    rig.until(lambda: rig.reason("vm", "storied") == "Halted", "it to be off")
    rig.until(lambda: since_running(events(rig, uuid))[3:] == ["Stopping", "Halted"], "its end to be told")
    rig.delete("vm", "storied")
    rig.gone("vm", "storied")
    told = events(rig, uuid)
    assert since_running(told)[3:] == ["Stopping", "Halted"]
    assert {event["involvedObject"]["name"] for event in told} == {"storied"}
    assert all(event["message"].endswith(".") and len(event["message"]) < 1024 for event in told)


RULES = [
    {"apiGroups": ["homeostat.dev"], "resources": ["*"], "verbs": ["*"]},
    {"apiGroups": [""], "resources": ["namespaces", "secrets"], "verbs": ["get", "list", "watch"]},
]


@pytest.fixture
def account(rig: Rig) -> str:
    """A service account that may do everything the operator needs but write Events."""
    rbac, group, role = "rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io", "mute"
    rig.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": role, "namespace": NAMESPACE}},
        {"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": role}, "rules": RULES},
        {
            "apiVersion": rbac,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": role},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": role, "namespace": NAMESPACE}],
        },
    )
    return role


def test_events_that_may_not_be_written_keep_nothing_from_being_done(rig: Rig, account: str) -> None:
    kubeconfig = rig.plane.service_account_kubeconfig(NAMESPACE, account)
    rig.operator.terminate()
    mute = rig.another("mute", "--lease-seconds=0", *SHORT_OPTIONS, kubeconfig=kubeconfig)
    mute.start()
    try:
        uuid = rig.vm("untold")
        host = rig.running("untold")
        host.kill_qemu(uuid)
        rig.until(lambda: rig.processes(uuid) == 2, "it to be healed")
        rig.delete("vm", "untold")
        rig.gone("vm", "untold")
    finally:
        mute.kill()
    assert not events(rig, uuid)
    assert "an event could not be written" in mute.log
    assert not [line for line in mute.log.splitlines() if " WARNING " in line or " ERROR " in line]
