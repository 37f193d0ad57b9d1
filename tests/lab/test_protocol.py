# SPDX-License-Identifier: Apache-2.0
"""The protocol of a start on real hosts: one permission to run, nothing from what is not known, and each way out."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab.host import Host
from tests.lab.processes import run
from tests.lab.rig import Rig, hypervisor

DISK = {"name": "data", "pool": "shared", "size": "8Mi"}
WITHOUT_STATUS = '[{"op": "remove", "path": "/status"}]'


class Definitions:
    """What becomes of a domain's definition files while it is entered, on all hosts in one order: the kernel's."""

    CREATED, MOVED_TO, DELETED = 0x100, 0x80, 0x200

    def __init__(self, hosts: list[Host], name: str) -> None:
        self._hosts, self._name = hosts, f"{name}.xml".encode()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._number = -1
        self.seen: list[tuple[str, str]] = []

    def __enter__(self) -> Definitions:
        self._number = self._libc.inotify_init1(os.O_NONBLOCK)
        kinds = self.CREATED | self.MOVED_TO | self.DELETED
        self._watches = {
            self._libc.inotify_add_watch(self._number, bytes(host.directory / "etc/qemu"), kinds): f"h{host.number}"
            for host in self._hosts
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        data = os.read(self._number, 1 << 20)
        os.close(self._number)
        while data:
            watch, mask, _cookie, length = struct.unpack_from("iIII", data)
            name, data = data[16 : 16 + length].rstrip(b"\0"), data[16 + length :]
            step = (self._watches[watch], "gone" if mask & self.DELETED else "there")
            if name == self._name and self.seen[-1:] != [step]:
                self.seen.append(step)


def place(rig: Rig, host: Host) -> str:
    """Name of the Hypervisor of a host."""
    return f"h{host.number}"


def declare_off(rig: Rig, host: Host) -> None:
    """Say that a host is off, as of now."""
    time.sleep(1)  # times are whole seconds, and it may have been heard in this one
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    rig.apply(hypervisor(place(rig, host), host.uri_tcp, outOfService={"since": since, "evidence": "PoweredOff"}))


def in_service(rig: Rig, host: Host) -> None:
    rig.apply(hypervisor(place(rig, host), host.uri_tcp))
    rig.until(lambda: rig.state("hv", place(rig, host)) == "Ready", f"{place(rig, host)} to be Ready")


def lose_status(rig: Rig, *names: str) -> None:
    for name in names:
        rig.kubectl("patch", "vm", name, "--subresource=status", "--type=json", "-p", WITHOUT_STATUS)


def nowhere(rig: Rig, *uuids: str) -> bool:
    return not any(rig.host_of(uuid) for uuid in uuids)


def volume(host: Host, start: str) -> Path:
    (found,) = [host.pool_path("shared") / name for name in host.volumes("shared") if name.startswith(start)]
    return found


# Another host


def test_a_stopped_vm_moves_its_definition_is_gone_before_another_is_there_and_its_disk_is_what_it_was(
    rig: Rig,
) -> None:
    uuid = rig.vm("moving", placement={"host": "h1"}, disks=[DISK])
    assert rig.running("moving") == rig.lab.hosts[0]
    rig.patch("vm", "moving", {"spec": {"runStrategy": "Halted"}})
    rig.says("moving", "Halted")
    disk = volume(rig.lab.hosts[0], "default_moving_data_")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 0 1M", disk)
    with Definitions(rig.lab.hosts, "default_moving") as definitions:
        rig.patch("vm", "moving", {"spec": {"runStrategy": "Always", "placement": {"host": "h2"}}})
        rig.until(lambda: rig.host_of(uuid) == rig.lab.hosts[1], "the VM to run on h2")
    assert definitions.seen == [("h1", "gone"), ("h2", "there")]
    assert rig.running("moving") == rig.lab.hosts[1]
    rig.patch("vm", "moving", {"spec": {"runStrategy": "Halted"}})
    rig.says("moving", "Halted")
    assert "verification failed" not in run("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x5a 0 1M", disk)
    assert [domain.uuid for domain in rig.lab.hosts[0].domains()] == []
    rig.lab.assert_never_two(uuid)


def test_a_vm_of_a_host_that_is_declared_off_runs_elsewhere_and_what_the_host_kept_of_it_is_removed(rig: Rig) -> None:
    uuid = rig.vm("evicted", disks=[DISK])
    old = rig.running("evicted")
    old.power_off()
    rig.says("evicted", "HostUnreachable")
    rig.stays(lambda: nowhere(rig, uuid), "nothing to be started", 2)
    declare_off(rig, old)
    new = rig.running("evicted")
    assert new != old
    pid = new.qemu_pid(uuid)
    old.power_on()
    rig.until(lambda: rig.reason("hv", place(rig, old)) == "OutOfServiceButAnswering", "the host to be heard")
    rig.until(lambda: old.definition(uuid) is None, "the old definition to be removed")
    in_service(rig, old)
    rig.says("evicted", "Running")
    assert new.qemu_pid(uuid) == pid
    assert (rig.get("vm", "evicted") or {})["status"]["host"] == place(rig, new)
    rig.lab.assert_never_two(uuid)


def test_a_host_that_is_declared_off_and_answers_voids_the_declaration_and_nothing_is_started(rig: Rig) -> None:
    uuid = rig.vm("denied", placement={"host": "h2"})
    host = rig.running("denied")
    declare_off(rig, host)
    rig.until(lambda: rig.reason("hv", "h2") == "OutOfServiceButAnswering", "the declaration to be void")
    assert rig.state("vm", "denied") == "Running"
    host.kill_qemu(uuid)
    assert "void" in rig.says("denied", "HostAnswersAgain")
    second = rig.vm("refused", placement={"host": "h2"})
    rig.says("refused", "NoHost")
    rig.stays(lambda: nowhere(rig, uuid, second), "nothing to be started", 2)
    in_service(rig, host)
    assert rig.running("denied") == rig.running("refused") == host
    rig.lab.assert_never_two(uuid)


# Who answers


def test_another_machine_at_the_uri_is_not_believed(rig: Rig) -> None:
    uuid = rig.vm("mistaken", placement={"host": "h1"})
    home, other = rig.lab.hosts[:2]
    rig.running("mistaken")
    rig.apply(hypervisor("h1", other.uri_tcp))
    rig.until(lambda: rig.reason("hv", "h1") == "IdentityMismatch", "the other machine to be noticed")
    message = rig.says("mistaken", "HostUnreachable")
    assert home.host_uuid in message
    assert rig.condition("vm", "mistaken", "Ready")["status"] == "Unknown"
    assert rig.state("hv", "h2") == "Ready"
    home.kill_qemu(uuid)
    second = rig.vm("waiting", placement={"host": "h1"})
    rig.says("waiting", "NoHost")
    rig.stays(lambda: nowhere(rig, uuid, second), "nothing to be started", 2)
    rig.apply(hypervisor("h1", home.uri_tcp))
    assert rig.running("mistaken") == rig.running("waiting") == home
    rig.lab.assert_never_two(uuid)


def test_two_hypervisors_of_one_host_start_nothing_new_until_one_is_deleted(rig: Rig) -> None:
    uuid = rig.vm("twin", placement={"host": "h1"})
    host = rig.running("twin")
    pid = host.qemu_pid(uuid)
    rig.apply(hypervisor("h9", host.uri_tcp))
    try:
        for name in ("h1", "h9"):
            rig.until(lambda name=name: rig.reason("hv", name) == "DuplicateHost", f"{name} to be a duplicate")  # type: ignore[misc]
        second = rig.vm("late", placement={"host": "h9"})
        rig.says("late", "NoHost")
        rig.stays(lambda: host.qemu_pid(uuid) == pid and nowhere(rig, second), "nothing to change", 2)
        host.kill_qemu(uuid)
        rig.says("twin", "DuplicateHost")
        rig.stays(lambda: nowhere(rig, uuid, second), "nothing to be started", 2)
    finally:
        rig.delete("hv", "h9")
    rig.gone("hv", "h9")
    assert rig.running("twin") == host
    rig.lab.assert_never_two(uuid)


# What is forgotten


def test_with_its_status_lost_a_vm_may_be_anywhere_so_every_host_has_to_answer(rig: Rig) -> None:
    uuids = {
        "awake": rig.vm("awake", placement={"host": "h1"}, disks=[DISK]),
        "asleep": rig.vm("asleep", placement={"host": "h2"}),
    }
    cut, other = (rig.running(name) for name in uuids)
    pid = cut.qemu_pid(uuids["awake"])
    rig.operator.kill()
    cut.cut()
    other.kill_qemu(uuids["asleep"])
    lose_status(rig, *uuids)
    rig.patch("vm", "awake", {"spec": {"placement": None}})
    rig.operator.start()
    for name in uuids:
        assert "Hypervisor h1" in rig.says(name, "HostUnreachable")
    rig.stays(lambda: other.qemu_pid(uuids["asleep"]) is None, "nothing to be started", 2)
    cut.join()
    assert [rig.running(name) for name in uuids] == [cut, other]
    assert cut.qemu_pid(uuids["awake"]) == pid
    for name in uuids:
        candidates = (rig.get("vm", name) or {})["status"]["candidates"]
        assert [candidate["hypervisor"] for candidate in candidates] == ["h1" if name == "awake" else "h2"]
    for uuid in uuids.values():
        rig.lab.assert_never_two(uuid)


def test_a_process_that_libvirtd_forgot_is_never_joined_by_a_second_one(rig: Rig) -> None:
    specs: dict[str, dict[str, Any]] = {"locked": {"disks": [DISK]}, "going": {"disks": [DISK]}, "diskless": {}}
    uuids = {name: rig.vm(name, placement={"host": "h1"}, **spec) for name, spec in specs.items()}
    for name in uuids:
        host = rig.running(name)
    first = {name: pid for name, uuid in uuids.items() if (pid := host.qemu_pid(uuid))}
    assert len(first) == len(uuids)
    host.restart_virtlogd()  # it would refuse a second writer of the logs before any lock is tried
    try:
        for name, uuid in uuids.items():
            rig.patch("vm", name, {"spec": {"placement": None}})
            host.lose_record(uuid)
        rig.delete("vm", "going")
        for name in ("locked", "going"):  # looked for with the definition it ran from, whatever the spec says by now
            rig.until(partial(names_the_lock, rig, name), f"the lock of {name} to be named")
        assert "no lock" in rig.says("diskless", "RecordLost")
        assert rig.condition("vm", "diskless", "Ready")["status"] == "Unknown"
        rig.stays(lambda: all(alone(rig, uuids[name], first[name]) for name in uuids), "no other process to run", 3)
        assert rig.processes(uuids["diskless"]) == 1
    finally:
        for pid in first.values():
            os.kill(pid, signal.SIGKILL)
    rig.gone("vm", "going", seconds=150)  # the next try may be over a minute away
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    rig.patch("vm", "diskless", {"spec": {"confirmedOff": {"host": "h1", "since": now}}})
    assert rig.running("locked", seconds=150) == rig.running("diskless") == host
    assert not any(domain.uuid == uuids["going"] for domain in host.domains())
    for uuid in uuids.values():
        assert {life.host for life in rig.lab.intervals(uuid)} == {host.name}
        rig.lab.assert_never_two(uuid)


def names_the_lock(rig: Rig, name: str) -> bool:
    """Whether it is said that a process may be left, in the words by which libvirt refused another one."""
    return 'Failed to get "write" lock' in rig.says(name, "RecordLost")


def alone(rig: Rig, uuid: str, pid: int) -> bool:
    """Whether this process is the only one of a domain whose CPUs ever ran, and they still do."""
    (life,) = [life for life in rig.lab.intervals(uuid) if life.running]
    return life.pid == pid and life.running[-1][1] is None


# Saved memory


def test_a_saved_memory_image_stops_every_start_until_its_owner_says_what_becomes_of_it(rig: Rig) -> None:
    wishes = {"restored": "Restore", "discarded": "Discard", "moved": "Discard", "kept": "Restore"}
    uuids = {name: rig.vm(name, placement={"host": "h1"}, disks=[DISK]) for name in wishes}
    for name in wishes:
        host = rig.running(name)
    for name in ("moved", "kept"):
        rig.patch("vm", name, {"spec": {"placement": {"host": "h2"}}})
    for uuid in uuids.values():
        host.virsh("managedsave", uuid)
    for name in wishes:
        assert "Hypervisor h1" in rig.says(name, "ManagedSaveFound")
    rig.stays(lambda: nowhere(rig, *uuids.values()), "nothing to be started", 2)
    for name, action in wishes.items():
        rig.patch("vm", name, {"spec": {"managedSave": {"host": "h1", "action": action}}})
    where = {name: rig.running(name) for name in wishes}
    assert {name: f"h{host.number}" for name, host in where.items()} == {
        "restored": "h1",
        "discarded": "h1",
        "moved": "h2",
        "kept": "h1",
    }
    for name, action in wishes.items():
        how = where[name].virsh("domstate", "--reason", uuids[name]).strip()
        assert how == f"running ({'restored' if action == 'Restore' else 'booted'})", name
        rig.lab.assert_never_two(uuids[name])


def test_a_memory_image_that_was_saved_on_another_host_is_found_there(rig: Rig) -> None:
    wishes = {"back": "Restore", "afresh": "Discard"}
    uuids = {name: rig.vm(name, placement={"host": "h1"}, disks=[DISK]) for name in wishes}
    for name in wishes:
        home = rig.running(name)
    other = rig.lab.hosts[1]
    rig.operator.kill()
    for uuid in uuids.values():
        home.kill_qemu(uuid)
        file = home.directory / "moved-by-hand.xml"
        file.write_text(home.virsh("dumpxml", "--inactive", uuid))
        other.virsh("define", str(file))
        other.virsh("start", uuid)
        other.virsh("managedsave", uuid)
    other.freeze_libvirtd()
    with rig.operated("--set=connect_timeout_seconds=60") as operator:
        rig.until(lambda: "connected to h1" in operator.log, "the host with the old definitions to be connected")
        rig.stays(lambda: nowhere(rig, *uuids.values()), "nothing to be started before the other host has answered", 3)
        other.thaw_libvirtd()
        for name in wishes:
            assert "Hypervisor h2" in rig.says(name, "ManagedSaveFound")
        rig.stays(lambda: nowhere(rig, *uuids.values()), "nothing to be started", 2)
        for name, action in wishes.items():
            rig.patch("vm", name, {"spec": {"managedSave": {"host": "h2", "action": action}}})
        assert rig.running("back") == other
        assert rig.running("afresh") == home
        assert other.virsh("domstate", "--reason", uuids["back"]).strip() == "running (restored)"
        for name, uuid in uuids.items():
            rig.until(lambda uuid=uuid: defined(rig, uuid) == 1, "one definition to be left")  # type: ignore[misc]
            rig.says(name, "Running")
            rig.lab.assert_never_two(uuid)


def defined(rig: Rig, uuid: str) -> int:
    """How many hosts have a definition."""
    return sum(host.definition(uuid) is not None for host in rig.lab.hosts)
