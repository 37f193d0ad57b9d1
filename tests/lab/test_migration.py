# SPDX-License-Identifier: Apache-2.0
"""VirtualMachineMigration on real hosts: after each, one process, one definition, and a status that says what is so."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import libvirt
import pytest

from tests.lab.host import Host
from tests.lab.rig import SHORT, Object, Rig, linux

RESTLESS = {
    "name": "root",
    "pool": "shared",
    "size": "8Mi",
    "source": {"type": "Image", "image": {"pool": "images", "volume": "restless.raw", "format": "raw"}},
}
"""A disk whose boot sector writes to the guest's memory all the time."""
SLOW = {"bandwidth": "4Mi", "maxDowntimeMilliseconds": 20}
"""With this a restless guest is copied for ever; see `switch`."""
LAST_PASSES = {"bandwidth": "8Mi", "maxDowntimeMilliseconds": 1}
"""With this an idle Linux is copied within seconds but for the two pages that it always writes to."""


OUTLASTS = SHORT["migration_grace_seconds"] + 3
"""Seconds after which what an operator does after its grace period would be seen."""


def placed(rig: Rig, name: str, number: int = 1, **spec: Any) -> str:
    """A VM that runs on this host and may go to every other; returns its UUID."""
    uuid = rig.vm(name, placement={"host": f"h{number}"}, **({"disks": [RESTLESS]} | spec))
    host = rig.running(name)
    rig.patch("vm", name, {"spec": {"placement": None}})
    if "restless.raw" in str(spec.get("disks", RESTLESS)):
        rig.until(lambda: host.writes(uuid), "the guest to write to its memory")
    time.sleep(1)  # to all of it
    assert host.number == number
    return uuid


def move(rig: Rig, name: str, vm: str, **spec: Any) -> None:
    """Apply a migration."""
    rig.apply(
        {
            "apiVersion": "homeostat.dev/v1alpha1",
            "kind": "VirtualMachineMigration",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"vmRef": {"name": vm}} | spec,
        }
    )


def copying(rig: Rig, name: str) -> None:
    """Wait until memory is on its way for a second: libvirt has a job before it has reached the target."""
    rig.until(lambda: rig.status("vmmig", name).get("progress", {}).get("remainingMiB"), "its copy to begin")
    rig.until(lambda: rig.status("vmmig", name).get("progress", {}).get("elapsedSeconds", 0) >= 1, f"{name} to copy")


def switch(rig: Rig, uuid: str, *, wait: bool = True) -> None:
    """Let what is copied from h1 come to its switchover: as fast as it can, whatever the downtime.

    Again and again until it is there: an operator that looks before QEMU does sets the limit of the policy again.
    """
    virt = libvirt.open(rig.lab.hosts[0].uri_tcp)
    try:
        domain = virt.lookupByUUIDString(uuid)
        with suppress(libvirt.libvirtError):  # it may be over as soon as it is fast
            domain.migrateSetMaxSpeed(1000)
            domain.migrateSetMaxDowntime(60000)
        if wait:
            rig.until(lambda: _left(domain), "the switchover")
    finally:
        virt.close()


def _left(domain: Any) -> bool:
    """Whether the source has stopped the CPUs, or has nothing any more; if not, the limit is raised once more."""
    try:
        if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
            return True
        domain.migrateSetMaxDowntime(60000)
    except libvirt.libvirtError:  # the job is over
        return True
    return False


def in_mid_copy(rig: Rig, **policy: Any) -> str:
    """A restless VM on its way from h1 to h2 that never gets there by itself; returns its UUID."""
    uuid = placed(rig, "web")
    move(rig, "go", "web", target={"host": "h2"}, policy=SLOW | policy)
    copying(rig, "go")
    return uuid


def unanswered(rig: Rig) -> str:
    """A restless VM that comes to its switchover from h1 to h2, and h1 is not told; returns its UUID."""
    uuid = in_mid_copy(rig)
    h1, h2 = rig.lab.hosts[:2]
    h2.mute(h1)
    switch(rig, uuid)
    return uuid


def in_row(rig: Rig, number: str, seconds: float = 60) -> None:
    """Wait until the migration is in this row of the table."""
    rig.until(lambda: rig.status("vmmig", "go")["decision"]["row"] == number, f"row {number}", seconds)


def lose_the_answer(rig: Rig, uuid: str) -> None:
    """Let a Linux that is moved from h1 to h2 with LAST_PASSES switch over, and lose what h2 says of it.

    That is for as short a time as can be, or the hosts give each other up before the switchover.
    """
    rig.until(lambda: rig.status("vmmig", "go").get("progress", {}).get("iteration", 0) > 1, "most to be copied")
    h1, h2 = rig.lab.hosts[:2]
    h2.mute(h1)
    switch(rig, uuid)


def finished(rig: Rig, name: str, *reasons: str, seconds: float = 60) -> Object:
    """Wait for the end of a migration, for one of these reasons; returns its status."""
    rig.until(lambda: rig.condition("vmmig", name, "Finished").get("status") == "True", f"{name} to end", seconds)
    status = rig.status("vmmig", name)
    assert status["reason"] in reasons, status
    assert rig.condition("vmmig", name, "Succeeded")["status"] == (
        "True" if status["reason"] in ("Migrated", "MigratedThenOff") else "False"
    )
    return status


def only_on(rig: Rig, vm: str, host: Host) -> None:
    """The VM runs on this host, no other host has anything of it, and its CPUs never ran on two."""
    uuid = rig.uuid(vm)
    rig.until(lambda: rig.state("vm", vm) == "Running" and host.qemu_pid(uuid), f"{vm} to run on h{host.number}")
    assert rig.host_of(uuid) == host
    assert [each.number for each in rig.lab.hosts if each.definition(uuid) is not None] == [host.number]
    status = rig.status("vm", vm)
    assert status["host"] == f"h{host.number}"
    assert "migration" not in status
    rig.until(lambda: [each["hypervisor"] for each in rig.status("vm", vm)["candidates"]] == [f"h{host.number}"], "it")
    rig.lab.assert_never_two(uuid)


def test_a_running_vm_is_moved_there_and_back(rig: Rig) -> None:
    h1, h2 = rig.lab.hosts[:2]
    uuid = placed(rig, "web")
    move(rig, "go", "web", target={"host": "h2"}, policy=SLOW)
    copying(rig, "go")
    assert rig.reason("vm", "web") == "Migrating"
    assert rig.condition("vm", "web", "Ready")["status"] == "True"
    switch(rig, uuid)
    status = finished(rig, "go", "Migrated")
    assert (status["source"], status["target"], status["decision"]["row"]) == ("h1", "h2", "4")
    only_on(rig, "web", h2)
    move(rig, "back", "web", target={"host": "h1"})
    finished(rig, "back", "Migrated")
    only_on(rig, "web", h1)
    assert rig.processes(uuid) == 3
    h1.kill_qemu(uuid)
    rig.until(lambda: h1.qemu_pid(uuid), "it to be started where it is now")


@pytest.mark.parametrize("how", ["abort", "delete"])
def test_a_migration_is_stopped_and_the_vm_stays(rig: Rig, how: str) -> None:
    uuid = placed(rig, "web")
    pid = rig.lab.hosts[0].qemu_pid(uuid)
    move(rig, "go", "web", target={"host": "h2"}, policy=SLOW)
    copying(rig, "go")
    if how == "abort":
        rig.patch("vmmig", "go", {"spec": {"abort": "Requested"}})
        finished(rig, "go", "Aborted")
    else:
        rig.delete("vmmig", "go")
        rig.gone("vmmig", "go")
    only_on(rig, "web", rig.lab.hosts[0])
    assert rig.lab.hosts[0].qemu_pid(uuid) == pid


@pytest.mark.parametrize("seed", range(3))
def test_an_abort_at_a_random_moment_of_the_switchover_leaves_one_vm(rig: Rig, seed: int) -> None:
    uuid = placed(rig, "web")
    move(rig, "go", "web", target={"host": "h2"}, policy=SLOW)
    copying(rig, "go")
    switch(rig, uuid, wait=False)
    time.sleep(random.Random(seed).uniform(0, 0.5))
    rig.patch("vmmig", "go", {"spec": {"abort": "Requested"}})
    status = finished(rig, "go", "Aborted", "Migrated")
    only_on(rig, "web", rig.lab.hosts[1 if status["reason"] == "Migrated" else 0])


ROWS = {"at the switchover": "3", "before cleaning up": "6"}


@pytest.mark.parametrize("moment", ["at once", "in mid-copy", "at the switchover", "before cleaning up"])
def test_an_operator_that_dies_is_followed_by_one_that_goes_on_where_the_hosts_are(rig: Rig, moment: str) -> None:
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    move(rig, "go", "web", target={"host": "h2"}, policy=SLOW)
    if moment == "at once":
        rig.until(lambda: rig.status("vmmig", "go").get("intent"), "the intent to be written")
    else:
        copying(rig, "go")
    if (row := ROWS.get(moment)) is not None:
        h2.mute(h1)
        switch(rig, uuid)
        in_row(rig, row)
    rig.operator.kill()
    time.sleep(1)
    h2.unfilter()
    rig.operator.start()
    if row is None:
        copying(rig, "go")
        switch(rig, uuid)
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)


def test_a_lost_answer_of_the_target_is_made_good_and_its_process_is_kept(rig: Rig) -> None:
    uuid = unanswered(rig)
    h2 = rig.lab.hosts[1]
    rig.until(lambda: running(rig, uuid, h2), "its CPUs to run on h2")
    pid = h2.qemu_pid(uuid)
    status = finished(rig, "go", "Migrated")
    assert status["lastMessage"]
    assert status["marks"]["endedSource"]
    only_on(rig, "web", h2)
    assert h2.qemu_pid(uuid) == pid


FAULTS: dict[str, Callable[[Host, Host, str], object]] = {
    "the source's libvirtd is killed": lambda source, target, uuid: source.kill_libvirtd(),
    "the target's libvirtd is killed": lambda source, target, uuid: target.kill_libvirtd(),
    "the target's QEMU is killed": lambda source, target, uuid: target.kill_qemu(uuid),
    "the stream is cut": lambda source, target, uuid: source.part(target),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_mid_copy_leaves_the_vm_where_it_is(rig: Rig, fault: str) -> None:
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    pid = h1.qemu_pid(uuid)
    move(rig, "go", "web", target={"host": "h2"}, policy=SLOW)
    copying(rig, "go")
    FAULTS[fault](h1, h2, uuid)
    time.sleep(1)
    for host in (h1, h2):
        if host.daemon("libvirtd") is None:
            host.start_libvirtd()
    finished(rig, "go", "RolledBack")
    h1.unfilter()
    only_on(rig, "web", h1)
    assert h1.qemu_pid(uuid) == pid


def test_the_source_dies_in_mid_copy_and_the_vm_is_started_again(rig: Rig) -> None:
    uuid = placed(rig, "web")
    h1 = rig.lab.hosts[0]
    move(rig, "go", "web", target={"host": "h2"}, policy=SLOW)
    copying(rig, "go")
    killed = h1.kill_qemu(uuid)
    finished(rig, "go", "VMDown")
    rig.until(lambda: h1.qemu_pid(uuid) not in (None, killed), "it to be started again")
    only_on(rig, "web", h1)


def test_a_network_that_breaks_at_the_switchover_leaves_the_vm_on_the_source(rig: Rig) -> None:
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    move(rig, "go", "web", target={"host": "h2"}, policy=SLOW)
    copying(rig, "go")
    h2.refuse(h1)
    switch(rig, uuid)
    rig.until(lambda: rig.status("vmmig", "go")["decision"]["row"] != "1", "the switchover")
    time.sleep(1)
    status = finished(rig, "go", "RolledBack", "Migrated", seconds=90)
    h2.unfilter()
    only_on(rig, "web", h2 if status["reason"] == "Migrated" else h1)


@pytest.mark.parametrize("wish", ["stopped", "deleted"])
def test_a_vm_that_is_to_go_off_is_not_moved_on(rig: Rig, wish: str) -> None:
    uuid = placed(rig, "web")
    move(rig, "go", "web", target={"host": "h2"}, policy=SLOW)
    copying(rig, "go")
    if wish == "stopped":
        rig.patch("vm", "web", {"spec": {"runStrategy": "Halted"}})
        rig.says("web", "Halted")
    else:
        rig.delete("vm", "web")
        rig.gone("vm", "web")
    finished(rig, "go", "Aborted")
    assert rig.host_of(uuid) is None
    assert [host.number for host in rig.lab.hosts if host.definition(uuid)] == ([1] if wish == "stopped" else [])
    rig.lab.assert_never_two(uuid)


def test_a_guest_that_powers_itself_off_in_mid_copy_is_down_and_started_as_its_strategy_says(rig: Rig) -> None:
    kernel = linux("homeostat.poweroff=12", memory={"size": "128Mi"})
    uuid = placed(rig, "web", disks=[], **kernel)
    move(rig, "go", "web", target={"host": "h2"}, policy=SLOW | {"bandwidth": "1Mi"})
    copying(rig, "go")
    finished(rig, "go", "VMDown")
    rig.until(lambda: rig.processes(uuid) >= 3, "it to be started again")
    rig.lab.assert_never_two(uuid)


def test_two_migrations_of_one_vm_take_turns(rig: Rig) -> None:
    uuid = placed(rig, "web")
    move(rig, "first", "web", target={"host": "h2"}, policy=SLOW)
    copying(rig, "first")
    move(rig, "second", "web", target={"host": "h1"})
    rig.until(lambda: rig.reason("vmmig", "second") == "Queued", "the second to wait")
    assert "first" in rig.condition("vmmig", "second", "Queued")["message"]
    switch(rig, uuid)
    finished(rig, "first", "Migrated")
    finished(rig, "second", "Migrated")
    only_on(rig, "web", rig.lab.hosts[0])


def test_without_a_lock_a_lost_answer_never_has_it_run_twice_when_the_switchover_is_confirmed(rig: Rig) -> None:
    """A VM without a disk: no lock would keep the source from going on."""
    uuid = placed(rig, "web", disks=[], **linux())
    h1, h2 = rig.lab.hosts[:2]
    move(rig, "go", "web", target={"host": "h2"}, policy=LAST_PASSES | {"switchover": "Confirmed"})
    lose_the_answer(rig, uuid)
    status = finished(rig, "go", "RolledBack", "Migrated", seconds=90)
    h2.unfilter()
    only_on(rig, "web", h2 if status["reason"] == "Migrated" else h1)


def test_without_a_lock_a_lost_answer_is_a_split_brain_that_is_frozen_named_and_resolved(rig: Rig) -> None:
    """Row 11."""
    uuid = placed(rig, "web", disks=[], **linux())
    h1, h2 = rig.lab.hosts[:2]
    move(rig, "go", "web", target={"host": "h2"}, policy=LAST_PASSES)
    lose_the_answer(rig, uuid)
    rig.until(lambda: rig.reason("vmmig", "go") == "SplitBrain", "the split brain to be seen", 90)
    h2.unfilter()
    rig.until(lambda: not running(rig, uuid, h1), "the source's CPUs to be stopped")
    assert running(rig, uuid, h2)
    assert rig.condition("vmmig", "go", "Ambiguous")["status"] == "True"
    rig.stays(lambda: h1.qemu_pid(uuid) and h2.qemu_pid(uuid), "neither process to be ended", 5)
    evidence = rig.status("vmmig", "go")["decision"]["evidence"]
    assert evidence in rig.condition("vmmig", "go", "Ambiguous")["message"]
    pid = h2.qemu_pid(uuid)
    rig.patch("vmmig", "go", {"spec": {"resolve": {"keep": "KeepTarget", "evidence": evidence}}})
    finished(rig, "go", "Migrated")
    assert h2.qemu_pid(uuid) == pid
    assert [host.number for host in rig.lab.hosts if host.definition(uuid)] == [2]


def running(rig: Rig, uuid: str, host: Host) -> bool:
    """Whether the domain's CPUs run on this host, by the recorder."""
    lives = [life for life in rig.lab.intervals(uuid) if life.host == host.name and life.end is None and life.running]
    return any(life.running[-1][1] is None for life in lives)
