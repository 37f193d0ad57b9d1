# SPDX-License-Identifier: Apache-2.0
"""What a redefinition keeps of the definition before it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import count
from string import ascii_lowercase

from homeostat.api.observed import DiskConfig, NicConfig
from homeostat.hosts.names import AGENT_CHANNEL

# Devices that a DomainConfig has words for, and those that libvirt adds again by itself.
_SPOKEN = frozenset({"controller", "disk", "interface", "serial", "console", "memballoon", "rng", "panic", "emulator"})


class Carried:
    """The XML of a domain as it is, None when there is none yet. Another machine family keeps nothing of its buses."""

    def __init__(self, text: str | None, machine: str) -> None:
        self._root = ET.fromstring(text) if text else ET.Element("domain")
        os_type = self._root.find("os/type")
        present = os_type.get("machine", "") if os_type is not None else machine
        self._same_buses = ("q35" in present) == ("q35" in machine)
        self._disks = {_alias(disk): disk for disk in self._devices("disk") if _alias(disk)}
        self._nics = {_alias(nic): nic for nic in self._devices("interface") if _alias(nic)}

    @property
    def root_ports(self) -> int:
        """How many PCIe root ports are kept."""
        return len(self._devices("controller[@model='pcie-root-port']"))

    def metadata(self, ours: str) -> list[ET.Element]:
        """Metadata of others."""
        return [element for element in self._root.findall("metadata/*") if element.tag != ours]

    def controllers(self) -> list[ET.Element]:
        """All controllers, where they are."""
        return self._devices("controller")

    def has_controller(self, kind: str) -> bool:
        """Whether a controller of this type is kept."""
        return bool(self._devices(f"controller[@type='{kind}']"))

    def target(self, disk: DiskConfig) -> str | None:
        """The device name this disk has."""
        target = self._same_bus_disk(disk, "target")
        return target[0].get("dev") if target else None

    def free_targets(self) -> dict[str, Iterator[str]]:
        """For each prefix, the device names that no disk has, in order."""
        taken = {target.get("dev") for target in self._devices("disk/target")}
        return {prefix: (name for name in _names(prefix) if name not in taken) for prefix in ("vd", "sd")}

    def disk_address(self, disk: DiskConfig) -> list[ET.Element]:
        """The address of this disk, as long as its bus stays the same."""
        return self._same_bus_disk(disk, "address")

    def nic_address(self, nic: NicConfig) -> list[ET.Element]:
        """The address of this interface, as long as its model stays the same."""
        found = self._nics.get(nic.alias)
        if found is None or found.find(f"model[@type='{nic.model}']") is None:
            return []
        return found.findall("address")

    def virtualport(self, nic: NicConfig) -> list[ET.Element]:
        """The id under which Open vSwitch knows this interface."""
        found = self._nics.get(nic.alias)
        return found.findall("virtualport[@type='openvswitch']/parameters") if found is not None else []

    def agent_address(self) -> list[ET.Element]:
        """The address of the guest agent's channel."""
        return [
            address
            for channel in self._devices("channel")
            if channel.find(f"target[@name='{AGENT_CHANNEL}']") is not None
            for address in channel.findall("address")
        ]

    def single_address(self, tag: str, model: str) -> list[ET.Element]:
        """The address of a device of which there is one."""
        return self._devices(f"{tag}[@model='{model}']/address")[:1]

    def unspoken(self) -> list[ET.Element]:
        """Devices that our configuration has no word for: a display, a TPM, ..."""
        others = [element for element in self._devices("*") if element.tag not in _SPOKEN]
        return [element for element in others if element.find(f"target[@name='{AGENT_CHANNEL}']") is None]

    def _same_bus_disk(self, disk: DiskConfig, child: str) -> list[ET.Element]:
        found = self._disks.get(disk.alias)
        if found is None or found.find(f"target[@bus='{disk.bus}']") is None:
            return []
        return found.findall(child)

    def _devices(self, path: str) -> list[ET.Element]:
        return self._root.findall(f"devices/{path}") if self._same_buses else []


def _alias(device: ET.Element) -> str:
    alias = device.find("alias")
    return alias.get("name", "") if alias is not None else ""


def _names(prefix: str) -> Iterator[str]:
    """vda, vdb, ... vdz, vdaa, ..."""
    for number in count():
        yield prefix + (ascii_lowercase[number // 26 - 1] if number >= 26 else "") + ascii_lowercase[number % 26]
