# SPDX-License-Identifier: Apache-2.0
"""Disks from images and volumes, booted by the BIOS, and the file that a guest's console goes to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.files import below
from tests.lab.host import LIBRARY, Host
from tests.lab.rig import Object, Rig

SECTOR = 512
HEAD = bytes.fromhex("fa31c08ed88ec08ed0bc007cfb")  # cli; no segments; a stack below the code; sti
SAYS = b"BIOS-UP\r\n"
# Writes SAYS to the serial port, then this very sector to the disk's second one, and halts.
GREETER = HEAD + bytes.fromhex("be2c7cbaf803ac84c07403eeebf8b80103b90200ba8000bb007ccd13f4ebfd") + SAYS + b"\0"
# Writes the low 64 KiB of memory to the serial port, for ever.
TALKER = HEAD + bytes.fromhex("baf80331f6b9fffff36eebf7")
LOG = "default_talking-console.log"
LOG_BYTES, LOG_FILES = 2 << 20, 4  # virtlogd's own limits: one file that is written and three before it


def bootable(path: Path, code: bytes) -> Path:
    """Make a raw disk of 1 MiB whose boot sector is this code."""
    draft = path.with_name(f".{path.name}")  # a VM that waits for it is started as soon as it is there
    draft.write_bytes((code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    draft.chmod(0o644)
    return draft.rename(path)


@pytest.fixture
def image(rig: Rig) -> Iterator[Path]:
    """A bootable image in the pool of images."""
    path = bootable(rig.lab.hosts[0].pool_path("images") / "bootable.img", GREETER)
    yield path
    path.unlink()


@pytest.fixture
def volume(rig: Rig) -> Iterator[Path]:
    """A file that somebody put into the shared pool."""
    path = rig.lab.hosts[0].pool_path("shared") / "brought.img"
    yield path
    path.unlink(missing_ok=True)


def from_image(image: Path) -> Object:
    source = {"type": "Image", "image": {"pool": "images", "volume": image.name, "format": "raw"}}
    return {"name": "root", "pool": "shared", "size": "8Mi", "source": source, "deletionPolicy": "Delete"}


def from_volume(volume: Path) -> Object:
    source = {"type": "Volume", "volume": {"name": volume.name, "format": "raw"}}
    return {"name": "root", "pool": "shared", "source": source}


def trace(path: Path) -> tuple[bytes, int, int, int, int]:
    """All that would show that a file was touched."""
    stat = path.stat()
    return path.read_bytes(), stat.st_mtime_ns, stat.st_mode, stat.st_uid, stat.st_gid


def boots(host: Host, uuid: str) -> int:
    """How many times the guest has said that it was booted."""
    return host.console(uuid).count(SAYS.decode().strip())


def copied(path: Path) -> bool:
    """Whether the guest has written its boot sector to the second one of a disk: it does so after it has greeted."""
    start = path.read_bytes()[: 2 * SECTOR]
    return start[SECTOR:] == start[:SECTOR]


@pytest.mark.parametrize("where", ["h1", "h3"])
def test_a_disk_made_from_an_image_boots_keeps_what_is_written_and_leaves_the_image_as_it_is(
    rig: Rig, image: Path, where: str
) -> None:
    before = trace(image)
    uuid = rig.vm("imaged", disks=[from_image(image)], placement={"host": where})
    host = rig.running("imaged")
    rig.until(lambda: boots(host, uuid) == 1, "the guest to boot from its disk")
    (name,) = [each for each in host.volumes("shared") if each.startswith("default_imaged_root_")]
    chain = [f"{LIBRARY}/shared/{name}", f"{LIBRARY}/base/{image.name}"]
    rig.until(lambda: rig.status("vm", "imaged").get("disks"), "its disks to be reported")
    (disk,) = rig.status("vm", "imaged")["disks"]
    assert (disk["alias"], disk["volume"], disk["chain"]) == ("ua-disk-root", name, chain)
    assert [
        each for each in host.execute("qemu-img", "info", "-U", chain[0]).splitlines() if "backing file" in each
    ] == [
        f"backing file: {chain[1]}",
        "backing file format: raw",
    ]
    host.kill_qemu(uuid)
    rig.until(lambda: boots(host, uuid) == 2, "the guest to boot again")
    rig.until(lambda: "wr_req 0" not in host.virsh("domblkstat", uuid, "vda"), "the guest to write")
    rig.patch("vm", "imaged", {"spec": {"runStrategy": "Halted"}})
    rig.says("imaged", "Halted")
    shown = host.execute("qemu-io", "-r", "-f", "qcow2", "-c", f"read -v {SECTOR} {SECTOR}", chain[0])
    assert GREETER[:16].hex(" ") in shown
    assert trace(image) == before
    rig.delete("vm", "imaged")
    rig.gone("vm", "imaged")
    assert name not in host.volumes("shared")
    assert trace(image) == before


@pytest.mark.parametrize("where", ["h1", "h3"])
def test_a_disk_that_is_a_volume_somebody_brought_is_used_and_outlives_the_vm(
    rig: Rig, volume: Path, where: str
) -> None:
    uuid = rig.vm("brought", disks=[from_volume(volume)], placement={"host": where})
    assert f"no volume '{volume.name}'" in rig.says("brought", "VolumeMissing")
    bootable(volume, GREETER)
    host = rig.running("brought", seconds=90)
    rig.until(lambda: boots(host, uuid) == 1, "the guest to boot from its disk")
    rig.until(lambda: copied(volume), "the guest to write")
    written = volume.read_bytes()
    assert rig.status("vm", "brought")["disks"][0]["chain"] == [f"{LIBRARY}/shared/{volume.name}"]
    rig.delete("vm", "brought")
    rig.gone("vm", "brought")
    assert volume.read_bytes() == written


def test_a_guest_that_writes_without_end_to_its_console_fills_no_disk(rig: Rig, volume: Path) -> None:
    bootable(volume, TALKER)
    rig.vm("talking", disks=[from_volume(volume)])
    host = rig.running("talking")
    folder = host.outside("/var/log/libvirt/qemu")
    seen: set[tuple[int, int]] = set()  # a file is known by its inode and when it was last written to

    def full(times: int) -> bool:
        found = {path.name: stat for path, stat in below(folder).items() if path.name.startswith(LOG)}
        assert len(found) <= LOG_FILES
        assert all(stat.st_size <= LOG_BYTES for stat in found.values())
        seen.update((stat.st_ino, stat.st_mtime_ns) for name, stat in found.items() if name != LOG)
        return len(seen) > times

    rig.until(lambda: full(LOG_FILES + 1), "more to be written than is kept", 480)
