# SPDX-License-Identifier: Apache-2.0
"""VirtualMachineMigration on real hosts: after each, one process, one definition, and a status that says what is so."""

from __future__ import annotations

from typing import Any

from tests.lab.host import Host
from tests.lab.rig import Object, Rig

DISK = {"name": "data", "pool": "shared", "size": "8Mi"}


def placed(rig: Rig, name: str, number: int = 1, **spec: Any) -> str:
    """A VM that runs on this host and may go to every other; returns its UUID."""
    uuid = rig.vm(name, placement={"host": f"h{number}"}, **({"disks": [DISK]} | spec))
    rig.running(name)
    rig.patch("vm", name, {"spec": {"placement": None}})
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


def finished(rig: Rig, name: str, reason: str, seconds: float = 60) -> Object:
    """Wait for the end of a migration; returns its status."""
    rig.until(lambda: rig.condition("vmmig", name, "Finished").get("status") == "True", f"{name} to end", seconds)
    status = rig.status("vmmig", name)
    assert status["reason"] == reason, status
    return status


def only_on(rig: Rig, vm: str, host: Host) -> None:
    """The VM runs on this host, and no other host has anything of it."""
    uuid = rig.uuid(vm)
    assert rig.running(vm) == host
    assert [each.number for each in rig.lab.hosts if each.definition(uuid) is not None] == [host.number]
    rig.lab.assert_never_two(uuid)
    rig.until(
        lambda: [c["hypervisor"] for c in rig.status("vm", vm)["candidates"]] == [f"h{host.number}"], "its candidates"
    )


def test_a_running_vm_is_moved(rig: Rig) -> None:
    uuid = placed(rig, "web")
    move(rig, "go", "web", target={"host": "h2"})
    status = finished(rig, "go", "Migrated")
    assert (status["source"], status["target"]) == ("h1", "h2")
    only_on(rig, "web", rig.lab.hosts[1])
    assert rig.processes(uuid) == 2
