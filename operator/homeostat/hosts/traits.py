# SPDX-License-Identifier: Apache-2.0
"""What a domain's XML has beside our configuration that a live migration minds."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator

from homeostat.api.observed import Traits


def traits(root: ET.Element) -> Traits:
    """Read them from a domain's XML, live or inactive."""
    disks = root.findall("devices/disk")
    return Traits(
        caches=tuple((_alias(disk), mode) for disk in disks if (mode := _cache(disk))),
        host_devices=tuple(_host_devices(root)),
        tpm=root.find("devices/tpm") is not None,
        nvram=root.findtext("os/nvram") or "",
        cdroms=tuple(path for disk in disks if disk.get("device") == "cdrom" and (path := _file(disk))),
        block_jobs=tuple(_alias(disk) for disk in disks if disk.find("mirror") is not None),
    )


def _alias(disk: ET.Element) -> str:
    for path, name in (("alias", "name"), ("target", "dev")):
        if (found := disk.find(path)) is not None:
            return found.get(name, "")
    return ""


def _cache(disk: ET.Element) -> str:
    driver = disk.find("driver")
    mode = driver.get("cache", "") if driver is not None else ""
    return "" if mode == "default" or disk.find("readonly") is not None else mode


def _file(disk: ET.Element) -> str:
    source = disk.find("source")
    return source.get("file", "") if source is not None else ""


def _host_devices(root: ET.Element) -> Iterator[str]:
    """Devices of the host given to the guest, and network cards that are such devices."""
    for device in root.findall("devices/hostdev"):
        yield _named(device, device.get("type", "hostdev"))
    for interface in root.findall("devices/interface[@type='hostdev']"):
        yield _named(interface, "interface")


def _named(device: ET.Element, otherwise: str) -> str:
    alias = device.find("alias")
    return alias.get("name", otherwise) if alias is not None else otherwise
