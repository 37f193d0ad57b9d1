# SPDX-License-Identifier: Apache-2.0
"""A Linux that boots in seconds without KVM: Debian's cloud kernel with busybox and qemu-ga in an initramfs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from tests.lab.processes import LabError, run

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "homeostat"
SOURCE = Path(__file__).parent
BUSYBOX = Path("/bin/busybox")
BASE_HEAD, BASE_MIB = b"HOMEOSTAT-BASE\n", 8

# In the order of their dependencies: the guest has no modprobe.
MODULES = """
virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk failover net_failover virtio_net
virtio_console virtio_balloon scsi_common scsi_mod virtio_scsi crc64 crc64-rocksoft t10-pi sd_mod button evdev
"""
COMMANDS = """
acpid cat chmod cttyhack cut date dd dmesg echo grep halt head hostname httpd init insmod ip kill ln ls md5sum mkdir
mke2fs mount nc poweroff reboot sed seq setsid sh sleep stat sync tail tr udhcpc umount
"""
FOLDERS = "bin dev etc/acpi/PWRF etc/qemu lib/modules mnt proc run sbin sys tmp var/log var/run"


def files() -> Path:
    """A folder with `vmlinuz`, `initrd` and `base.qcow2`, built at the first call and cached by the versions inside."""
    packages = _packages()
    recipe = b"".join((SOURCE / name).read_bytes() for name in ("guest.py", "guest-init", "guest-shutdown"))
    key = hashlib.sha256(" ".join(packages).encode() + recipe + BUSYBOX.read_bytes()).hexdigest()[:12]
    target = CACHE / "guest" / f"{packages[0].partition('=')[0]}-{key}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            _build(Path(work), packages).rename(target)
    return target


def _packages() -> list[str]:
    """The packages of kernel and agent, as NAME=VERSION."""
    known = run("apt-cache", "show", "--no-all-versions", "linux-image-cloud-amd64", "qemu-guest-agent", check=False)
    kernel = re.search(r"^Depends: (linux-image-\S+) \(= (\S+)\)", known, re.M)
    agent = re.search(r"^Package: qemu-guest-agent\n(?:.+\n)*?Version: (\S+)", known, re.M)
    if not kernel or not agent:
        raise LabError(
            "apt knows no linux-image-cloud-amd64 or no qemu-guest-agent for the guest: run `apt-get update`"
        )
    return [f"{kernel[1]}={kernel[2]}", f"qemu-guest-agent={agent[1]}"]


def _build(work: Path, wanted: list[str]) -> Path:
    packages, root, out = work / "packages", work / "root", work / "out"
    for folder in (packages, root, out):
        folder.mkdir()
    try:
        run("apt-get", "download", "-q", *wanted, cwd=packages)
    except LabError as error:
        raise LabError(f"the kernel or the agent of the lab's guest cannot be downloaded: {error}") from error
    for package in packages.glob("*.deb"):
        run("dpkg", "-x", package, packages)
    shutil.copy(next(packages.glob("boot/vmlinuz-*")), out / "vmlinuz")
    _fill(root, packages)
    run("sh", "-c", f"find . | cpio -o -H newc --quiet | gzip -1 > {out}/initrd", cwd=root)
    raw = work / "base.raw"
    raw.write_bytes(BASE_HEAD.ljust(BASE_MIB << 20, b"\0"))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, out / "base.qcow2")
    for file in out.iterdir():
        file.chmod(0o644)
    out.chmod(0o755)
    return out


def _fill(root: Path, packages: Path) -> None:
    for folder in FOLDERS.split():
        (root / folder).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin")
    for command in COMMANDS.split():
        (root / "bin" / command).symlink_to("busybox")
    for module in MODULES.split():
        _module(root, packages, module)
    _agent(root, packages / "usr/sbin/qemu-ga")
    init = (
        (SOURCE / "guest-init")
        .read_text()
        .replace("MODULES", " ".join(name for name in MODULES.split() if _has(root, name)))
    )
    _script(root / "init", init)
    _script(root / "sbin/shutdown", (SOURCE / "guest-shutdown").read_text())
    _script(root / "etc/acpi/PWRF/00000080", "#!/bin/sh\nexec /sbin/shutdown -P button\n")


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _has(root: Path, module: str) -> bool:
    return (root / f"lib/modules/{module}.ko").exists()


def _module(root: Path, packages: Path, name: str) -> None:
    """Copy a module, unless this kernel has it built in."""
    for file in packages.glob(f"lib/modules/**/{name}.ko*"):
        shutil.copy(file, root / "lib/modules")
        if file.suffix == ".xz":
            run("xz", "-d", root / "lib/modules" / file.name)


def _agent(root: Path, agent: Path) -> None:
    shutil.copy(agent, root / "bin")
    linked = run("ldd", agent)
    if missing := re.findall(r"(\S+) => not found", linked):
        raise LabError(f"the guest's agent needs libraries that are not installed: {', '.join(missing)}")
    for library in re.findall(r"(/\S+) \(0x", linked):
        (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, root / library[1:])
