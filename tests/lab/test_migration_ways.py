# SPDX-License-Identifier: Apache-2.0
"""The other ways a migration may go: time-outs, post-copy, restless guests, what the target lacks, wishes in vain."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.lab.host import Host
from tests.lab.processes import LabError
from tests.lab.rig import Object, Rig, linux
from tests.lab.test_migration import OUTLASTS, RESTLESS, SLOW, copying, finished, move, only_on, placed, running, switch
from tests.lab.test_migration_rows import idle

FAST = {"bandwidth": "16Mi", "maxDowntimeMilliseconds": 20}
"""A pass over the memory of a restless guest takes two seconds, and none is the last."""
CRAWLING = {"bandwidth": "1Mi", "maxDowntimeMilliseconds": 1}
"""With this a guest that has nothing to do is copied for minutes."""
SHARED = {"name": "data", "pool": "shared", "size": "8Mi"}
H2 = {"host": "h2"}


def up(rig: Rig, host: Host, vm: str, times: int = 1) -> None:
    """Wait until the guest has come up so many times, by its console on this host."""
    uuid = rig.uuid(vm)

    def told() -> bool:
        with suppress(LabError):  # no definition yet
            return host.console(uuid).count("GUEST-UP") >= times
        return False

    rig.until(told, f"{vm} to come up {times} times on h{host.number}")


# Convergence


@pytest.mark.parametrize(
    ("limit", "passed"),
    [({"completionTimeoutSecondsPerGiB": 3}, "completion"), ({"progressTimeoutSeconds": 6}, "progress")],
    ids=["completion", "progress"],
)
def test_under_precopy_a_restless_guest_stays_when_the_time_is_out(rig: Rig, limit: Object, passed: str) -> None:
    uuid = placed(rig, "web")
    h1 = rig.lab.hosts[0]
    pid = h1.qemu_pid(uuid)
    move(rig, "go", "web", target=H2, policy=FAST | limit)
    finished(rig, "go", "TimedOut")
    assert f"The {passed} time-out has passed" in rig.condition("vmmig", "go", "Succeeded")["message"]
    only_on(rig, "web", h1)
    assert h1.qemu_pid(uuid) == pid
    assert running(rig, uuid, h1)


def test_under_auto_a_restless_guest_follows_by_post_copy(rig: Rig) -> None:
    uuid = placed(rig, "web")
    h2 = rig.lab.hosts[1]
    move(rig, "go", "web", target=H2, policy=FAST | {"mode": "Auto"})
    status = finished(rig, "go", "Migrated")
    assert status["marks"]["postCopy"]
    assert "timedOut" not in status["marks"]
    only_on(rig, "web", h2)
    assert running(rig, uuid, h2)


def test_a_restless_guest_is_switched_over_by_force_when_the_time_is_out(rig: Rig) -> None:
    uuid = placed(rig, "web")
    h2 = rig.lab.hosts[1]
    limit = {"completionTimeoutSecondsPerGiB": 2, "onTimeout": "ForceComplete"}
    move(rig, "go", "web", target=H2, policy=FAST | limit)
    status = finished(rig, "go", "Migrated")
    assert status["progress"]["elapsedSeconds"] >= 4  # without force it is copied for ever: see the one under PreCopy
    only_on(rig, "web", h2)
    assert running(rig, uuid, h2)


# What the guest does, and what is asked of it


@pytest.mark.parametrize("deed", ["reboot", "panic"])
def test_a_guest_that_resets_or_panics_in_mid_copy_is_moved_as_it_is(rig: Rig, deed: str) -> None:
    uuid = placed(rig, "web", disks=[SHARED], **linux(f"homeostat.{deed}=12"))
    h1, h2 = rig.lab.hosts[:2]
    pid = h1.qemu_pid(uuid)
    move(rig, "go", "web", target=H2, policy=CRAWLING)
    copying(rig, "go")
    assert "Kernel panic" not in h1.console(uuid)
    if deed == "reboot":
        up(rig, h1, "web", times=2)
    else:
        rig.until(lambda: "Kernel panic" in h1.console(uuid), "the panic")
    assert (rig.condition("vmmig", "go", "Finished")["status"], h1.qemu_pid(uuid)) == ("False", pid)
    switch(rig, uuid)
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)
    assert rig.processes(uuid) == 2


def test_a_spec_that_is_edited_in_mid_copy_takes_effect_on_the_new_host(rig: Rig) -> None:
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    move(rig, "go", "web", target=H2, policy=SLOW)
    copying(rig, "go")
    rig.patch("vm", "web", {"spec": {"memory": {"size": "96Mi"}}})
    before = text(h1, uuid)
    rig.stays(lambda: text(h1, uuid) == before, "the definition is left alone while it is copied", 3)
    switch(rig, uuid)
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)
    rig.until(
        lambda: rig.condition("vm", "web", "RestartRequired").get("status") == "True", "a restart to be asked for"
    )
    assert (rig.processes(uuid), allotted(h2, uuid)) == (2, 64)
    rig.request("web", "now")
    rig.until(lambda: allotted(h2, uuid) == 96, "the restart that was asked for")
    only_on(rig, "web", h2)
    rig.kubectl("wait", "--for=condition=RestartRequired=False", "vm/web", "--timeout=30s")


def text(host: Host, uuid: str) -> bytes:
    """A definition, as it is on disk."""
    definition = host.definition(uuid)
    assert definition is not None
    return ElementTree.tostring(definition)


def allotted(host: Host, uuid: str) -> int | None:
    """The memory in MiB that the QEMU process was started with; None when there is none."""
    pid = host.qemu_pid(uuid)
    with suppress(FileNotFoundError, ProcessLookupError):  # it ends meanwhile
        found = re.search(r"\0-m\0(?:size=)?(\d+)", Path(f"/proc/{pid}/cmdline").read_text())
        return int(found[1]) if found else None
    return None


@pytest.mark.parametrize("end", ["killed", "halted"])
def test_what_was_moved_finds_kernel_disk_and_console_at_a_cold_start(rig: Rig, end: str) -> None:
    uuid = placed(rig, "web", disks=[SHARED], **linux(terminationGracePeriodSeconds=0))
    h1, h2 = rig.lab.hosts[:2]
    up(rig, h1, "web")
    move(rig, "go", "web", target=H2)
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)
    if end == "killed":
        h2.kill_qemu(uuid)
    else:
        rig.patch("vm", "web", {"spec": {"runStrategy": "Halted"}})
        rig.says("web", "Halted")
        assert rig.host_of(uuid) is None
        rig.patch("vm", "web", {"spec": {"runStrategy": "Always"}})
    up(rig, h2, "web")
    only_on(rig, "web", h2)
    assert "default_web_data_" in h2.virsh("dumpxml", uuid)
    assert rig.processes(uuid) == 3


# What the target lacks


def test_a_target_without_memory_is_told_in_libvirts_words(rig: Rig) -> None:
    uuid = placed(rig, "web", memory={"size": "1Gi"})
    h1, h2 = rig.lab.hosts[:2]
    pid = h1.qemu_pid(uuid)
    h2.limit_memory(2 << 30)  # QEMU itself takes more than one
    move(rig, "go", "web", target=H2)
    finished(rig, "go", "Refused", "RolledBack")
    assert "Cannot allocate memory" in rig.condition("vmmig", "go", "Succeeded")["message"]
    only_on(rig, "web", h1)
    assert h1.qemu_pid(uuid) == pid
    h2.limit_memory(0)
    move(rig, "again", "web", target=H2)
    finished(rig, "again", "Migrated")
    only_on(rig, "web", h2)


def test_a_target_without_the_disks_storage_is_not_tried(rig: Rig) -> None:
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    pid = h1.qemu_pid(uuid)
    pool = "/var/lib/libvirt/shared"
    h2.execute("umount", "--lazy", pool)
    try:
        move(rig, "go", "web", target=H2)
        finished(rig, "go", "NotMigratable")
    finally:
        h2.execute("mount", "--bind", str(h2.mounts[pool]), pool)
    assert "StorageNotProved" in rig.condition("vmmig", "go", "Succeeded")["message"]
    only_on(rig, "web", h1)
    assert (h1.qemu_pid(uuid), rig.processes(uuid)) == (pid, 1)


def test_a_qemu_that_hangs_in_mid_copy_is_waited_for_and_what_its_host_says_is_told(rig: Rig) -> None:
    """Row 28."""
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    pid = h1.qemu_pid(uuid)
    move(rig, "go", "web", target=H2, policy=SLOW)
    copying(rig, "go")
    h1.freeze_qemu(uuid)
    rig.until(lambda: rig.reason("vmmig", "go") == "OtherJob", "the job not to be told")
    status = rig.status("vmmig", "go")
    said = rig.condition("vmmig", "go", "Succeeded")["message"]
    assert status["decision"]["row"] == "28"
    assert f"so since {status['since']}" in said
    assert "h1 said: " in said
    rig.stays(lambda: h1.qemu_pid(uuid) == pid, "nothing is ended", OUTLASTS)
    h1.thaw_qemu(uuid)
    rig.until(lambda: rig.reason("vmmig", "go") == "Copying", "it to be copied again")
    switch(rig, uuid)
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)


# Networks


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_host_whose_cable_is_out_for_a_while_in_mid_copy(rig: Rig, side: str) -> None:
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    pid = h1.qemu_pid(uuid)
    move(rig, "go", "web", target=H2, policy=SLOW)
    copying(rig, "go")
    lost = h1 if side == "source" else h2
    lost.cut()
    rig.until(lambda: rig.reason("vmmig", "go") != "Copying", "the cut to be seen")
    rig.stays(lambda: h1.qemu_pid(uuid) == pid and running(rig, uuid, h1), "it runs on the source", 5)
    assert rig.condition("vmmig", "go", "Finished")["status"] == "False"
    rig.until(lambda: idle(h1, uuid), "the source's libvirt to give up")
    lost.join()
    finished(rig, "go", "RolledBack")
    only_on(rig, "web", h1)
    assert h1.qemu_pid(uuid) == pid


# Wishes in vain


def _silent(rig: Rig) -> None:
    rig.lab.hosts[1].kill_libvirtd()
    rig.until(lambda: rig.state("hv", "h2") != "Ready", "h2 to be missed")


def _cordoned(rig: Rig) -> None:
    rig.patch("hv", "h2", {"spec": {"maintenance": "Cordon"}})
    rig.until(lambda: rig.reason("hv", "h2") == "Cordoned", "h2 to be closed")


def _halted(rig: Rig) -> None:
    rig.patch("vm", "web", {"spec": {"runStrategy": "Halted"}})
    rig.says("web", "Halted")


WISHES: dict[str, tuple[str, str, Callable[[Rig], object], dict[str, Any]]] = {
    "an unknown VM": ("UnknownVM", "nobody", lambda rig: None, {"target": H2}),
    "a VM that does not run": ("VMNotRunning", "web", _halted, {"target": H2}),
    "to where it is": ("TargetIsSource", "web", lambda rig: None, {"target": {"host": "h1"}}),
    "to an unknown host": ("UnknownTarget", "web", lambda rig: None, {"target": {"host": "h9"}}),
    "to a silent host": ("TargetUnreachable", "web", _silent, {"target": H2}),
    "to a closed host": ("TargetClosed", "web", _cordoned, {"target": H2}),
    "to no host": ("NoHostMatches", "web", lambda rig: None, {"target": {"hostSelector": {"matchLabels": {"a": "b"}}}}),
    "a copy of a shared disk": (
        "SharedDiskCopy",
        "web",
        lambda rig: None,
        {"target": H2, "storageCopy": {"type": "Full", "disks": ["root"]}},
    ),
}


@pytest.mark.parametrize("wish", WISHES)
def test_what_cannot_be_ends_at_once_and_says_why(rig: Rig, wish: str) -> None:
    reason, vm, prepare, spec = WISHES[wish]
    uuid = placed(rig, "web", disks=[RESTLESS])
    h1 = rig.lab.hosts[0]
    prepare(rig)
    pid = h1.qemu_pid(uuid)
    move(rig, "go", vm, **spec)
    status = finished(rig, "go", reason)
    assert "intent" not in status
    assert rig.condition("vmmig", "go", "Succeeded")["message"]
    if pid:
        only_on(rig, "web", h1)
    assert (h1.qemu_pid(uuid), rig.processes(uuid)) == (pid, 1)
    assert [host.number for host in rig.lab.hosts if host.definition(uuid) is not None] == [1]
    rig.lab.assert_never_two(uuid)
