# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 - libvirt says what each method does
"""The driver at a libvirt of a few lines: what hangs in it does so until it is let go, or its connection is cut."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import patch

import libvirt

from homeostat.api.observed import Credentials, HostFacts
from homeostat.hosts import libvirt_driver, links, reads
from homeostat.hosts.libvirt_driver import LibvirtConnection, LibvirtDriver
from homeostat.hosts.links import DriverSettings
from homeostat.hosts.sessions import Opened

FACTS = HostFacts("host-1", "host", "9.0.0", "7.2.22", 4, 4096)


class FakeLibvirt:
    """A host. `hangs` names what does not answer; `asked` is what has arrived."""

    def __init__(self) -> None:
        self.hangs: set[str] = set()
        self.asked: list[tuple[str, str]] = []

    async def open(self, uri: str, credentials: Credentials | None, keepalive: tuple[int, int]) -> Opened:
        virt = FakeVirt(self)
        return Opened(virt, virt.over.set)


class FakeVirt:
    """A virConnect to it, with as much of libvirt as is called; also its domains and pools."""

    def __init__(self, host: FakeLibvirt, name: str = "", over: threading.Event | None = None) -> None:
        self.host, self.name, self.over = host, name, over or threading.Event()

    def __getattr__(self, call: str) -> Any:
        return lambda *arguments: self._call(call)

    def _call(self, call: str) -> Any:
        self.host.asked.append((call, self.name))
        if call in self.host.hangs:
            self.over.wait(30)
            raise libvirt.libvirtError("the connection was cut")
        return 1

    def isAlive(self) -> int:  # noqa: N802 - libvirt's name
        return int(not self.over.is_set())

    def lookupByUUIDString(self, uuid: str) -> FakeVirt:  # noqa: N802 - libvirt's name
        return FakeVirt(self.host, uuid, self.over)

    def storagePoolLookupByName(self, name: str) -> FakeVirt:  # noqa: N802 - libvirt's name
        return FakeVirt(self.host, name, self.over)


@contextlib.asynccontextmanager
async def connected(host: FakeLibvirt, settings: DriverSettings | None = None) -> AsyncIterator[LibvirtConnection]:
    """A connection of the driver to it."""

    def pools(virt: FakeVirt) -> tuple[()]:
        virt._call("pools")
        return ()

    with (
        patch.object(links, "open_in_thread", host.open),
        patch.object(libvirt_driver, "_start_events", lambda: None),
        patch.object(reads, "host", lambda virt: FACTS),
        patch.object(reads, "domains", lambda virt: []),
        patch.object(reads, "addresses", lambda domain: domain.interfaceAddresses()),
        patch.object(reads, "volumes", lambda pool, examined: pool.listAllVolumes()),
        patch.object(reads, "pools", pools),
    ):
        connection = await LibvirtDriver(settings).open("qemu+tcp://h/system", None)
        try:
            yield connection
        finally:
            await connection.close()
