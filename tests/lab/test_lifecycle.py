# SPDX-License-Identifier: Apache-2.0
"""The main job: declared, running, kept running, stopped, removed."""

from __future__ import annotations

from tests.lab.rig import Rig, linux


def test_a_declared_vm_runs_is_kept_running_and_is_removed_with_all_that_is_its_own(rig: Rig) -> None:
    disk = {"name": "data", "pool": "shared", "size": "64Mi", "deletionPolicy": "Delete"}
    uuid = rig.vm("web", **linux(disks=[disk], interfaces=[{"name": "eth0", "network": "lan"}]))
    host = rig.running("web")
    rig.until(lambda: "GUEST-UP" in host.console(uuid), "the guest to come up")
    assert len([name for name in host.volumes("shared") if name.startswith("default_web_data_")]) == 1
    first = host.kill_qemu(uuid)
    rig.until(lambda: host.qemu_pid(uuid) not in (None, first), "a new process")
    rig.running("web")
    rig.delete("vm", "web")
    rig.gone("vm", "web")
    assert not any(domain.uuid == uuid for each in rig.lab.hosts for domain in each.domains())
    assert not [name for name in host.volumes("shared") if name.startswith("default_web_data_")]
    rig.lab.assert_never_two(uuid)
