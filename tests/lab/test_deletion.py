# SPDX-License-Identifier: Apache-2.0
"""Deleting: a Hypervisor that holds VMs, a namespace, a VM whose host is silent, a VM whose image or Secret is gone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from tests.lab.rig import Rig, hypervisor


def test_a_hypervisor_that_holds_vms_waits_keeps_them_running_and_takes_no_new_ones(rig: Rig) -> None:
    host, uuid = rig.lab.hosts[0], rig.vm("held", placement={"host": "h1"})
    rig.running("held")
    pid = host.qemu_pid(uuid)
    rig.delete("hv", "h1")
    rig.until(lambda: rig.status("hv", "h1").get("holds") == ["default/held"], "the VM that is waited for to be named")
    assert (rig.state("hv", "h1"), rig.reason("hv", "h1")) == ("Deleting", "Deleting")
    rig.vm("new", placement={"host": "h1"})
    assert "Hypervisor h1: Deleting" in rig.says("new", "NoHost")
    rig.operator.kill()
    host.kill_qemu(uuid)
    rig.operator.start()
    rig.until(lambda: host.qemu_pid(uuid) not in (None, pid), "the VM it holds to be healed")
    assert not any(domain.name == "default_new" for domain in host.domains())
    rig.delete("vm", "held")
    rig.gone("vm", "held")
    rig.gone("hv", "h1")
    rig.apply(hypervisor("h1", host.uri_tcp))
    assert rig.running("new") == host


def test_a_namespace_with_running_vms_is_deleted_and_ends_clean(rig: Rig) -> None:
    rig.kubectl("create", "namespace", "brief")
    disks = [
        {"name": policy.lower(), "pool": "shared", "size": "8Mi", "deletionPolicy": policy}
        for policy in ("Delete", "Retain")
    ]
    uuids = {rig.vm(name, "brief", disks=disks) for name in ("one", "two")}
    for name in ("one", "two"):
        rig.running(name, "brief")
    rig.kubectl("delete", "namespace", "brief", "--wait=false")
    rig.until(lambda: not rig.kubectl("get", "namespace", "brief", "--ignore-not-found"), "the namespace to go")
    assert not [domain.name for host in rig.lab.hosts for domain in host.domains() if domain.uuid in uuids]
    left = [name.rpartition("_")[0] for name in rig.lab.hosts[0].volumes("shared") if name.startswith("brief_")]
    assert sorted(left) == ["brief_one_retain", "brief_two_retain"]


def orphans(rig: Rig) -> list[str]:
    return [orphan["uuid"] for orphan in rig.status("hv", "h1").get("orphans", [])]


def back(rig: Rig) -> None:
    rig.lab.hosts[0].heal()


def out_of_service(rig: Rig) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    rig.patch("hv", "h1", {"spec": {"outOfService": {"since": now, "evidence": "PoweredOff"}}})


def abandoned(rig: Rig) -> None:
    rig.patch("vm", "web", {"spec": {"abandonHosts": ["h1"]}})


@pytest.fixture
def in_service(rig: Rig) -> Iterator[None]:
    yield
    rig.patch("hv", "h1", {"spec": {"outOfService": None}})


@pytest.mark.usefixtures("in_service")
@pytest.mark.parametrize("way", [back, out_of_service, abandoned])
def test_a_vm_whose_host_is_silent_waits_says_so_and_goes_by_each_way_that_is_named(
    rig: Rig, way: Callable[[Rig], None]
) -> None:
    host = rig.lab.hosts[0]
    disk = {"name": "data", "pool": "shared", "size": "8Mi", "deletionPolicy": "Delete"}
    uuid = rig.vm("web", placement={"host": "h1"}, disks=[disk])
    rig.running("web")
    host.power_off()
    rig.until(lambda: rig.state("hv", "h1") == "Unreachable", "the host to be silent")
    rig.delete("vm", "web")
    message = rig.says("web", "DeletingWaits")
    assert "Hypervisor h1 is unknown since 20" in message
    assert all(words in message for words in ("Repair the host", "spec.outOfService", "spec.abandonHosts"))
    rig.stays(lambda: rig.reason("vm", "web") == "DeletingWaits", "it waits", 2)
    way(rig)
    rig.gone("vm", "web")
    volumes = [name for name in host.volumes("shared") if name.startswith("default_web_data_")]
    assert len(volumes) == (way is not back)
    assert any(domain.uuid == uuid for domain in host.domains()) == (way is not back)
    if way is abandoned:
        host.heal()
        rig.until(lambda: orphans(rig) == [uuid], "what was left behind to be told")


def test_a_vm_goes_when_its_kernel_and_the_image_of_its_disk_are_gone(rig: Rig) -> None:
    folder = rig.lab.hosts[0].pool_path("images")
    for name in ("vmlinuz", "initrd"):
        shutil.copy2(folder / name, folder / f"{name}-brief")
    source = {"type": "Image", "image": {"pool": "images", "volume": "initrd-brief", "format": "raw"}}
    disk = {"name": "root", "pool": "shared", "source": source, "deletionPolicy": "Delete"}
    boot = {"type": "Kernel", "kernel": {"pool": "images", "kernel": "vmlinuz-brief"}}
    uuid = rig.vm("web", disks=[disk], boot=boot)
    host = rig.running("web")
    for name in ("vmlinuz-brief", "initrd-brief"):
        (folder / name).unlink()
    rig.delete("vm", "web")
    rig.gone("vm", "web")
    assert not any(domain.uuid == uuid for domain in host.domains())
    assert not [name for name in host.volumes("shared") if name.startswith("default_web_root_")]
