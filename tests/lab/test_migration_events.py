# SPDX-License-Identifier: Apache-2.0
"""What comes with a migration or in between: checkpoints, other storage than declared, guests that go off or crash."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.lab.host import Host
from tests.lab.processes import LabError
from tests.lab.rig import Rig, linux
from tests.lab.test_disks import GREETER, SECTOR, bootable, boots
from tests.lab.test_migration import (
    OUTLASTS,
    SLOW,
    copying,
    finished,
    in_row,
    move,
    only_on,
    placed,
    running,
    switch,
    unanswered,
)
from tests.lab.test_migration_user import statistics
from tests.lab.test_migration_ways import CRAWLING, FAST, SHARED, up

H2 = {"host": "h2"}


# Checkpoints


def checkpoints(host: Host, uuid: str) -> dict[str, str]:
    """The XML of each checkpoint that a host's libvirt knows of, by name."""
    names = host.virsh("checkpoint-list", uuid, "--name", "--topological").split()
    return {name: host.virsh("checkpoint-dumpxml", uuid, name, "--no-domain") for name in names}


@pytest.mark.parametrize("way", ["by itself", "its answer lost"])
def test_checkpoints_come_along_and_can_be_built_on(rig: Rig, tmp_path: Path, way: str) -> None:
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    for name in ("first", "second"):
        h1.virsh("checkpoint-create-as", uuid, name)
    before = checkpoints(h1, uuid)
    assert list(before) == ["first", "second"]
    move(rig, "go", "web", target=H2, policy=SLOW)
    copying(rig, "go")
    if way == "its answer lost":
        h2.mute(h1)
    switch(rig, uuid)
    finished(rig, "go", "Migrated")
    h2.unfilter()
    only_on(rig, "web", h2)
    assert checkpoints(h2, uuid) == before
    backup = tmp_path / "backup.xml"
    server = "<server transport='unix' socket='/run/backup.socket'/>"
    backup.write_text(f"<domainbackup mode='pull'><incremental>first</incremental>{server}</domainbackup>")
    h2.virsh("backup-begin", uuid, str(backup))  # libvirt looks for the bitmaps of both
    h2.virsh("domjobabort", uuid)
    rig.delete("vm", "web")
    rig.gone("vm", "web")


# Storage


def test_storage_that_is_not_the_same_as_is_declared_is_found_out(rig: Rig) -> None:
    """A folder of each host's own, at the same path, and declared to be one."""
    for name in ("h1", "h2"):
        pools = (rig.get("hv", name) or {})["spec"]["pools"]
        same = [each | ({"storageID": "not-so"} if each["name"] == "local" else {}) for each in pools]
        rig.patch("hv", name, {"spec": {"pools": same}})
    uuid = placed(rig, "web", disks=[{"name": "data", "pool": "local", "size": "8Mi"}])
    h1, h2 = rig.lab.hosts[:2]
    pid = h1.qemu_pid(uuid)
    rig.until(
        lambda: rig.condition("vm", "web", "Migratable").get("status") == "True", "what is declared to be believed"
    )
    move(rig, "go", "web", target=H2)
    status = finished(rig, "go", "NotMigratable")
    assert "StorageNotProved" in rig.condition("vmmig", "go", "Succeeded")["message"]
    assert "intent" not in status
    only_on(rig, "web", h1)
    assert (h1.qemu_pid(uuid), rig.processes(uuid)) == (pid, 1)
    assert not [name for name in h2.volumes("default") if uuid in name]


def test_what_the_guest_wrote_before_it_was_moved_is_on_its_disk(rig: Rig) -> None:
    h1, h2 = rig.lab.hosts[:2]
    path = bootable(h1.pool_path("images") / "bootable.img", GREETER)
    image = {"pool": "images", "volume": path.name, "format": "raw"}
    disk = {"name": "root", "pool": "shared", "size": "8Mi", "source": {"type": "Image", "image": image}}
    try:
        uuid = placed(rig, "greeter", disks=[disk])
        rig.until(lambda: boots(h1, uuid) == 1, "the guest to boot")
        rig.until(lambda: wrote(content(h1)), "the guest to write")  # it does so after it has greeted
        before = content(h1)
        move(rig, "go", "greeter", target=H2)
        finished(rig, "go", "Migrated")
        only_on(rig, "greeter", h2)
        assert content(h2) == before
        h2.kill_qemu(uuid)
        rig.until(lambda: boots(h2, uuid) == 1, "the guest to boot from its disk again")
        only_on(rig, "greeter", h2)
    finally:
        path.unlink()


def wrote(disk: bytes) -> bool:
    """Whether the guest has copied its boot sector to the second one."""
    return disk[SECTOR : 2 * SECTOR] == disk[:SECTOR]


def content(host: Host) -> bytes:
    """The first sectors of the one disk in the shared pool, as the guest reads them."""
    (name,) = [name for name in host.volumes("shared") if "_" in name]
    path, copy = f"/var/lib/libvirt/shared/{name}", "/run/disk.raw"
    host.execute("qemu-img", "dd", "-U", "-O", "raw", f"bs={SECTOR}", "count=4", f"if={path}", f"of={copy}")
    return host.outside(copy).read_bytes()


# Options of QEMU


def asked(host: Host, uuid: str, command: str) -> Any:
    """What QEMU answers to a command without arguments."""
    return json.loads(host.virsh("qemu-monitor-command", uuid, json.dumps({"execute": command})))["return"]


def capable(host: Host, uuid: str) -> set[str]:
    """The capabilities that a migration under way has been given."""
    return {each["capability"] for each in asked(host, uuid, "query-migrate-capabilities") if each["state"]}


def streams(host: Host) -> int:
    """How many connections of migrations there are to this host."""
    found = host.execute("ss", "-Htn", "state", "established").splitlines()
    return sum(49152 <= int(line.split()[2].rpartition(":")[2]) <= 49215 for line in found)


def test_auto_convergence_slows_the_guest_down_more_and_more(rig: Rig) -> None:
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    move(rig, "go", "web", target=H2, policy=FAST | {"autoConverge": "Enabled"})
    copying(rig, "go")
    assert "auto-converge" in capable(h1, uuid)

    def throttle() -> int:
        return int(asked(h1, uuid, "query-migrate").get("cpu-throttle-percentage", 0))

    rig.until(throttle, "it to be slowed down")
    first = throttle()
    rig.until(lambda: throttle() > first, "it to be slowed down more")
    switch(rig, uuid)
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)


def test_parallel_connections_are_those_that_qemu_uses(rig: Rig) -> None:
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    move(rig, "go", "web", target=H2, policy=SLOW | {"parallelConnections": 3})
    copying(rig, "go")
    assert "multifd" in capable(h1, uuid)
    assert asked(h1, uuid, "query-migrate-parameters")["multifd-channels"] == 3
    rig.until(lambda: streams(h2) == 4, "three connections beside the first")
    switch(rig, uuid)
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)


def compressed(source: Host, target: Host, uuid: str) -> int:
    """How many pages were sent compressed, by the source's QEMU, or by what the target was told of it at the end."""
    with suppress(LabError):
        return int(asked(source, uuid, "query-migrate")["xbzrle-cache"]["pages"])
    with suppress(libvirt.libvirtError):
        return statistics(target, uuid).get("compression_pages", 0)
    return 0


def test_what_is_compressed_by_xbzrle_arrives(rig: Rig) -> None:
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    move(rig, "go", "web", target=H2, policy=SLOW | {"compression": "XBZRLE"})
    copying(rig, "go")
    assert "xbzrle" in capable(h1, uuid)
    rig.until(lambda: compressed(h1, h2, uuid), "pages that are compressed")
    with suppress(libvirt.libvirtError):  # it may have arrived, so well is it compressed
        switch(rig, uuid)
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)


def test_what_the_hosts_libvirt_cannot_compress_with_is_told_or_done(rig: Rig) -> None:
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    move(rig, "go", "web", target=H2, policy=SLOW | {"parallelConnections": 2, "compression": "Zstd"})
    if libvirt_version(h1) < (9, 4):
        finished(rig, "go", "Refused")
        assert "Unsupported compression method" in rig.condition("vmmig", "go", "Succeeded")["message"]
        only_on(rig, "web", h1)
        return
    copying(rig, "go")
    assert asked(h1, uuid, "query-migrate-parameters")["multifd-compression"] == "zstd"
    switch(rig, uuid)
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)


def libvirt_version(host: Host) -> tuple[int, ...]:
    """Of a host's daemon."""
    found = re.search(r"daemon: (\d+)\.(\d+)", host.virsh("version", "--daemon"))
    assert found is not None
    return int(found[1]), int(found[2])


# Guests that go off, reset or crash


def press(host: Host, uuid: str) -> None:
    """Press the guest's power button, on which it powers itself off."""
    host.virsh("qemu-monitor-command", uuid, '{"execute": "system_powerdown"}')


def reset(host: Host, uuid: str) -> None:
    """Reset the guest."""
    host.virsh("qemu-monitor-command", uuid, '{"execute": "system_reset"}')


def crash(host: Host, uuid: str) -> None:
    """End its QEMU."""
    host.kill_qemu(uuid)


def booted(rig: Rig, name: str, **spec: Any) -> str:
    """A Linux that has come up on h1, whose disk both hosts have; returns its UUID.

    The console of a VM has what earlier ones of its name wrote to it.
    """
    uuid = placed(rig, name, disks=[SHARED], **linux(**spec))
    up(rig, rig.lab.hosts[0], name)
    return uuid


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("deed", [press, reset, crash])
def test_a_guest_that_ends_or_resets_at_a_random_moment_of_the_switchover_is_one_vm(
    rig: Rig, deed: Callable[[Host, str], None], seed: int
) -> None:
    vm = f"{deed.__name__}-{seed}"
    uuid = booted(rig, vm)
    h1, h2 = rig.lab.hosts[:2]
    move(rig, "go", vm, target=H2, policy=CRAWLING)
    copying(rig, "go")
    switch(rig, uuid, wait=False)
    time.sleep(random.Random(seed).uniform(0, 0.5))
    try:
        deed(h1, uuid)
    except LabError:  # it has left
        deed(h2, uuid)
    status = finished(rig, "go", "Migrated", "MigratedThenOff", "VMDown", "RolledBack", seconds=90)
    if deed is press:
        started_again(rig, vm)
    host = rig.running(vm)
    only_on(rig, vm, host)
    if deed is reset:  # one that met a copy whose state had been sent met nobody
        assert (status["reason"], host, rig.processes(uuid)) == ("Migrated", h2, 2)
        assert running(rig, uuid, h2)
    elif rig.processes(uuid) == 3:
        up(rig, host, vm)
    else:
        assert (deed, status["reason"], host) == (crash, "Migrated", h2)


def started_again(rig: Rig, vm: str) -> None:
    """Wait until the guest went off once; a button that was pressed on a copy whose state had been sent, nobody saw."""
    uuid = rig.uuid(vm)
    try:
        rig.until(lambda: rig.processes(uuid) == 3, "it to be started again", 40)
    except AssertionError:
        press(rig.running(vm), uuid)
        rig.until(lambda: rig.processes(uuid) == 3, "it to be started again")


def test_a_guest_that_powers_itself_off_when_it_has_arrived_stays_off_if_its_strategy_says_so(rig: Rig) -> None:
    uuid = booted(rig, "arrived", runStrategy="RerunOnFailure")
    h2 = rig.lab.hosts[1]
    move(rig, "go", "arrived", target=H2)
    rig.until(lambda: h2.qemu_pid(uuid) and running(rig, uuid, h2), "its CPUs to run on h2")
    press(h2, uuid)
    finished(rig, "go", "Migrated", "MigratedThenOff")
    rig.says("arrived", "Finished")
    assert rig.host_of(uuid) is None
    assert rig.processes(uuid) == 2
    assert [host.number for host in rig.lab.hosts if host.definition(uuid)] == [2]
    rig.lab.assert_never_two(uuid)


def test_a_target_that_ran_and_crashed_before_its_answer_came_through_keeps_the_vm(rig: Rig) -> None:
    """Row 7b: the source is whole and paused, and must not go on."""
    uuid = unanswered(rig)
    h2 = rig.lab.hosts[1]
    in_row(rig, "6")
    h2.kill_qemu(uuid)
    assert rig.lab.hosts[0].qemu_pid(uuid), "the source is ended later"
    assert finished(rig, "go", "MigratedThenOff")["marks"]["endedSource"]
    h2.unfilter()
    rig.until(lambda: h2.qemu_pid(uuid), "it to be started where it had gone")
    only_on(rig, "web", h2)
    assert rig.processes(uuid) == 3


def through(host: Host, uuid: str) -> bool:
    """Whether libvirt has had QEMU's word that the CPUs of what came run; of what still comes it tells no job.

    Until then it takes the end of QEMU for a refusal to run.
    """
    with suppress(LabError):
        return "None" in host.virsh("domjobinfo", uuid)
    return False


def test_a_target_that_ran_and_crashed_before_libvirt_gave_up_is_told_of(rig: Rig) -> None:
    """No lock is left, so that libvirt lets the source go on by itself, from where it stood still."""
    uuid = unanswered(rig)
    h1, h2 = rig.lab.hosts[:2]
    pid = h1.qemu_pid(uuid)
    rig.until(lambda: running(rig, uuid, h2) and through(h2, uuid), "its CPUs to run on h2, and its libvirt to know")
    h2.kill_qemu(uuid)
    finished(rig, "go", "RolledBack")
    h2.unfilter()
    assert "older than its disks" in rig.condition("vmmig", "go", "Succeeded")["message"]
    only_on(rig, "web", h1)
    assert h1.qemu_pid(uuid) == pid


# What the table says of hosts that fall silent after the switchover


def test_a_source_that_waits_for_a_silent_target_is_left_alone_and_ended_when_it_is_seen(rig: Rig) -> None:
    """Row 10, then 6."""
    uuid = unanswered(rig)
    h1, h2 = rig.lab.hosts[:2]
    rig.until(lambda: running(rig, uuid, h2), "its CPUs to run on h2")
    pids = h1.qemu_pid(uuid), h2.qemu_pid(uuid)
    h2.cut()
    rig.until(lambda: rig.reason("vmmig", "go") == "TargetMayRun", "row 10")
    rig.until(lambda: rig.condition("vmmig", "go", "Ambiguous")["status"] == "True", "a person to be asked")
    rig.stays(lambda: (h1.qemu_pid(uuid), h2.qemu_pid(uuid)) == pids, "neither process to be ended", OUTLASTS)
    assert not running(rig, uuid, h1)
    h2.unfilter()
    h2.join()
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)
    assert h2.qemu_pid(uuid) == pids[1]


def test_a_source_that_falls_silent_at_the_switchover_is_waited_for(rig: Rig) -> None:
    """Row 13, then what the source shows."""
    uuid = unanswered(rig)
    h1, h2 = rig.lab.hosts[:2]
    rig.until(lambda: running(rig, uuid, h2), "its CPUs to run on h2")
    h1.cut()
    in_row(rig, "13")
    pid = h2.qemu_pid(uuid)
    rig.stays(lambda: running(rig, uuid, h2) and h1.definition(uuid), "both are left as they are", 4)
    h2.unfilter()
    h1.join()
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)
    assert h2.qemu_pid(uuid) == pid


def test_what_arrived_and_was_paused_and_resumed_since_has_arrived(rig: Rig) -> None:
    """Row 7c: nobody looked meanwhile, and libvirt no longer says that it came by migration."""
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    move(rig, "go", "web", target=H2, policy=SLOW)
    copying(rig, "go")
    rig.operator.kill()
    switch(rig, uuid)
    rig.until(lambda: running(rig, uuid, h2) and h1.definition(uuid) is None, "it to arrive")
    h2.virsh("suspend", uuid)
    h2.virsh("resume", uuid)
    rig.operator.start()
    status = finished(rig, "go", "Migrated")
    assert status["decision"]["row"] == "7c"
    only_on(rig, "web", h2)


# Maintenance


def test_an_evacuation_that_is_called_off_takes_back_what_has_not_begun(rig: Rig) -> None:
    h1 = rig.lab.hosts[0]
    uuids = [placed(rig, name) for name in ("one", "two")]
    pids = {uuid: h1.qemu_pid(uuid) for uuid in uuids}
    rig.patch("hv", "h1", {"spec": {"migration": {"maxOutbound": 1, "policy": SLOW}, "maintenance": "Evacuate"}})

    def reasons() -> dict[str, str]:
        found = json.loads(rig.kubectl("get", "vmmig", "-o", "json"))["items"]
        return {each["metadata"]["name"]: each.get("status", {}).get("reason", "") for each in found}

    rig.until(lambda: sorted(reasons().values()) == ["Copying", "Queued"], "one to be copied and one to wait")
    (waits,) = [name for name, reason in reasons().items() if reason == "Queued"]
    (moves,) = reasons().keys() - {waits}
    rig.patch("hv", "h1", {"spec": {"maintenance": "Off"}})
    rig.gone("vmmig", waits)
    rig.stays(lambda: reasons().keys() == {moves}, "nothing else begins", 4)
    assert rig.condition("vmmig", moves, "Finished")["status"] == "False"
    vm = (rig.get("vmmig", moves) or {})["spec"]["vmRef"]["name"]
    switch(rig, rig.uuid(vm))
    finished(rig, moves, "Migrated")
    only_on(rig, vm, rig.running(vm))
    assert rig.running(vm) != h1
    other = "two" if vm == "one" else "one"
    only_on(rig, other, h1)
    assert h1.qemu_pid(rig.uuid(other)) == pids[rig.uuid(other)]
