# SPDX-License-Identifier: Apache-2.0
"""Migrations that copy disks, on real hosts: which copy of a disk counts, and what is left of the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.host import Host
from tests.lab.rig import Object, Rig
from tests.lab.test_disks import GREETER, SECTOR, bootable, boots, copied
from tests.lab.test_migration import RESTLESS, SLOW, copying, finished, move, only_on, placed, switch

LOCAL = RESTLESS | {"pool": "local"}
"""A disk of a guest that never comes to rest, on the host's own storage."""
FULL = {"type": "Full", "disks": ["root"]}
INCREMENTAL = FULL | {"type": "Incremental"}
FAST = {"bandwidth": "16Mi", "maxDowntimeMilliseconds": 20}
"""With this the memory of a restless guest is gone through every two seconds."""
H1, H2 = {"host": "h1"}, {"host": "h2"}


@pytest.fixture
def greeter(rig: Rig) -> Iterator[Object]:
    """A disk on the host's own storage, over a shared image; the guest writes to it when it is booted."""
    path = bootable(rig.lab.hosts[0].pool_path("images") / "bootable.img", GREETER)
    image = {"pool": "images", "volume": path.name, "format": "raw"}
    yield {"name": "root", "pool": "local", "size": "8Mi", "source": {"type": "Image", "image": image}}
    path.unlink()


def files(host: Host) -> list[str]:
    """What the host's own pool has of the VM, by what comes after the name of the volume."""
    names = [name for name in host.volumes("default") if name.startswith("default_web")]
    return sorted(name.partition(".qcow2")[2].split("-")[0] for name in names)


DISK, STALE, COMING = [""], ["", ".stale"], ["", ".incoming"]


def volume(host: Host) -> Path:
    """The file of the VM's disk on a host."""
    (name,) = [name for name in host.volumes("default") if name.endswith(".qcow2")]
    return host.pool_path("default") / name


def written(rig: Rig, host: Host, number: int) -> bytes:
    """A sector of the disk, as the guest would read it."""
    raw = rig.directory / "disk.raw"
    inside = f"/var/lib/libvirt/images/{volume(host).name}"
    host.execute("qemu-img", "dd", "-U", "-O", "raw", f"bs={SECTOR}", "count=2", f"if={inside}", "of=/run/disk.raw")
    raw.write_bytes(host.outside("/run/disk.raw").read_bytes())
    return raw.read_bytes()[number * SECTOR :][:SECTOR]


@pytest.mark.parametrize("copy", [FULL, INCREMENTAL], ids=["Full", "Incremental"])
def test_a_disk_is_copied_there_and_back_and_a_cold_start_finds_what_the_guest_wrote(
    rig: Rig, greeter: Object, copy: Object
) -> None:
    h1, h2, vm = *rig.lab.hosts[:2], f"web-{copy['type'].lower()}"  # its console keeps what an earlier one said
    uuid = placed(rig, vm, disks=[greeter])
    rig.until(lambda: boots(h1, uuid) == 1, "the guest to boot")
    rig.until(lambda: written(rig, h1, 1) == written(rig, h1, 0), "the guest to write")
    move(rig, "go", vm, target=H2, storageCopy=copy)
    finished(rig, "go", "Migrated")
    only_on(rig, vm, h2)
    assert (files(h1), files(h2)) == (STALE, DISK)
    assert written(rig, h2, 1) == written(rig, h2, 0)
    h2.kill_qemu(uuid)
    rig.until(lambda: boots(h2, uuid) == 1, "the guest to boot from the copy")
    only_on(rig, vm, h2)
    move(rig, "back", vm, target=H1, storageCopy=copy)
    finished(rig, "back", "Migrated")
    only_on(rig, vm, h1)
    assert (files(h1), files(h2)) == (DISK, STALE)
    assert written(rig, h1, 1) == written(rig, h1, 0)


def test_a_volume_that_was_brought_is_copied_byte_by_byte(rig: Rig) -> None:
    h1, h2 = rig.lab.hosts[:2]
    brought = [host.pool_path("default") / "brought.img" for host in (h1, h2)]
    bootable(brought[0], GREETER)
    source = {"type": "Volume", "volume": {"name": "brought.img", "format": "raw"}}
    try:
        uuid = placed(rig, "web", disks=[{"name": "root", "pool": "local", "source": source}])
        rig.until(lambda: boots(h1, uuid) == 1, "the guest to boot")
        rig.until(lambda: copied(brought[0]), "the guest to write")
        move(rig, "go", "web", target=H2, storageCopy=FULL)
        finished(rig, "go", "Migrated")
        only_on(rig, "web", h2)
        assert brought[1].read_bytes() == brought[0].read_bytes()
        assert copied(brought[1])
    finally:
        for host in (h1, h2):
            for path in host.pool_path("default").glob("brought.img*"):
                path.unlink(missing_ok=True)


def test_a_restless_guest_follows_its_disk_by_post_copy(rig: Rig) -> None:
    h1, h2 = rig.lab.hosts[:2]
    uuid = placed(rig, "web", disks=[LOCAL])
    move(rig, "go", "web", target=H2, policy=FAST | {"mode": "PostCopy"}, storageCopy=FULL)
    status = finished(rig, "go", "Migrated")
    assert status["marks"]["postCopy"]
    only_on(rig, "web", h2)
    assert (files(h1), files(h2)) == (STALE, DISK)
    assert rig.processes(uuid) == 2


def test_a_target_without_room_for_the_disk_ends_it_and_nothing_is_left(rig: Rig) -> None:
    h1, h2 = rig.lab.hosts[:2]
    uuid = placed(rig, "web", disks=[LOCAL | {"pool": "tiny"}])
    pid = h1.qemu_pid(uuid)
    h2.disk_full("tiny")
    try:
        move(rig, "go", "web", target=H2, storageCopy=FULL)
        finished(rig, "go", "StorageNotReady")
        assert "No space left" in rig.condition("vmmig", "go", "Succeeded")["message"]
        assert not [name for name in h2.volumes("tiny") if name.startswith("default_web")]
    finally:
        h2.disk_freed("tiny")
    only_on(rig, "web", h1)
    assert h1.qemu_pid(uuid) == pid
    move(rig, "again", "web", target=H2, storageCopy=FULL, policy={"maxDowntimeMilliseconds": 10000})
    finished(rig, "again", "Migrated")
    only_on(rig, "web", h2)


@pytest.mark.parametrize("copy", [FULL, INCREMENTAL], ids=["Full", "Incremental"])
def test_what_an_aborted_copy_left_is_removed(rig: Rig, copy: Object) -> None:
    h1, h2 = rig.lab.hosts[:2]
    uuid = placed(rig, "web", disks=[LOCAL])
    pid = h1.qemu_pid(uuid)
    move(rig, "go", "web", target=H2, policy=SLOW, storageCopy=copy)
    copying(rig, "go")
    assert (files(h1), files(h2)) == (STALE, COMING)
    rig.patch("vmmig", "go", {"spec": {"abort": "Requested"}})
    finished(rig, "go", "Aborted")
    assert (files(h1), files(h2)) == (DISK, [])
    only_on(rig, "web", h1)
    assert h1.qemu_pid(uuid) == pid
    h1.kill_qemu(uuid)
    rig.until(lambda: h1.qemu_pid(uuid) not in (None, pid), "it to be started again")


@pytest.mark.parametrize("moment", ["at once", "in mid-copy"])
def test_an_operator_that_dies_is_followed_by_one_that_knows_which_volumes_are_whose(rig: Rig, moment: str) -> None:
    h1, h2 = rig.lab.hosts[:2]
    uuid = placed(rig, "web", disks=[LOCAL])
    move(rig, "go", "web", target=H2, policy=SLOW, storageCopy=FULL)
    if moment == "at once":
        rig.until(lambda: rig.status("vmmig", "go").get("intent"), "the intent to be written")
    else:
        copying(rig, "go")
    rig.operator.kill()
    rig.operator.start()
    copying(rig, "go")
    switch(rig, uuid)
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)
    assert (files(h1), files(h2)) == (STALE, DISK)


def test_what_a_copy_left_is_removed_though_it_broke_off_while_no_operator_was_there(rig: Rig) -> None:
    h1, h2 = rig.lab.hosts[:2]
    uuid = placed(rig, "web", disks=[LOCAL])
    move(rig, "go", "web", target=H2, policy=SLOW, storageCopy=FULL)
    copying(rig, "go")
    rig.operator.kill()
    h1.virsh("domjobabort", uuid)
    rig.until(lambda: h2.qemu_pid(uuid) is None, "libvirt to give up")
    assert (files(h1), files(h2)) == (STALE, COMING)
    rig.operator.start()
    finished(rig, "go", "RolledBack")
    assert (files(h1), files(h2)) == (DISK, [])
    only_on(rig, "web", h1)


def test_a_target_that_is_away_is_cleaned_when_it_is_back(rig: Rig) -> None:
    h1, h2 = rig.lab.hosts[:2]
    placed(rig, "web", disks=[LOCAL])
    move(rig, "go", "web", target=H2, policy=SLOW, storageCopy=FULL)
    copying(rig, "go")
    h2.kill_libvirtd()
    rig.until(lambda: rig.reason("vmmig", "go") == "TargetMayRun", "the target to be missed", 90)
    rig.stays(lambda: rig.condition("vmmig", "go", "Finished")["status"] == "False", "it is not over", 5)
    assert (files(h1), files(h2)) == (STALE, COMING)
    h2.start_libvirtd()
    finished(rig, "go", "RolledBack")
    assert (files(h1), files(h2)) == (DISK, [])
    only_on(rig, "web", h1)


def test_a_lost_answer_leaves_one_copy_when_the_switchover_is_confirmed(rig: Rig) -> None:
    """No lock holds between the two copies of a disk."""
    h1, h2 = rig.lab.hosts[:2]
    uuid = placed(rig, "web", disks=[LOCAL])
    move(rig, "go", "web", target=H2, policy=SLOW | {"switchover": "Confirmed"}, storageCopy=FULL)
    copying(rig, "go")
    h2.mute(h1)
    switch(rig, uuid)
    status = finished(rig, "go", "RolledBack", "Migrated", seconds=90)
    h2.unfilter()
    moved = status["reason"] == "Migrated"
    only_on(rig, "web", h2 if moved else h1)
    assert (files(h1), files(h2)) == ((STALE, DISK) if moved else (DISK, []))


def test_the_old_copy_is_never_started_again(rig: Rig) -> None:
    """Not even when the other host is gone for good and nothing but the hosts knows what became of the disk."""
    h1, h2 = rig.lab.hosts[:2]
    uuid = placed(rig, "web", disks=[LOCAL])
    move(rig, "go", "web", target=H2, storageCopy=FULL, policy={"maxDowntimeMilliseconds": 10000})
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)
    h2.power_off()
    rig.until(lambda: rig.state("hv", "h2") != "Ready", "h2 to be missed")
    since = rig.kubectl("get", "hv", "h2", "-o", "jsonpath={.status.since}")
    rig.patch("hv", "h2", {"spec": {"outOfService": {"since": since, "evidence": "PoweredOff"}}})
    assert "OutOfService" in rig.says("web", "NoHost")
    rig.patch("vm", "web", {"spec": {"placement": H1}})
    rig.says("web", "DiskElsewhere")
    forgotten = json.dumps({"status": {"disks": None}})
    rig.kubectl("patch", "vm", "web", "--subresource=status", "--type=merge", "-p", forgotten)
    message = rig.says("web", "DiskStale")
    assert ".stale-" in message
    assert rig.host_of(uuid) is None
    assert h1.definition(uuid) is None
    assert files(h1) == STALE


def test_what_is_in_the_way_stays_as_it_is(rig: Rig) -> None:
    h1, h2 = rig.lab.hosts[:2]
    uuid = placed(rig, "web", disks=[LOCAL])
    pid = h1.qemu_pid(uuid)
    there = h2.pool_path("default") / volume(h1).name
    there.write_bytes(b"somebody's")
    move(rig, "go", "web", target=H2, storageCopy=FULL)
    finished(rig, "go", "VolumeInTheWay")
    assert there.name in rig.condition("vmmig", "go", "Succeeded")["message"]
    assert there.read_bytes() == b"somebody's"
    assert (files(h1), files(h2)) == (DISK, DISK)
    only_on(rig, "web", h1)
    assert h1.qemu_pid(uuid) == pid
