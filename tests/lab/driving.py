# SPDX-License-Identifier: Apache-2.0
"""What the drills of the driver share: connections, a domain, and waiting."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from homeostat.api import actions as act
from homeostat.api.observed import Credentials, DiskConfig, DomainConfig, HostFacts, NicConfig, Owner
from homeostat.hosts.driver import Connection, Event, HostError
from homeostat.hosts.libvirt_driver import DriverSettings, LibvirtDriver
from homeostat.hosts.perform import perform
from tests.lab import Host

IMAGES, BASE = "/var/lib/libvirt/images", "/var/lib/libvirt/base"
QUICK = DriverSettings(keepalive_interval=1, keepalive_count=2)


@dataclass
class Driven:
    """A connection to a host of the lab, with what it said of its own accord."""

    connection: Connection
    facts: HostFacts
    events: list[Event] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    async def do(self, action: act.HostAction) -> None:
        """Perform one action."""
        await perform(action, self.connection, self.facts)


def run(drill: Coroutine[Any, Any, None]) -> None:
    """Run a drill, which is through within two minutes."""
    asyncio.run(asyncio.wait_for(drill, 120))


async def failure(attempt: Coroutine[Any, Any, Any]) -> HostError:
    """What an attempt raised. AssertionError when it succeeded."""
    try:
        await attempt
    except HostError as error:
        return error
    raise AssertionError("it did not fail")


@asynccontextmanager
async def driving(
    uri: str, settings: DriverSettings | None = None, credentials: Credentials | None = None
) -> AsyncIterator[Driven]:
    """A connection that is closed at the end."""
    connection = await LibvirtDriver(settings).open(uri, credentials)
    try:
        driven = Driven(connection, await connection.facts())
        connection.subscribe(driven.events.append, driven.closed.append)
        yield driven
    finally:
        await connection.close()


@dataclass(frozen=True)
class Guest:
    """A VM of a drill: where it is defined, its volumes and its configuration."""

    uuid: str
    config: DomainConfig
    owner: Owner

    @property
    def name(self) -> str:
        """Name of its domain."""
        return f"drill_{self.uuid[:8]}"

    def define(self, config: DomainConfig | None = None) -> act.Define:
        """The action that defines it."""
        return act.Define("", self.uuid, self.name, config or self.config, self.owner)

    def volume(self, alias: str) -> str:
        """Name of the volume of a disk."""
        return f"{self.uuid}-{alias}"

    def disk(self, alias: str, format_: str, backing: tuple[tuple[str, str], ...] = ()) -> DiskConfig:
        """A disk of it, in the pool `default`."""
        return DiskConfig(f"ua-disk-{alias}", f"{IMAGES}/{self.volume(alias)}", format_, "virtio", alias, True, backing)


def guest(*, boots: bool = False) -> Guest:
    """A VM with an overlay and a blank disk; one that `boots` runs the lab's Linux."""
    uuid = str(uuid4())
    config = DomainConfig(
        memory_mib=128 if boots else 64,
        kernel=f"{BASE}/vmlinuz" if boots else "",
        initrd=f"{BASE}/initrd" if boots else "",
        command_line="console=ttyS0 quiet" if boots else "",
        sockets=1,
        cores=1,
        threads=1,
        cpu_model="Westmere",
        machine="pc-q35-7.2",
        acceleration="Emulation",
        nics=(NicConfig("ua-nic-lan", "Bridge", "br0", "52:54:00:" + ":".join(uuid[n : n + 2] for n in (0, 2, 4))),),
        console_log=f"/var/log/libvirt/qemu/{uuid}.log",
        agent=True,
    )
    one = Guest(uuid, config, Owner("lab", "drill", uuid[:8], uuid))
    disks = (one.disk("root", "qcow2", ((f"{BASE}/base.qcow2", "qcow2"),)), one.disk("data", "raw"))
    return replace(one, config=replace(one.config, disks=disks))


async def make(driven: Driven, one: Guest) -> None:
    """Create a VM's volumes and define it."""
    backing = (f"{BASE}/base.qcow2", "qcow2")
    await driven.do(act.CreateVolume("", "default", one.volume("root"), "qcow2", None, backing))
    await driven.do(act.CreateVolume("", "default", one.volume("data"), "raw", 1 << 20))
    await driven.do(one.define())


@asynccontextmanager
async def defined(driven: Driven, one: Guest) -> AsyncIterator[Guest]:
    """A VM with its volumes, defined; all of it is gone at the end."""
    await make(driven, one)
    try:
        yield one
    finally:
        await remove(driven, one)


@asynccontextmanager
async def hung(host: Host, deadline: float = QUICK.deadline) -> AsyncIterator[tuple[Driven, str]]:
    """A running VM whose QEMU is stopped: a call to its monitor does not come back, and is given up after so long."""
    one = guest()
    async with driving(host.uri_tcp) as steady, defined(steady, one):
        async with driving(host.uri_tcp, replace(QUICK, deadline=deadline)) as driven:
            await driven.do(act.Start("", one.uuid))
            host.freeze_qemu(one.uuid)
            try:
                yield driven, one.uuid
            finally:
                with contextlib.suppress(Exception):
                    host.thaw_qemu(one.uuid)
        await asyncio.sleep(0.5)


async def remove(driven: Driven, one: Guest) -> None:
    """Destroy and undefine a VM, and delete its volumes."""
    row = await driven.connection.domain(one.uuid)
    if row is not None and row.state != "Shutoff":
        await driven.do(act.Destroy("", one.uuid))
    if row is not None:
        await driven.do(act.Undefine("", one.uuid))
    for volume in await driven.connection.volumes("default"):
        if volume.name.startswith(one.uuid):
            await driven.do(act.DeleteVolume("", "default", volume.name))


async def eventually(condition: Callable[[], object], what: str, seconds: float = 60) -> float:
    """Wait for something to be seen; how many seconds it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + seconds, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)
    return time.monotonic() - begun


def libvirt_threads() -> list[str]:
    """Names of the driver's threads in this process."""
    return sorted(one.name for one in threading.enumerate() if one.name.startswith("libvirt-"))


async def settled() -> tuple[int, list[str]]:
    """Descriptors and threads of this process, once both have stopped changing."""
    before: tuple[int, list[str]] = (0, [])
    while (found := (len(os.listdir("/proc/self/fd")), libvirt_threads())) != before:
        before = found
        await asyncio.sleep(1.5)
    return found


def credentials(folder: Path, authority: Path | None = None) -> Credentials:
    """The certificates of a folder as the Secret of a Hypervisor has them."""
    return Credentials(
        {
            "ca.crt": ((authority or folder) / "cacert.pem").read_bytes(),
            "tls.crt": (folder / "clientcert.pem").read_bytes(),
            "tls.key": (folder / "clientkey.pem").read_bytes(),
        },
    )
