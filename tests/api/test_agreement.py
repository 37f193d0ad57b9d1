# SPDX-License-Identifier: Apache-2.0
"""The models and the API server are of one mind: what one reads the other admits, with the same defaults."""

from collections import Counter
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from homeostat.api.hypervisor import Hypervisor
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.virtualmachine import VirtualMachine
from tests.api.objects import Object, disk, hypervisor, image_disk, migration, network, vm, volume_disk
from tests.api.server import Refused, Server

EXAMPLES = 150
KINDS = {kind.__name__: kind for kind in (Hypervisor, VirtualMachine, VirtualMachineMigration)}
UUID = "11111111-2222-4333-8444-55555555555a"
KERNEL = {"pool": "images", "kernel": "vmlinuz", "initrd": "initrd.img", "commandLine": "console=ttyS0"}
FULL_VM = vm(
    runStrategy="Manual",
    power={"state": "Stopped", "request": "1"},
    execution="Paused",
    machine={"type": "q35"},
    boot={"type": "Kernel", "kernel": KERNEL},
    firmware={"type": "BIOS"},
    cpu={"sockets": 2, "cores": 4, "threads": 2, "model": "host-model"},
    memory={"size": "512Mi"},
    disks=[
        disk(serial="A1", bus="virtio", deletionPolicy="Delete"),
        image_disk() | {"name": "system", "size": "2Gi"},
        volume_disk() | {"name": "data", "serial": "A2"},
        disk(name="spare", source={"type": "Blank", "blank": {"whenRetained": "Ignore"}}),
    ],
    interfaces=[
        {"name": "a", "network": "lan", "model": "e1000e", "mac": "52:54:00:00:00:01"},
        {"name": "b", "network": "lan", "mac": "52:54:00:00:00:02"},
    ],
    console={"log": "Disabled"},
    guestAgent="Disabled",
    placement={"host": "host-1", "hostSelector": {"matchLabels": {"example.org/rack": "r1"}}},
    terminationGracePeriodSeconds=30,
    deletionPolicy="Release",
    domainUUID=UUID,
    takeover="Unowned",
    abandonHosts=["host-1", "host-2"],
    managedSave={"host": "host-1", "action": "Restore"},
)
FULL_HYPERVISOR = hypervisor(
    credentials={"secretRef": {"name": "tls"}},
    pools=[
        {"name": "local", "pool": "default", "allowedNamespaces": ["*"]},
        {"name": "san", "pool": "san", "storageID": "san-1", "allowedNamespaces": ["web", "db"]},
    ],
    networks=[
        network(allowedNamespaces=["web"]),
        {"name": "nat", "type": "Network", "network": {"name": "default"}},
        {"name": "ovs", "type": "OpenVSwitch", "openVSwitch": {"bridge": "ovs0"}, "vlan": {"tag": 7}},
    ],
    acceleration="Emulation",
    overcommit={"cpuPercent": 200, "memoryPercent": 150},
    reservedMemory="512Mi",
    maintenance="Cordon",
    migration={
        "peerURI": "qemu+tls://host-1.example:16514/system",
        "address": "host-1.example",
        "ports": {"first": 50000, "last": 50010},
        "tls": "Enabled",
        "maxInbound": 1,
        "maxOutbound": 100,
        "policy": {"mode": "Auto", "onTimeout": "PostCopy", "autoConverge": "Enabled"},
    },
    outOfService={"since": "2026-01-31T12:00:00Z", "evidence": "PoweredOff"},
    hostUUID=UUID,
)
FULL_MIGRATION = migration(
    target={"host": "host-2"},
    policy={
        "mode": "PreCopy",
        "bandwidth": "100Mi",
        "maxDowntimeMilliseconds": 100,
        "completionTimeoutSecondsPerGiB": 10,
        "progressTimeoutSeconds": 10,
        "onTimeout": "ForceComplete",
        "autoConverge": "Enabled",
        "parallelConnections": 2,
        "compression": "Zstd",
        "tls": "Disabled",
        "switchover": "Confirmed",
    },
    storageCopy={"type": "Full", "disks": ["root", "data"]},
    ttlSecondsAfterFinished=60,
    abort="Requested",
    resolve={"keep": "KeepTarget", "evidence": "0123456789abcdef"},
)
ODD_STRINGS = [
    "",
    "a",
    "A",
    "-",
    "a-",
    "a_b",
    "a.b",
    "a b",
    "*",
    "é",
    "a\n",
    "/x",
    "..",
    *("a" * n for n in (15, 16, 20, 21)),
]
ODD_STRINGS += ["a" * n for n in (40, 41, 63, 64, 255, 256, 2048, 2049)]
QUANTITIES = [
    "0Mi",
    "1023Ki",
    "1Mi",
    "15Mi",
    "16Mi",
    "16Ti",
    "17Ti",
    "64Ti",
    "65Ti",
    "9999999999Ti",
    "1.5Gi",
    "1",
    "01Gi",
]
NUMBERS = [-1, 0, 1, 2, 49, 50, 99, 100, 400, 401, 512, 513, 2000, 2001, 4094, 4095, 86400, 86401]
WORDS = ["Blank", "Image", "Volume", "Kernel", "Disk", "Bridge", "Network", "OpenVSwitch", "Retain", "Delete", "Always"]
WORDS += ["Manual", "Halted", "Running", "Stopped", "Enabled", "KVM", "PoweredOff", "virtio", "raw", UUID, UUID.upper()]
WORDS += [
    "fe:54:00:00:00:01",
    "01:00:00:00:00:01",
    "02:00:00:00:00:01",
    "52:54:00:00:00:02",
    "A1",
    "host-2",
    "san",
    "system",
]
WORDS += ["PostCopy", "Auto", "None", "XBZRLE", "Incremental", "0" * 16, "50000", "root"]
WORDS += [
    "2026-02-31T12:00:00Z",
    "2026-01-31T12:00:00",
    "2026-01-31T23:30:00.5-01:00",
    "qemu:///system",
    "qemu+ssh://a/system",
]
STRUCTURES: list[Any] = [[], {}, True, [{}], ["web"], {"name": "lan"}, {"tag": 1}, {"size": "1Gi"}]
ODD: list[list[Any]] = [ODD_STRINGS, QUANTITIES, NUMBERS, WORDS, STRUCTURES]
VALUES = st.sampled_from(ODD).flatmap(st.sampled_from).map(deepcopy)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything in a spec."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [step for key, child in children for step in ((*path, key), *places(child, (*path, key)))]


def parent(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        node = node[key]
    return node


@st.composite
def objects(draw: st.DrawFn, full: Object) -> Object:
    """Return an object from which something was taken away and in which up to two values were replaced by odd ones."""
    item = deepcopy(full)
    for path in draw(st.lists(st.sampled_from(places(full["spec"])), max_size=4)):
        forget(item["spec"], path)
    for _ in range(draw(st.sampled_from((0, 1, 1, 2)))):
        path = draw(st.sampled_from(places(item["spec"])))
        parent(item["spec"], path)[path[-1]] = draw(VALUES)
    return item


def forget(spec: Object, path: tuple[Any, ...]) -> None:
    """Remove what is at a path, unless that is gone already."""
    try:
        del parent(spec, path)[path[-1]]
    except (KeyError, IndexError, TypeError):
        return


def read(item: Object) -> Hypervisor | VirtualMachine | VirtualMachineMigration | str:
    """Return the model, or what it complains of."""
    try:
        return KINDS[item["kind"]].model_validate(item)
    except ValidationError as error:
        return str(error)


def admitted(server: Server, item: Object) -> Object | str:
    """Return the object with the server's defaults, or what the server complains of."""
    try:
        return server.create(item, dry_run=True)
    except Refused as refusal:
        return str(refusal)


@pytest.mark.parametrize("full", [FULL_VM, FULL_HYPERVISOR, FULL_MIGRATION], ids=["vm", "hv", "vmmig"])
def test_they_agree(server: Server, full: Object) -> None:
    verdicts: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(objects(full))
    @example(full)
    def agree(item: Object) -> None:
        model, answer = read(item), admitted(server, item)
        assert isinstance(model, str) == isinstance(answer, str), f"model: {model}\nserver: {answer}"
        verdicts["refused" if isinstance(answer, str) else "admitted"] += 1
        if not isinstance(model, str) and not isinstance(answer, str):
            assert model.spec == KINDS[item["kind"]].model_validate(answer).spec

    agree()
    assert not isinstance(admitted(server, full), str)
    assert min(verdicts["refused"], verdicts["admitted"]) > EXAMPLES / 10, verdicts
