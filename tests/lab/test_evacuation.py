# SPDX-License-Identifier: Apache-2.0
"""Hypervisor.spec.maintenance Evacuate on real hosts: what can move does, what cannot is named, nothing ends."""

from __future__ import annotations

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
    rig.until(lambda: rig.status("hv", "h1").get("evacuation", {}).get("remaining") == 1, "all but one to leave", 90)
    evacuation = rig.status("hv", "h1")["evacuation"]
    assert evacuation["moved"] == 3
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
