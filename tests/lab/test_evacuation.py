# SPDX-License-Identifier: Apache-2.0
"""Hypervisor.spec.maintenance Evacuate on real hosts: what can move does, what cannot is named, or off if it agreed."""

from __future__ import annotations

from typing import Any

from tests.lab.rig import Rig
from tests.lab.test_migration import only_on

DISK = {"name": "data", "pool": "shared", "size": "8Mi"}
LOCAL = {"name": "data", "pool": "local", "size": "8Mi"}


def test_a_host_is_evacuated_but_for_what_cannot_move_and_takes_vms_again(rig: Rig) -> None:
    h1 = rig.lab.hosts[0]
    names = ("one", "two", "three")
    for name in (*names, "local"):
        rig.vm(name, placement={"host": "h1"}, disks=[LOCAL if name == "local" else DISK])
    for name in (*names, "local"):
        assert rig.running(name) == h1
        rig.patch("vm", name, {"spec": {"placement": None}})
    pid = h1.qemu_pid(rig.uuid("local"))
    rig.patch("hv", "h1", {"spec": {"maintenance": "Evacuate"}})

    def figures() -> tuple[int | None, int | None]:
        found = rig.status("hv", "h1").get("evacuation", {})
        return found.get("remaining"), found.get("moved")

    rig.until(lambda: figures() == (1, 3), "all but one to leave", 120)
    evacuation = rig.status("hv", "h1")["evacuation"]
    assert [(each["vm"], each["reason"]) for each in evacuation["blocked"]] == [("default/local", "LocalDisk")]
    for name in names:
        host = rig.running(name)
        assert host != h1
        only_on(rig, name, host)
    assert h1.qemu_pid(rig.uuid("local")) == pid
    assert rig.status("hv", "h1")["reason"] == "Evacuating"
    rig.patch("hv", "h1", {"spec": {"maintenance": "Off"}})
    rig.until(lambda: rig.state("hv", "h1") == "Ready", "h1 to take VMs again")
    assert "evacuation" not in rig.status("hv", "h1")


def test_what_cannot_move_is_off_meanwhile_if_its_owner_agreed_and_runs_again_after_that(rig: Rig) -> None:
    h1 = rig.lab.hosts[0]
    short: dict[str, Any] = {"terminationGracePeriodSeconds": 1, "placement": {"host": "h1"}, "disks": [LOCAL]}
    uuid = rig.vm("agreed", runStrategy="Manual", evacuation="ShutOff", **short)
    rig.vm("stays", **short)
    pids = {name: rig.running(name).qemu_pid(rig.uuid(name)) for name in ("agreed", "stays")}
    for name in pids:
        rig.patch("vm", name, {"spec": {"placement": None}})
    rig.patch("hv", "h1", {"spec": {"maintenance": "Evacuate"}})
    rig.until(lambda: rig.reason("vm", "agreed") == "Evacuated", "it to be off")
    assert h1.qemu_pid(uuid) is None
    assert h1.definition(uuid) is not None
    rig.until(lambda: rig.status("hv", "h1")["evacuation"].get("shutOff") == 1, "the host to say so")
    evacuation = rig.status("hv", "h1")["evacuation"]
    assert [(each["vm"], each["reason"]) for each in evacuation["blocked"]] == [("default/stays", "LocalDisk")]
    assert evacuation["remaining"] == 1
    h1.kill_libvirtd()
    h1.start_libvirtd()
    rig.stays(lambda: h1.qemu_pid(uuid) is None, "it is not started although libvirt forgot why it is off", 4)
    rig.patch("hv", "h1", {"spec": {"maintenance": "Off"}})
    assert rig.running("agreed") == h1
    assert h1.qemu_pid(rig.uuid("stays")) == pids["stays"]
    rig.lab.assert_never_two(uuid)
