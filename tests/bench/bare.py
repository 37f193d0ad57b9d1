# SPDX-License-Identifier: Apache-2.0
"""The same VMs without an operator: volume, definition, start, in a bare loop on libvirt-python."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any
from uuid import uuid4

import libvirt

from homeostat.api.meta import parse_quantity
from homeostat.api.observed import DomainConfig, Owner
from homeostat.hosts.domain_xml import parse, render
from homeostat.hosts.libvirt_driver import DriverSettings
from homeostat.hosts.volume_xml import render_volume
from homeostat.reconcile.settings import Settings
from tests.bench.bed import DISK, POOL
from tests.lab.host import Host

CONNECTIONS = 2
"""To each host, as many as the operator has for what changes domains."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A definition that the operator made, for others to be made like it."""

    config: DomainConfig
    owner: Owner
    disk_owner: tuple[int, int]

    @classmethod
    def of(cls, host: Host, uuid: str) -> Pattern:
        """The pattern of a VM's domain."""
        virt = libvirt.open(host.uri_tcp)
        try:
            parsed = parse(virt.lookupByUUIDString(uuid).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        finally:
            virt.close()
        assert parsed.owner is not None
        status = (host.pool_path(POOL) / parsed.config.disks[0].path.rpartition("/")[2]).stat()
        return cls(parsed.config, parsed.owner, (status.st_uid, status.st_gid))

    def volume(self, name: str) -> str:
        """The XML of a blank volume."""
        return render_volume(name, "qcow2", parse_quantity(DISK), owner=self.disk_owner)

    def domain(self, name: str, uuid: str, volume: str) -> str:
        """The XML of a domain on that volume, as the operator renders a first definition."""
        (disk,) = self.config.disks
        mine = replace(disk, path=f"{disk.path.rpartition('/')[0]}/{volume}")
        config = replace(self.config, disks=(mine,), console_log=f"/var/log/libvirt/qemu/{name}-console.log")
        return render(uuid, name, config, self.owner, None)


@dataclass(frozen=True, slots=True)
class Made:
    """What the loop made of one VM."""

    host: Host
    uuid: str
    volume: str


class Loop:
    """Connections to the hosts, and as many threads as the operator has workers, which take the hosts in turn."""

    def __init__(self, hosts: list[Host], patterns: dict[str, Pattern]) -> None:
        self._patterns = patterns
        self._threads = min(Settings().vm_workers, DriverSettings().effect_threads * len(hosts))
        libvirt.registerErrorHandler(lambda context, error: None, None)
        self._links = [(host, libvirt.open(host.uri_tcp)) for _ in range(CONNECTIONS) for host in hosts]
        self._made: list[tuple[Made, Any]] = []

    def run(self, count: int, prefix: str) -> tuple[float, list[str]]:
        """Make `count` VMs; returns how many seconds it took until all were started, and their UUIDs."""
        work = [(f"{prefix}{number}", *link) for number, link in zip(range(count), cycle(self._links), strict=False)]
        began = time.monotonic()
        with ThreadPoolExecutor(self._threads) as pool:
            made = list(pool.map(lambda item: self._make(*item), work))
        seconds = time.monotonic() - began
        self._made += made
        return seconds, [one.uuid for one, _ in made]

    def _make(self, name: str, host: Host, virt: Any) -> tuple[Made, Any]:
        uuid, pattern = str(uuid4()), self._patterns[host.name]
        made = Made(host, uuid, f"default_{name}_data_{uuid}.qcow2")
        virt.storagePoolLookupByName(POOL).createXML(pattern.volume(made.volume), 0)
        xml = pattern.domain(f"default_{name}", uuid, made.volume)
        virt.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE).create()
        return made, virt

    def close(self) -> None:
        """Remove all that was made."""
        for made, virt in self._made:
            domain = virt.lookupByUUIDString(made.uuid)
            domain.destroy()
            domain.undefine()
            virt.storagePoolLookupByName(POOL).storageVolLookupByName(made.volume).delete(0)
        for _host, virt in self._links:
            virt.close()
