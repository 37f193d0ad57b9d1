# SPDX-License-Identifier: Apache-2.0
"""Every rule of the CRDs refuses what it must, with its sentence, and admits what is next to it."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.api.objects import Object, disk, hypervisor, image_disk, migration, network, vm, volume_disk
from tests.api.server import Refused, Server

CRDS = Path(__file__).parents[2] / "crds"
KERNEL = {"pool": "images", "kernel": "vmlinuz"}
UUID = "aaaaaaaa-2222-4333-8444-55555555555"


@dataclass(frozen=True)
class Case:
    """What one rule refuses and admits; `old` is there first where the rule is about a change."""

    path: str
    message: str
    refused: Object
    admitted: Object
    old: Object | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def one(*disks: Object) -> Object:
    return vm(disks=list(disks))


def lan(**fields: Any) -> Object:
    return hypervisor(networks=[network(**fields)])


def copy(how: str, *disks: str) -> Object:
    return migration(storageCopy={"type": how, "disks": list(disks)})


def ports(first: int, last: int) -> Object:
    return hypervisor(migration={"ports": {"first": first, "last": last}})


def policy_cases(path: str, make: Callable[..., Object]) -> list[Case]:
    """Return the cases of a migration policy, wherever it is."""
    return [
        Case(path, "bandwidth must be", make(bandwidth="1023Ki"), make(bandwidth="1Mi")),
        Case(
            path,
            "onTimeout PostCopy needs",
            make(mode="PreCopy", onTimeout="PostCopy"),
            make(mode="Auto", onTimeout="PostCopy"),
        ),
        Case(
            path,
            "autoConverge is for pre-copy",
            make(mode="PostCopy", autoConverge="Enabled"),
            make(mode="PostCopy", autoConverge="Disabled"),
        ),
        Case(
            path,
            "above 1 needs mode PreCopy",
            make(mode="Auto", parallelConnections=2),
            make(mode="Auto", parallelConnections=1),
        ),
        Case(
            path,
            "Zlib and Zstd need",
            make(compression="Zstd"),
            make(compression="Zstd", parallelConnections=2),
        ),
        Case(
            path,
            "XBZRLE works on one",
            make(compression="XBZRLE", parallelConnections=2),
            make(compression="XBZRLE"),
        ),
    ]


MIGRATION = "VirtualMachineMigration.spec"
CHANGED = "a migration is one attempt and cannot be changed"
NOW = "Requested"
KEEP = {"keep": "KeepSource", "evidence": "0123456789abcdef"}
HOST_1, HOST_2, LABELED = {"host": "host-1"}, {"host": "host-2"}, {"hostSelector": {"matchLabels": {"rack": "1"}}}
BOTH = HOST_1 | LABELED
SOURCE = "VirtualMachine.spec.disks[].source"
DISK = "VirtualMachine.spec.disks[]"
NETWORK = "Hypervisor.spec.networks[]"
OVS: Object = {"type": "OpenVSwitch", "bridge": None, "openVSwitch": {"bridge": "ovs0"}}
NET: Object = {"type": "Network", "bridge": None, "network": {"name": "default"}}
IMAGE = image_disk()["source"]["image"]
VOLUME = volume_disk()["source"]["volume"]
MAC = "52:54:00:00:00:01"

CASES = [
    Case("VirtualMachine", "metadata.name of a VirtualMachine", vm("a" * 64), vm("a" * 63)),
    Case("Hypervisor", "metadata.name of a Hypervisor", hypervisor("a" * 64), hypervisor("a" * 63)),
    Case(
        "VirtualMachine.spec",
        "power.state Stopped is for runStrategy Manual only",
        vm(power={"state": "Stopped"}),
        vm(power={"state": "Stopped"}, runStrategy="Manual"),
    ),
    Case(
        "VirtualMachine.spec",
        "domainUUID is set at creation or never",
        vm(domainUUID=UUID + "1"),
        vm(domainUUID=UUID + "0", runStrategy="Halted"),
        old=vm(domainUUID=UUID + "0"),
    ),
    Case(
        "VirtualMachine.spec",
        "domainUUID is set at creation or never",
        vm(domainUUID=UUID + "0"),
        vm(runStrategy="Halted"),
        old=vm(),
    ),
    Case(
        "VirtualMachine.spec",
        "domainUUID is set at creation or never",
        vm(),
        vm(domainUUID=UUID + "0", runStrategy="Manual"),
        old=vm(domainUUID=UUID + "0"),
    ),
    Case(
        "VirtualMachine.spec",
        "two disks have the same serial",
        one(disk(serial="A1"), disk(name="b", serial="A1")),
        one(disk(serial="A1"), disk(name="b", serial="A2"), disk(name="c"), disk(name="d")),
    ),
    Case(
        "VirtualMachine.spec",
        "two interfaces have the same mac",
        vm(interfaces=[{"name": name, "network": "lan", "mac": MAC} for name in "ab"]),
        vm(interfaces=[{"name": "a", "network": "lan", "mac": MAC}, *({"name": n, "network": "lan"} for n in "bc")]),
    ),
    Case(
        "VirtualMachine.spec.cpu",
        "sockets * cores * threads must be at most 512",
        vm(cpu={"sockets": 3, "cores": 19, "threads": 9}),
        vm(cpu={"sockets": 4, "cores": 64, "threads": 2}),
    ),
    Case("VirtualMachine.spec.memory", "at least 16Mi", vm(memory={"size": "15Mi"}), vm(memory={"size": "16Mi"})),
    Case("VirtualMachine.spec.memory", "at most 16Ti", vm(memory={"size": "17593G"}), vm(memory={"size": "16Ti"})),
    Case(
        "VirtualMachine.spec.boot",
        "kernel belongs to type Kernel",
        vm(boot={"type": "Kernel"}),
        vm(boot={"type": "Kernel", "kernel": KERNEL}),
    ),
    Case(
        "VirtualMachine.spec.boot",
        "kernel belongs to type Kernel",
        vm(boot={"type": "Disk", "kernel": KERNEL}),
        vm(boot={"type": "Disk"}),
    ),
    Case(DISK, "source Blank needs a size", one({"name": "root", "pool": "local"}), one(disk())),
    Case(DISK, "leave size out", one(volume_disk() | {"size": "1Gi"}), one(volume_disk())),
    Case(DISK, "at least 1Mi", one(disk(size="1023Ki")), one(disk(size="1024Ki"))),
    Case(DISK, "at most 64Ti", one(disk(size="65537Gi")), one(image_disk() | {"size": "64Ti"})),
    Case(
        DISK,
        "deletionPolicy Delete is not for source Volume",
        one(volume_disk() | {"deletionPolicy": "Delete"}),
        one(disk(deletionPolicy="Delete")),
    ),
    Case(DISK, "pool cannot be changed", one(disk(pool="other")), one(disk(serial="A1")), old=one(disk())),
    Case(DISK, "size cannot be changed", one(disk(size="2Gi")), one(disk(size="1024Mi")), old=one(disk())),
    Case(DISK, "size cannot be changed", one(disk(size="512Mi")), vm(), old=one(disk())),
    Case(
        DISK,
        "size cannot be changed",
        one(image_disk() | {"size": "8Gi"}),
        one(image_disk(), disk(name="more")),
        old=one(image_disk()),
    ),
    Case(
        SOURCE,
        "a disk keeps its source",
        one(image_disk() | {"size": "1Gi"}),
        one(disk(source={"type": "Blank", "blank": {"whenRetained": "Ignore"}})),
        old=one(disk()),
    ),
    Case(
        SOURCE + ".image",
        "a disk keeps its image",
        one(image_disk(volume="other.qcow2")),
        one(image_disk() | {"deletionPolicy": "Delete"}),
        old=one(image_disk()),
    ),
    Case(
        SOURCE + ".volume",
        "a disk keeps its volume",
        one(volume_disk(format="raw")),
        one(volume_disk() | {"serial": "A1"}),
        old=one(volume_disk()),
    ),
    Case(
        SOURCE,
        "blank belongs to type Blank",
        one(image_disk() | {"source": {"type": "Image", "image": IMAGE, "blank": {"whenRetained": "Wait"}}}),
        one(disk(source={"type": "Blank", "blank": {"whenRetained": "Wait"}})),
    ),
    Case(SOURCE, "image belongs to type Image", one(disk(source={"type": "Image"})), one(image_disk())),
    Case(SOURCE, "image belongs to type Image", one(disk(source={"image": IMAGE})), one(disk(source={}))),
    Case(
        SOURCE,
        "volume belongs to type Volume",
        one({"name": "root", "pool": "local", "source": {"type": "Volume"}}),
        one(volume_disk()),
    ),
    Case(SOURCE, "volume belongs to type Volume", one(disk(source={"volume": VOLUME})), one(disk(source={}))),
    Case(
        "Hypervisor.spec",
        "reservedMemory must be",
        hypervisor(reservedMemory="17Ti"),
        hypervisor(reservedMemory="0Mi"),
    ),
    Case(
        "Hypervisor.spec.outOfService",
        "since must not lie before the year 2000",
        hypervisor(outOfService={"since": "1999-12-31T23:59:59Z", "evidence": "Destroyed"}),
        hypervisor(outOfService={"since": "2000-01-01T00:00:00Z", "evidence": "Destroyed"}),
    ),
    Case("Hypervisor.spec.migration.ports", "first must not be greater", ports(50001, 50000), ports(50000, 50000)),
    *policy_cases("Hypervisor.spec.migration.policy", lambda **fields: hypervisor(migration={"policy": fields})),
    *policy_cases("VirtualMachineMigration.spec.policy", lambda **fields: migration(policy=fields)),
    Case("VirtualMachineMigration", "metadata.name of a VirtualMachineM", migration("a" * 64), migration("a" * 63)),
    Case(MIGRATION + ".target", "either a host or a hostSelector", migration(target=BOTH), migration(target=HOST_1)),
    Case(MIGRATION + ".target", "either a host or a hostSelector", migration(target={}), migration(target=LABELED)),
    Case(MIGRATION + ".storageCopy", "need disks", copy("Full"), copy("Full", "root")),
    Case(MIGRATION + ".storageCopy", "need disks", copy("None", "root"), copy("None")),
    Case(
        MIGRATION, CHANGED, migration(target=HOST_2), migration(target=HOST_1, abort=NOW), old=migration(target=HOST_1)
    ),
    Case(MIGRATION, CHANGED, migration(target=HOST_1), migration(abort=NOW), old=migration()),
    Case(MIGRATION, CHANGED, migration(vmRef={"name": "db"}), migration(resolve=KEEP), old=migration()),
    Case(MIGRATION, CHANGED, migration(policy={"mode": "Auto"}), migration(), old=migration()),
    Case(MIGRATION, CHANGED, copy("Full", "root"), copy("Full", "a", "b"), old=copy("Full", "a", "b")),
    Case(MIGRATION, CHANGED, migration(ttlSecondsAfterFinished=1), migration(), old=migration()),
    Case(MIGRATION, "abort cannot be taken back", migration(), migration(abort=NOW), old=migration(abort=NOW)),
    Case(
        MIGRATION,
        "answers an evidence once",
        migration(resolve={**KEEP, "keep": "KeepTarget"}),
        migration(resolve={"keep": "KeepTarget", "evidence": "0" * 16}),
        old=migration(resolve=KEEP),
    ),
    Case(MIGRATION, "answers an evidence once", migration(), migration(resolve=KEEP), old=migration(resolve=KEEP)),
    Case(NETWORK, "bridge belongs to type Bridge", lan(bridge=None), lan()),
    Case(NETWORK, "bridge belongs to type Bridge", lan(**NET | {"bridge": {"name": "br0"}}), lan(**NET)),
    Case(NETWORK, "network belongs to type Network", lan(**NET | {"network": None}), lan(**NET)),
    Case(NETWORK, "network belongs to type Network", lan(network={"name": "default"}), lan()),
    Case(NETWORK, "openVSwitch belongs to type OpenVSwitch", lan(**OVS | {"openVSwitch": None}), lan(**OVS)),
    Case(NETWORK, "openVSwitch belongs to type OpenVSwitch", lan(openVSwitch={"bridge": "ovs0"}), lan()),
    Case(NETWORK, "vlan works with type OpenVSwitch only", lan(vlan={"tag": 7}), lan(**OVS, vlan={"tag": 7})),
    Case(NETWORK, "vlan works with type OpenVSwitch only", lan(**NET, vlan={"tag": 7}), lan(**NET)),
]


def rules(node: Object, path: str) -> Iterator[tuple[str, str, str]]:
    """Yield path, rule and message of each CEL rule in a schema."""
    for rule in node.get("x-kubernetes-validations", ()):
        yield path, rule["rule"], rule["message"]
    for name, child in node.get("properties", {}).items():
        yield from rules(child, f"{path}.{name}")
    if "items" in node:
        yield from rules(node["items"], f"{path}[]")


def all_rules() -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    for file in CRDS.glob("*.yaml"):
        crd = yaml.safe_load(file.read_text())
        for version in crd["spec"]["versions"]:
            found += rules(version["schema"]["openAPIV3Schema"], crd["spec"]["names"]["kind"])
    return found


def is_about(case: Case, path: str, message: str) -> bool:
    return case.path == path and case.message in message


@pytest.mark.parametrize(("path", "rule", "message"), all_rules())
def test_every_rule_has_a_case(path: str, rule: str, message: str) -> None:
    cases = [case for case in CASES if is_about(case, path, message)]
    assert cases
    assert all((case.old is not None) == ("oldSelf" in rule) for case in cases)


def test_every_case_is_about_one_rule() -> None:
    found = all_rules()
    assert len({(path, message) for path, _, message in found}) == len(found) > 0
    assert [str(case) for case in CASES if sum(is_about(case, path, text) for path, _, text in found) != 1] == []


def without_nulls(value: Any) -> Any:
    """Return the value as a person would have written it: a field that is None is not there."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def offered(server: Server, item: Object, old: Object | None) -> Object:
    """Return what the server makes of an object, new or put in the place of an old one."""
    if old is None:
        return server.create(without_nulls(item))
    there = server.create(without_nulls(old))
    version = {"resourceVersion": there["metadata"]["resourceVersion"]}
    return server.replace(without_nulls(item | {"metadata": item["metadata"] | version}))


@pytest.fixture
def place(server: Server, namespace: str) -> Iterator[str]:
    """Return a namespace; Hypervisors that a test leaves behind are removed."""
    yield namespace
    for name in ("host-1", "a" * 63, "a" * 64):
        with contextlib.suppress(Refused):
            server.delete("Hypervisor", name)


def put(item: Object | None, place: str) -> Object | None:
    """Return the object in a namespace, where its kind has one."""
    if item is None or item["kind"] == "Hypervisor":
        return item
    return item | {"metadata": item["metadata"] | {"namespace": place}}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_rule_refuses_with_its_sentence(server: Server, place: str, case: Case) -> None:
    item, old = put(case.refused, place), put(case.old, place)
    assert item is not None
    with pytest.raises(Refused) as refusal:
        offered(server, item, old)
    assert refusal.value.code == 422
    messages = [message for _, message in refusal.value.causes]
    assert len(messages) == 1, messages  # by this rule and for no other reason
    assert case.message in messages[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_rule_admits_what_is_next_to_it(server: Server, place: str, case: Case) -> None:
    item, old = put(case.admitted, place), put(case.old, place)
    assert item is not None
    assert offered(server, item, old)["metadata"]["uid"]


URI = "uri"
FIELDS: list[tuple[Any, str, list[Any]]] = [
    (hypervisor, URI, ["qemu:///system", "qemu+tls://h-1.example.org:16514/system", "qemu+tcp://[2001:db8::1]/system"]),
    (hypervisor, "hostUUID", [UUID + "0"]),
    (hypervisor, "reservedMemory", ["1Gi", "0k", "9999999999k"]),
    (hypervisor, "maintenance", ["Off", "Cordon", "Evacuate"]),
    (hypervisor, "migration", [{"maxInbound": 1, "maxOutbound": 100}, {"peerURI": "qemu+tls://h-1:16514/system"}]),
    (hypervisor, "migration", [{"address": "h-1.example.org"}, {"address": "2001:db8::1"}, {"tls": "Enabled"}]),
    (migration, "policy", [{"maxDowntimeMilliseconds": 1}, {"completionTimeoutSecondsPerGiB": 86400}]),
    (migration, "ttlSecondsAfterFinished", [0, 31536000]),
    (hypervisor, "overcommit", [{"cpuPercent": 100, "memoryPercent": 50}, {"cpuPercent": 2000, "memoryPercent": 400}]),
    (hypervisor, "outOfService", [{"since": "2026-01-31T12:00:00.5+01:00", "evidence": "PoweredOff"}]),
    (hypervisor, "pools", [[{"name": "local", "pool": "My pool", "allowedNamespaces": ["*", "web"]}]]),
    (vm, "power", [{"request": "2026-01-31T12:00:00Z, please"}]),
    (vm, "disks", [[disk(name="a" * 40, serial="A" * 20)], [disk(name=f"d{n}") for n in range(64)]]),
    (vm, "interfaces", [[{"name": "a", "network": "lan", "mac": mac} for mac in ("02:00:00:00:00:0f",)]]),
    (vm, "cpu", [{"sockets": 512}, {"model": "host-passthrough"}, {"model": "Skylake-Client-noTSX-IBRS"}]),
    (vm, "placement", [{"host": "host-1.example"}, {"hostSelector": {"matchLabels": {"example.org/rack": "R_1"}}}]),
    (vm, "terminationGracePeriodSeconds", [0, 86400]),
    (vm, "abandonHosts", [["host-1", "host-2"]]),
]
WRONG: list[tuple[Any, str, list[Any]]] = [
    (
        hypervisor,
        URI,
        [
            "qemu:///session",
            "qemu+ssh://host/system",
            "qemu+tls:///system",
            "qemu+tcp://host/system?no_verify=1",
            "qemu+tcp://user@host/system",
            "qemu+tcp://host/",
            " qemu:///system",
            "",
            f"qemu+tcp://{'h' * 512}/system",
        ],
    ),
    (hypervisor, "hostUUID", [UUID, UUID.upper() + "0", UUID + "G"]),
    (hypervisor, "reservedMemory", ["1", "1.5Gi", "-1Gi", "1Pi", "01Gi", 1024]),
    (hypervisor, "maintenance", ["off", "evacuate"]),
    (hypervisor, "migration", [{"maxInbound": 0}, {"maxOutbound": -1}, {"peerURI": "qemu:///system"}]),
    (hypervisor, "migration", [{"address": "h 1"}, {"ports": {"first": 80, "last": 90}}, {"ports": {"first": 50000}}]),
    (migration, "vmRef", [{}, {"name": "Web"}]),
    (migration, "target", [{"host": ""}]),
    (migration, "policy", [{"maxDowntimeMilliseconds": n} for n in (0, -1, 2000001)]),
    (migration, "policy", [{"completionTimeoutSecondsPerGiB": 0}, {"progressTimeoutSeconds": -1}, {"mode": "Live"}]),
    (migration, "policy", [{"bandwidth": "0"}, {"bandwidth": "-1Mi"}, {"parallelConnections": 0}]),
    (migration, "storageCopy", [{"type": "Full", "disks": ["root", "root"]}, {"type": "Some", "disks": ["root"]}]),
    (migration, "ttlSecondsAfterFinished", [-1, 31536001]),
    (migration, "abort", ["", "Yes", True]),
    (migration, "resolve", [{"keep": "KeepSource"}, {"keep": "Both", "evidence": "0" * 16}]),
    (migration, "resolve", [{"keep": "KeepSource", "evidence": "0" * 15}]),
    (
        hypervisor,
        "overcommit",
        [{"cpuPercent": 99}, {"cpuPercent": 2001}, {"memoryPercent": 49}, {"memoryPercent": 401}],
    ),
    (hypervisor, "outOfService", [{"since": "yesterday", "evidence": "Destroyed"}, {"evidence": "Destroyed"}]),
    (hypervisor, "pools", [[{"name": "a", "pool": "../a"}], [{"name": "a", "pool": "b"}] * 2, [{"pool": "b"}]]),
    (
        hypervisor,
        "networks",
        [
            [network(type="OpenVSwitch", bridge=None, openVSwitch={"bridge": "ovs0"}, vlan={"tag": t})]
            for t in (0, 4095)
        ],
    ),
    (vm, "power", [{"request": "a" * 64}, {"request": "two\nlines"}]),
    (vm, "disks", [[disk(name="a" * 41)], [disk(serial="A" * 21)], [disk(serial="a b")], [disk(), disk()]]),
    (vm, "disks", [[disk(name=f"d{n}") for n in range(65)], [image_disk(volume="/etc/shadow")], [disk(bus="ide")]]),
    (
        vm,
        "interfaces",
        [
            [{"name": "a", "network": "lan", "mac": mac}]
            for mac in ("01:00:00:00:00:0f", "fe:00:00:00:00:0f", "02:00:00:00:00:0F", "02-00-00-00-00-0f")
        ],
    ),
    (vm, "cpu", [{"sockets": 0}, {"sockets": "1"}, {"sockets": 513}, {"model": "host model"}]),
    (vm, "memory", [{}, {"size": 512}, {"size": "512"}, {"size": "0.5Gi"}]),
    (vm, "boot", [{"type": "Kernel", "kernel": {**KERNEL, "commandLine": "a" * 2049}}, {"type": "Network"}]),
    (vm, "placement", [{"host": "Host_1"}, {"hostSelector": {"matchLabels": {"rack": "-"}}}]),
    (vm, "terminationGracePeriodSeconds", [-1, 86401]),
    (vm, "abandonHosts", [["host-1", "host-1"]]),
    (vm, "managedSave", [{"host": "host-1"}, {"host": "host-1", "action": "Keep"}]),
]


@pytest.mark.parametrize(("make", "name", "value"), [(m, n, v) for m, n, values in FIELDS for v in values])
def test_a_field_admits(server: Server, make: Any, name: str, value: Any) -> None:
    assert name in server.create(make(**{name: value}), dry_run=True)["spec"]


@pytest.mark.parametrize(("make", "name", "value"), [(m, n, v) for m, n, values in WRONG for v in values])
def test_a_field_refuses_and_is_named(server: Server, make: Any, name: str, value: Any) -> None:
    with pytest.raises(Refused) as refusal:
        server.create(without_nulls(make(**{name: value})), dry_run=True)
    assert refusal.value.code == 422
    fields = {field for field, _ in refusal.value.causes} - {"<nil>"}  # which says that rules were left unchecked
    assert fields
    assert all(field.startswith(f"spec.{name}") for field in fields), fields


@pytest.mark.parametrize("item", [vm(), hypervisor(), migration()], ids=["vm", "hv", "vmmig"])
def test_spec_is_required(server: Server, item: Object) -> None:
    with pytest.raises(Refused, match="spec: Required value"):
        server.create({key: value for key, value in item.items() if key != "spec"}, dry_run=True)
