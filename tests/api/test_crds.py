# SPDX-License-Identifier: Apache-2.0
"""The CRDs on a real API server: accepted as they are, explained, defaulted, with a status that several may write."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from homeostat.api.crd import KINDS, manifests
from homeostat.api.hypervisor import Hypervisor
from homeostat.api.meta import API_VERSION, GROUP, Resource
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.virtualmachine import VirtualMachine
from tests.api.objects import disk, hypervisor, migration, vm
from tests.api.server import Object, Server
from tests.controlplane import ControlPlane, GivenControlPlane

Cluster = ControlPlane | GivenControlPlane
UID, HOST_UUID = "11111111-2222-4333-8444-555555555550", "22222222-2222-4333-8444-555555555550"
CANDIDATE = {"hypervisor": "host-1", "uid": UID, "hostUUID": HOST_UUID}
NOW = "2026-01-31T12:00:00Z"
READY = {
    "type": "Ready",
    "status": "True",
    "lastTransitionTime": NOW,
    "reason": "Running",
    "message": "",
    "observedGeneration": 1,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_api_server_accepts_and_keeps_the_whole_schema(cluster: Cluster, kind: type[Resource]) -> None:
    crd = json.loads(cluster.kubectl("get", "crd", f"{kind.plural}.{GROUP}", "--output=json"))
    conditions = {each["type"]: each["status"] for each in crd["status"]["conditions"]}
    assert conditions["Established"] == conditions["NamesAccepted"] == "True"
    assert "NonStructuralSchema" not in conditions
    sent = yaml.safe_load(manifests()[f"{kind.plural}.yaml"])["spec"]["versions"][0]
    kept = crd["spec"]["versions"][0]
    assert kept["schema"] == sent["schema"]  # what it does not know it drops without a word
    assert kept.get("selectableFields") == sent.get("selectableFields")


def fields(node: Object, path: str) -> Iterator[tuple[str, Object]]:
    """Yield the path and schema of every field of spec and status."""
    for name, child in node.get("properties", {}).items():
        if path or name in ("spec", "status"):
            yield f"{path}.{name}", child
            yield from fields(child, f"{path}.{name}")
    if "items" in node:
        yield from fields(node["items"], path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_a_sentence(cluster: Cluster, kind: type[Resource]) -> None:
    crd = json.loads(cluster.kubectl("get", "crd", f"{kind.plural}.{GROUP}", "--output=json"))
    found = list(fields(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], ""))
    assert len(found) > 50
    mute = [
        path for path, node in found if not node.get("description", "").endswith(".") or len(node["description"]) < 12
    ]
    assert mute == []


EXPLAINED = {
    "vm.spec.disks.bus": "The bus that the guest sees the disk on",
    "vm.spec.disks.source.image.format": "Format of the image; it is never guessed.",
    "vm.status.candidates": "Hosts where the VM may be",
    "vmmig.spec.resolve.evidence": "status.decision.evidence that this answers",
    "hv.spec.pools.storageID": "Names storage that several hosts share",
    "hypervisor.status.conditions.reason": "One word for why",
}


@pytest.mark.parametrize(("field", "sentence"), EXPLAINED.items())
def test_kubectl_explains(cluster: Cluster, field: str, sentence: str) -> None:
    assert sentence in " ".join(cluster.kubectl("explain", field).split())


def stored(cluster: Cluster, item: Object) -> Object:
    """Return the object as it lies in etcd; of a cluster whose etcd is not ours, as the server shows it."""
    meta = item["metadata"]
    if isinstance(cluster, GivenControlPlane):
        shown: Object = json.loads(
            cluster.kubectl("get", item["kind"], meta["name"], "-n", meta["namespace"], "--output=json")
        )
        return shown
    plural = f"{item['kind'].lower()}s"
    key = f"/registry/{GROUP}/{plural}/{meta['namespace']}/{meta['name']}"
    answer = cluster._etcd_call("kv/range", {"key": base64.b64encode(key.encode()).decode()})
    value: Object = json.loads(base64.b64decode(answer["kvs"][0]["value"]))
    return value


def test_defaults_land_in_etcd(cluster: Cluster, server: Server, namespace: str) -> None:
    made = server.create(vm("web", namespace, disks=[{"name": "root", "pool": "local", "size": "1Gi"}]))
    assert stored(cluster, made)["spec"] == {
        "runStrategy": "Always",
        "power": {"state": "Running", "request": ""},
        "execution": "Running",
        "machine": {"type": "q35"},
        "boot": {"type": "Disk"},
        "firmware": {"type": "BIOS"},
        "cpu": {"sockets": 1, "cores": 1, "threads": 1},
        "memory": {"size": "64Mi"},
        "disks": [
            {
                "name": "root",
                "pool": "local",
                "size": "1Gi",
                "source": {"type": "Blank"},
                "bus": "virtio",
                "deletionPolicy": "Retain",
            }
        ],
        "console": {"log": "Enabled"},
        "guestAgent": "Enabled",
        "terminationGracePeriodSeconds": 120,
        "deletionPolicy": "Destroy",
        "evacuation": "Stay",
        "takeover": "Never",
    }


def test_half_a_member_gets_the_other_half(server: Server) -> None:
    made = server.create(hypervisor(overcommit={"cpuPercent": 100}), dry_run=True)
    assert made["spec"]["overcommit"] == {"cpuPercent": 100, "memoryPercent": 100}


def test_applying_twice_changes_nothing(server: Server, namespace: str) -> None:
    item = vm("web", namespace, disks=[disk()], placement={"hostSelector": {"matchLabels": {"rack": "1"}}})
    once = server.apply(item, "owner")
    twice = server.apply(item, "owner")
    assert twice["metadata"]["resourceVersion"] == once["metadata"]["resourceVersion"]


def test_status_is_its_own_subresource(server: Server, namespace: str) -> None:
    made = server.create({**vm("web", namespace), "status": {"state": "Running"}})
    assert "status" not in made
    written = server.replace(
        made | {"status": {"state": "Running"}, "spec": {"memory": {"size": "1Gi"}}}, subresource="/status"
    )
    assert written["status"] == {"state": "Running"}
    assert written["spec"] == made["spec"]
    assert written["metadata"]["generation"] == made["metadata"]["generation"] == 1
    changed = server.replace(written | {"spec": {**written["spec"], "runStrategy": "Halted"}, "status": {}})
    assert changed["status"] == {"state": "Running"}
    assert changed["metadata"]["generation"] == 2


def apply_status(server: Server, namespace: str, manager: str, **status: Any) -> Object:
    head = {"apiVersion": API_VERSION, "kind": "VirtualMachine", "metadata": {"name": "web", "namespace": namespace}}
    return server.apply({**head, "status": status}, manager, subresource="/status")


def test_candidates_survive_what_others_apply(server: Server, namespace: str) -> None:
    server.create(vm("web", namespace))
    apply_status(server, namespace, "candidates", candidates=[CANDIDATE])
    apply_status(server, namespace, "status", state="Starting", conditions=[READY])
    after = apply_status(server, namespace, "status", state="Running", conditions=[READY])
    assert after["status"] == {"state": "Running", "conditions": [READY], "candidates": [CANDIDATE]}
    again = apply_status(server, namespace, "status", state="Running", conditions=[READY])
    assert again["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]


def test_only_their_own_manager_lets_candidates_go(server: Server, namespace: str) -> None:
    server.create(vm("web", namespace))
    apply_status(server, namespace, "candidates", candidates=[CANDIDATE, {**CANDIDATE, "hypervisor": "host-2"}])
    apply_status(server, namespace, "status", state="Stopped")
    after = apply_status(server, namespace, "candidates", candidates=[CANDIDATE])
    assert after["status"] == {"state": "Stopped", "candidates": [CANDIDATE]}


def test_conditions_of_two_managers_live_side_by_side(server: Server, namespace: str) -> None:
    server.create(vm("web", namespace))
    apply_status(server, namespace, "one", conditions=[READY])
    both = apply_status(server, namespace, "two", conditions=[{**READY, "type": "Migrating"}])
    assert [each["type"] for each in both["status"]["conditions"]] == ["Ready", "Migrating"]
    left = apply_status(server, namespace, "two", conditions=[])
    assert [each["type"] for each in left["status"]["conditions"]] == ["Ready"]


VM_STATUS: Object = {
    "observedGeneration": 1,
    "state": "Running",
    "reason": "Running",
    "since": NOW,
    "next": "-",
    "host": "host-1",
    "domain": {"state": "Running", "reason": "Booted", "since": NOW, "uuid": UID},
    "candidates": [CANDIDATE],
    "conditions": [READY],
    "addresses": [{"interface": "lan", "ip": "198.51.100.200", "mac": "52:54:00:00:00:01"}],
    "disks": [
        {
            "name": "root",
            "alias": "ua-root",
            "volume": "default.web.root.qcow2",
            "pool": "local",
            "storage": f"host:{HOST_UUID}",
            "chain": ["/srv/top.qcow2", "/srv/base.qcow2"],
        }
    ],
    "startFailures": {"count": 1, "lastMessage": "no room", "lastTime": NOW, "retryTime": NOW},
    "machineType": "pc-q35-7.2",
    "cpuModel": "qemu64",
    "pendingChanges": ["memory: 512 MiB running, 1024 MiB wanted"],
    "migration": {"name": "move", "uid": UID, "source": "host-1", "target": "host-2", "since": NOW},
}
HYPERVISOR_STATUS: Object = {
    "observedGeneration": 1,
    "hostUUID": HOST_UUID,
    "state": "Ready",
    "reason": "Connected",
    "since": NOW,
    "next": "-",
    "conditions": [READY],
    "hostname": "host-1",
    "libvirtVersion": "9.0.0",
    "qemuVersion": "7.2.0",
    "capacity": {"cpus": 2, "memoryMiB": 4096},
    "allocated": {"cpus": 1, "memoryMiB": 512, "domains": 1},
    "cpuModels": ["qemu64"],
    "pools": [{"name": "local", "pool": "default", "active": "Active", "capacityMiB": 2048}],
    "networks": [{"name": "lan", "present": "Missing"}],
    "foreignDomains": 0,
    "orphans": [{"uuid": UID, "name": "default_old", "namespace": "default", "vm": "old", "since": NOW}],
    "holds": ["default/web"],
    "evacuation": {
        "since": NOW,
        "moved": 1,
        "moving": 1,
        "remaining": 2,
        "blocked": [{"vm": "default/db", "reason": "TPM", "message": "The guest has a TPM."}],
    },
}


SIDE: Object = {
    "answer": "Present",
    "state": "Paused",
    "reason": "Migration",
    "job": "Out",
    "definition": "Persistent",
    "since": NOW,
}
RESOLVED = {"keep": "KeepTarget", "evidence": "0123456789abcdef"}
COPY = {
    "disk": "root",
    "volume": "root.qcow2",
    "sourcePool": "default",
    "targetPool": "default",
    "format": "qcow2",
    "sizeBytes": 1073741824,
    "backing": "/images/debian.qcow2",
    "backingFormat": "qcow2",
}
MIGRATION_STATUS: Object = {
    "observedGeneration": 1,
    "phase": "Switching",
    "reason": "Confirming",
    "since": NOW,
    "source": "host-1",
    "target": "host-2",
    "intent": {
        "source": "host-1",
        "sourceUUID": HOST_UUID,
        "target": "host-2",
        "targetUUID": UID,
        "attempt": UID,
        "domainUUID": UID,
        "time": NOW,
        "startedPaused": "Enabled",
        "locks": "Effective",
        "postCopy": "Enabled",
        "copies": [COPY],
        "port": 49152,
    },
    "policy": {
        "mode": "Auto",
        "bandwidth": "100Mi",
        "maxDowntimeMilliseconds": 500,
        "completionTimeoutSecondsPerGiB": 150,
        "progressTimeoutSeconds": 150,
        "onTimeout": "PostCopy",
        "autoConverge": "Disabled",
        "parallelConnections": 1,
        "compression": "None",
        "tls": "Enabled",
        "switchover": "Confirmed",
    },
    "marks": {
        "aborted": NOW,
        "frozen": NOW,
        "endedSource": NOW,
        "forceCompleted": NOW,
        "postCopy": NOW,
        "timedOut": "Progress",
        "resolved": RESOLVED,
        "volumeMade": NOW,
        "volumeRemoved": NOW,
        "targetRan": NOW,
        "notPrepared": "there is no room",
        "checkpoints": [{"name": "monday", "xml": "<domaincheckpoint/>"}],
    },
    "decision": {
        "row": "7b",
        "owner": "Target",
        "since": NOW,
        "evidence": RESOLVED["evidence"],
        "source": SIDE,
        "target": {"answer": "Unknown", "state": "Shutoff", "reason": "RecordLost", "since": NOW},
    },
    "progress": {
        "percent": 50,
        "remainingMiB": 512,
        "dirtyMiBPerSecond": 10,
        "bandwidthMiBPerSecond": 100,
        "downtimeLimitMilliseconds": 50,
        "iteration": 1,
        "elapsedSeconds": 5,
    },
    "cost": {"transferredMiB": 600, "downtimeMilliseconds": 40, "totalSeconds": 6},
    "startTime": NOW,
    "completionTime": NOW,
    "lastMessage": "client socket is closed",
    "conditions": [READY | {"type": "Finished"}],
}


def test_a_whole_status_comes_back_as_it_was_written(server: Server, namespace: str) -> None:
    made = server.create(vm("web", namespace))
    wire = VirtualMachine.model_validate(made | {"status": VM_STATUS}).status.wire()
    assert wire == VM_STATUS
    after = server.replace(made | {"status": wire}, subresource="/status")
    assert after["status"] == VM_STATUS
    moved = server.create(migration("move", namespace))
    wire = VirtualMachineMigration.model_validate(moved | {"status": MIGRATION_STATUS}).status.wire()
    assert wire == MIGRATION_STATUS
    assert server.replace(moved | {"status": wire}, subresource="/status")["status"] == MIGRATION_STATUS
    host = server.create(hypervisor(namespace))
    try:
        wire = Hypervisor.model_validate(host | {"status": HYPERVISOR_STATUS}).status.wire()
        assert wire == HYPERVISOR_STATUS
        after = server.replace(host | {"status": wire}, subresource="/status")
        assert after["status"] == HYPERVISOR_STATUS
    finally:
        server.delete("Hypervisor", namespace)
