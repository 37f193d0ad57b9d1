# SPDX-License-Identifier: Apache-2.0
"""What is in the way of a move, before anyone tries: the condition Migratable of a VM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from homeostat.api import reasons
from homeostat.api.meta import RECONCILE_ANNOTATION
from homeostat.api.observed import Checkpoint, Pool, Present, Traits, Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide.migratable import condition
from homeostat.decide.view import Say
from tests.unit import test_decide_vm as vms
from tests.unit.planning import (
    DISK,
    POOL,
    host,
    machine,
    running,
    spec,
)

Object = Mapping[str, Any]


def judged(vm: VirtualMachine, traits: Traits | None = None, /, domain: Object | None = None, **b: Any) -> str:
    """Return status/reason of condition Migratable of a VM on a, with b beside it."""
    found = running(vm, traits=traits or Traits(), **(domain or {}))
    assert isinstance(found, Present)
    hosts = {"a": host("a", found), "b": replace(host("b"), **b)}
    status, say = condition(vm, found.domain, hosts["a"], hosts)
    assert say.reason in reasons.MIGRATABLE
    return f"{status}/{say.reason}"


FACTS = host("b").facts
assert FACTS is not None
KERNEL = {"type": "Kernel", "kernel": {"pool": "fast", "kernel": "vmlinuz"}}
IMAGE = {**DISK, "source": {"type": "Image", "image": {"pool": "images", "volume": "debian", "format": "qcow2"}}}
IMAGES = {"name": "images", "pool": "images", "allowedNamespaces": ["*"]}


@pytest.mark.parametrize(
    ("traits", "reason"),
    [
        (Traits(host_devices=("0000:01:00.0",)), "HostDevice"),
        (Traits(tpm=True), "TPM"),
        (Traits(nvram="/var/lib/libvirt/qemu/nvram/web.fd"), "NVRAM"),
        (Traits(caches=(("ua-disk-root", "writeback"),)), "DiskCache"),
        (Traits(block_jobs=("ua-disk-root",)), "BlockJob"),
        (Traits(cdroms=("/seed/web.iso",)), "SeedISO"),
    ],
)
def test_what_of_the_domain_is_in_the_way(traits: Traits, reason: str) -> None:
    assert judged(machine()) == "True/Migratable"
    assert judged(machine(), traits) == f"False/{reason}"


@pytest.mark.parametrize(
    ("b", "reason"),
    [
        ({"spec": spec(pools=[])}, "NoPool"),
        ({"spec": spec(pools=[POOL | {"allowedNamespaces": ["bank"]}])}, "NoPool"),
        ({"spec": spec(pools=[POOL | {"storageID": None}])}, "LocalDisk"),
        ({"facts": replace(FACTS, pools=(Pool("default", "Active", "/other"),))}, "LocalDisk"),
        ({"spec": spec(acceleration="KVM")}, "Acceleration"),
        ({"facts": replace(FACTS, emulated_cpu_models=("Nehalem",))}, "CPUModel"),
        ({"facts": replace(FACTS, qemu_version="6.2.0")}, "OlderQEMU"),
        ({"facts": replace(FACTS, disk_owner=(64055, 64055))}, "DiskOwner"),
        ({"volumes": {"default": frozenset[str]()}}, "StorageNotProved"),
        ({"facts": None}, "HostsUnknown"),
        ({"host_uuid": vms.UUIDS["a"]}, "NoOtherHost"),
    ],
)
def test_what_of_the_other_host_is_in_the_way(b: dict[str, Any], reason: str) -> None:
    assert judged(machine(), **b) == ("Unknown/" if reason == "HostsUnknown" else "False/") + reason


def test_what_of_the_vm_is_in_the_way() -> None:
    assert judged(machine(placement={"host": "a"})) == "False/PlacementForbids"
    assert judged(machine(), domain={"state": "Paused", "reason": "User"}) == "False/NotRunning"
    assert judged(machine(), domain={"persistent": False}) == "False/Transient"
    assert judged(machine(), domain={"managed_save": True}) == "False/ManagedSave"
    assert judged(machine(), domain={"snapshots": True}) == "False/Snapshots"
    few = tuple(Checkpoint(f"c{number}", "<c/>") for number in range(256))
    assert judged(machine(), domain={"checkpoints": few}) == "True/Migratable"
    for many in ((*few, Checkpoint("one", "<c/>")), (Checkpoint("one", "c" * 4097),), (Checkpoint("c" * 254, ""),)):
        assert judged(machine(), domain={"checkpoints": many}) == "False/Checkpoints"
    without = vms.domain(vms.settled()).inactive
    assert judged(machine(), domain={"inactive": without}) == "False/PendingDetach"
    local: dict[str, Any] = {"spec": spec(pools=[POOL | {"storageID": None}])}
    assert judged(vms.settled({"boot": KERNEL}), **local) == "False/KernelNotShared"
    assert judged(vms.settled({"disks": [IMAGE]}), spec=spec(pools=[POOL, IMAGES])) == "False/ImageNotShared"
    lan = {"interfaces": [{"name": "lan", "network": "lan"}]}
    assert judged(vms.settled(lan)) == "False/NoNetwork"
    old = vms.settled({"disks": [DISK]}, {"machineType": "pc-q35-9.2"})
    assert judged(old) == "False/MachineType"


def test_two_mtus_are_in_the_way_only_when_both_are_known() -> None:
    network = {"name": "lan", "type": "Bridge", "bridge": {"name": "br0"}, "allowedNamespaces": ["*"]}
    vm = vms.settled({"interfaces": [{"name": "lan", "network": "lan"}]})
    lan, found = spec(networks=[network]), running(vm)
    assert isinstance(found, Present)
    assert FACTS is not None

    def between(here: int, there: int | None) -> str:
        facts = [
            replace(FACTS, mtus=(("Network", "br0", 576), ("Bridge", "br0", mtu)) if mtu else ())
            for mtu in (here, there)
        ]
        hosts = {n: replace(host(n), spec=lan, facts=each) for n, each in zip("ab", facts, strict=True)}
        return condition(vm, found.domain, hosts["a"], hosts)[1].reason

    assert [between(9000, 1500), between(9000, 9000), between(9000, None)] == [
        "DifferentMTU",
        "Migratable",
        "Migratable",
    ]


def test_a_vm_whose_host_is_silent_may_run_and_be_moved_there() -> None:
    vm = vms.settled({"disks": [DISK]})
    hosts = {"a": host("a", Unknown("ConnectionLost", "no route")), "b": host("b")}
    assert condition(vm, None, None, hosts)[0] == "Unknown"
    assert condition(vm, None, None, {"a": host("a"), "b": host("b")}) == ("False", Say("NotRunning"))


def test_a_vm_that_is_not_to_be_touched_says_so() -> None:
    vm = machine()
    metadata = vm.metadata.model_copy(update={"annotations": {RECONCILE_ANNOTATION: "disabled"}})
    assert judged(vm.model_copy(update={"metadata": metadata})) == "False/ReconcileDisabled"
