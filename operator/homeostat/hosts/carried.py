# SPDX-License-Identifier: Apache-2.0
"""What a redefinition keeps of the definition before it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import count
from string import ascii_lowercase

from homeostat.api.observed import DiskConfig, NicConfig
from homeostat.hosts.names import AGENT_CHANNEL

# What a DomainConfig has words for, and what libvirt adds again by itself. All else is somebody's and is kept.
_SPOKEN = frozenset({
    "name", "uuid", "metadata", "memory", "currentMemory", "vcpu", "os", "features", "cpu", "clock", "on_poweroff",
    "on_reboot", "on_crash", "devices", "seclabel", "resource",
})  # fmt: skip
_SPOKEN_OS = frozenset({"type", "kernel", "initrd", "cmdline", "boot"})
_SPOKEN_DEVICES = frozenset(
    {"controller", "disk", "interface", "serial", "console", "memballoon", "rng", "panic", "emulator"}
)
_KEPT_OF_DISK = ("iotune", "readonly", "shareable", "wwn", "vendor", "product", "address")


class Carried:
    """The XML of a domain as it is, None when there is none yet. Another machine family keeps nothing of its buses."""

    def __init__(self, text: str | None, machine: str) -> None:
        self._root = ET.fromstring(text) if text else ET.Element("domain")
        os_type = self._root.find("os/type")
        present = os_type.get("machine", "") if os_type is not None else machine
        self._same_buses = ("q35" in present) == ("q35" in machine)

    def root(self) -> list[ET.Element]:
        """Elements of the domain that nothing of ours stands for: tuning, backing of memory, ..."""
        return [element for element in self._root if element.tag not in _SPOKEN]

    def boot(self) -> tuple[dict[str, str], list[ET.Element]]:
        """Attributes and elements of <os> that nothing of ours stands for: the firmware."""
        os = self._root.find("os")
        return (dict(os.attrib), [one for one in os if one.tag not in _SPOKEN_OS]) if os is not None else ({}, [])

    def features(self) -> list[ET.Element]:
        """Features other than acpi and apic."""
        return [element for element in self._root.findall("features/*") if element.tag not in ("acpi", "apic")]

    def cpu(self, model: str) -> list[ET.Element]:
        """What is set of the CPU besides model and topology, as long as the model stays the same."""
        cpu = self._root.find("cpu")
        if cpu is None or model not in (cpu.findtext("model"), cpu.get("mode")):
            return []
        return [element for element in cpu if element.tag not in ("model", "topology")]

    def clock(self) -> ET.Element | None:
        """The clock: a guest must not find another one after a restart."""
        return self._root.find("clock")

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
        found = self._disk(disk)
        target = found.find("target") if found is not None else None
        return target.get("dev") if target is not None else None

    def free_targets(self) -> dict[str, Iterator[str]]:
        """For each prefix, the device names that no disk has, in order."""
        taken = {target.get("dev") for target in self._devices("disk/target")}
        return {prefix: (name for name in _names(prefix) if name not in taken) for prefix in ("vd", "sd")}

    def disk(self, disk: DiskConfig) -> list[ET.Element]:
        """The address of this disk and what is set of it besides, as long as its bus stays the same."""
        found = self._disk(disk)
        return [element for element in found if element.tag in _KEPT_OF_DISK] if found is not None else []

    def nic_address(self, nic: NicConfig) -> list[ET.Element]:
        """The address of this interface, as long as its model stays the same."""
        found = self._nic(nic)
        if found is None or found.find(f"model[@type='{nic.model}']") is None:
            return []
        return found.findall("address")

    def virtualport(self, nic: NicConfig) -> list[ET.Element]:
        """The id under which Open vSwitch knows this interface."""
        found = self._nic(nic)
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

    def devices(self) -> list[ET.Element]:
        """Devices that nothing of ours stands for: a display, a TPM, ..."""
        others = [element for element in self._devices("*") if element.tag not in _SPOKEN_DEVICES]
        return [element for element in others if element.find(f"target[@name='{AGENT_CHANNEL}']") is None]

    def _disk(self, disk: DiskConfig) -> ET.Element | None:
        """By alias; by path in a definition that was not ours before."""
        disks = self._devices(f"disk/target[@bus='{disk.bus}']/..")
        by_alias = [one for one in disks if one.find(f"alias[@name='{disk.alias}']") is not None]
        by_path = [one for one in disks if one.find("alias") is None and _file(one) == disk.path]
        return next(iter(by_alias + by_path), None)

    def _nic(self, nic: NicConfig) -> ET.Element | None:
        """By alias; by MAC address in a definition that was not ours before."""
        nics = self._devices("interface")
        by_alias = [one for one in nics if one.find(f"alias[@name='{nic.alias}']") is not None]
        by_mac = [
            one for one in nics if one.find("alias") is None and one.find(f"mac[@address='{nic.mac}']") is not None
        ]
        return next(iter(by_alias + by_mac), None)

    def _devices(self, path: str) -> list[ET.Element]:
        return self._root.findall(f"devices/{path}") if self._same_buses else []


def _file(disk: ET.Element) -> str | None:
    source = disk.find("source")
    return source.get("file") if source is not None else None


def _names(prefix: str) -> Iterator[str]:
    """vda, vdb, ... vdz, vdaa, ..."""
    for number in count():
        yield prefix + (ascii_lowercase[number // 26 - 1] if number >= 26 else "") + ascii_lowercase[number % 26]
