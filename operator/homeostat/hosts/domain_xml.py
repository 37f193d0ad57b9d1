# SPDX-License-Identifier: Apache-2.0
"""Domain XML from our own words, and back.

`parse` of what libvirt returns for `render(...)` gives the same configuration again. What libvirt added to a definition
(PCI addresses, controllers, device names) and what the spec has no word for is carried over when it is redefined, so
that a guest finds its devices where they were.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from homeostat.api.observed import DiskConfig, DomainConfig, NicConfig, Owner, Traits
from homeostat.hosts.carried import Carried
from homeostat.hosts.names import AGENT_CHANNEL, METADATA_KEY, METADATA_NAMESPACE
from homeostat.hosts.traits import traits

SPARE_PORTS = 8
"""Free PCIe root ports: q35 has no other place to plug a device in while the guest runs."""
_CPU_MODES = ("host-passthrough", "host-model")
_OWNER = f"{{{METADATA_NAMESPACE}}}vm"
_TEXTS, _OPTIONAL, _FLAGS = ("cluster", "namespace", "name", "uid", "request"), ("off", "was"), ("paused", "probe")

ET.register_namespace(METADATA_KEY, METADATA_NAMESPACE)


@dataclass(frozen=True, slots=True)
class ParsedDomain:
    """A domain's XML in our words. `chains` and `traits` as in api.observed.Domain."""

    uuid: str
    name: str
    config: DomainConfig
    owner: Owner | None
    agent_connected: bool | None
    chains: tuple[tuple[str, tuple[str, ...]], ...]
    traits: Traits


def render(uuid: str, name: str, config: DomainConfig, owner: Owner, carried: str | None) -> str:
    """The definition of a domain. `carried` is the XML it has now, None when there is no domain yet."""
    before = Carried(carried, config.machine)
    root = ET.Element("domain", type="kvm" if config.acceleration == "KVM" else "qemu")
    _text(root, "name", name)
    _text(root, "uuid", uuid)
    ET.SubElement(root, "metadata").extend([_owner(owner), *before.metadata(_OWNER)])
    _text(root, "memory", str(config.memory_mib), unit="MiB")
    _text(root, "currentMemory", str(config.memory_mib), unit="MiB")
    _text(root, "vcpu", str(config.sockets * config.cores * config.threads), placement="static")
    _boot(root, config, before)
    ET.SubElement(root, "features").extend([ET.Element("acpi"), ET.Element("apic"), *before.features()])
    _cpu(root, config, before)
    clock = before.clock()
    root.append(clock if clock is not None else ET.Element("clock", offset="utc"))
    # A guest that powers off or crashes stays off: whether it is started again is not libvirt's to decide.
    for event, reaction in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(root, f"on_{event}", reaction)
    _devices(ET.SubElement(root, "devices"), config, before)
    root.extend(before.root())
    return ET.tostring(root, encoding="unicode")


def parse(text: str) -> ParsedDomain:
    """Read a domain's XML, live or inactive, ours or not: what has no word in DomainConfig is left out."""
    root = ET.fromstring(text)
    disks = [_parse_disk(disk) for disk in sorted(root.findall("devices/disk"), key=_boot_order)]
    agent = root.find(f"devices/channel/target[@name='{AGENT_CHANNEL}']")
    connected = agent.get("state") if agent is not None else None
    return ParsedDomain(
        uuid=root.findtext("uuid") or "",
        name=root.findtext("name") or "",
        config=_parse_config(root, tuple(disks), agent is not None),
        owner=_parse_owner(root.find(f"metadata/{_OWNER}")),
        agent_connected=None if connected is None else connected == "connected",
        chains=tuple((disk.alias, (disk.path, *(path for path, _format in disk.backing))) for disk in disks),
        traits=traits(root),
    )


def owner_element(owner: Owner) -> str:
    """Our metadata element as libvirt's setMetadata takes it: it puts the namespace on by itself."""
    element = _owner(owner)
    element.tag = "vm"
    return ET.tostring(element, encoding="unicode")


def _owner(owner: Owner) -> ET.Element:
    values = {name: getattr(owner, name) for name in (*_TEXTS, *_OPTIONAL)}
    values |= {"generation": str(owner.generation)} | {name: "true" for name in _FLAGS if getattr(owner, name)}
    return ET.Element(_OWNER, {name: value for name, value in values.items() if value is not None})


def _parse_owner(element: ET.Element | None) -> Owner | None:
    """None also for an element that is not whole: it proves nothing about whose the domain is."""
    if element is None or any(element.get(name) is None for name in _TEXTS):
        return None
    generation = element.get("generation", "")
    if not generation.isdecimal():
        return None
    return Owner(
        **{name: element.get(name, "") for name in _TEXTS},
        generation=int(generation),
        off=element.get("off"),
        was=element.get("was"),
        paused=element.get("paused") == "true",
        probe=element.get("probe") == "true",
    )


def _boot(root: ET.Element, config: DomainConfig, before: Carried) -> None:
    attributes, firmware = before.boot()
    os = ET.SubElement(root, "os", attributes)
    _text(os, "type", "hvm", arch="x86_64", machine=config.machine)
    for tag, value in (("kernel", config.kernel), ("initrd", config.initrd), ("cmdline", config.command_line)):
        if value:
            _text(os, tag, value)
    os.extend(firmware)


def _cpu(root: ET.Element, config: DomainConfig, before: Carried) -> None:
    if config.cpu_model in _CPU_MODES:
        cpu = ET.SubElement(root, "cpu", mode=config.cpu_model)
    else:
        # Emulation drops features of a model it does not have, and says so on every check.
        check = "partial" if config.acceleration == "KVM" else "none"
        cpu = ET.SubElement(root, "cpu", mode="custom", match="exact", check=check)
        _text(cpu, "model", config.cpu_model, fallback="forbid")
    sizes = {"sockets": config.sockets, "dies": 1, "cores": config.cores, "threads": config.threads}
    ET.SubElement(cpu, "topology", {name: str(size) for name, size in sizes.items()})
    cpu.extend(before.cpu(config.cpu_model))


def _devices(devices: ET.Element, config: DomainConfig, before: Carried) -> None:
    devices.extend(before.controllers())
    if not before.has_controller("pci"):
        ET.SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
    if not before.has_controller("usb"):
        ET.SubElement(devices, "controller", type="usb", model="none")
    for _missing in range(before.root_ports, _endpoints(config) + SPARE_PORTS):
        ET.SubElement(devices, "controller", type="pci", model="pcie-root-port")
    names = before.free_targets()
    for order, disk in enumerate(config.disks, start=1):
        devices.append(_disk(disk, order, before, names))
    devices.extend(_nic(nic, before) for nic in config.nics)
    devices.extend(_console(config))
    if config.agent:
        devices.append(_agent(before))
    for tag, model in (("memballoon", "virtio"), ("rng", "virtio"), ("panic", "isa")):
        devices.append(_single(tag, model, before))
    devices.extend(before.devices())


def _endpoints(config: DomainConfig) -> int:
    """PCIe devices of the domain: disks, interfaces, memballoon, rng, and virtio-serial for the agent."""
    return sum(disk.bus == "virtio" for disk in config.disks) + len(config.nics) + 2 + config.agent


def _disk(disk: DiskConfig, order: int, before: Carried, names: dict[str, Iterator[str]]) -> ET.Element:
    element = ET.Element("disk", type="file", device="disk")
    # cache=none: a host that loses its power loses nothing it said was written, and libvirt calls nothing else safe to
    # migrate. It needs O_DIRECT, which any file system made for disks has (not tmpfs: the start fails and says so).
    driver = ET.SubElement(element, "driver", name="qemu", type=disk.format, cache="none", discard="unmap")
    driver.set("error_policy", "stop")
    source = ET.SubElement(element, "source", file=disk.path)
    if disk.owned:
        # Owner and mode were set when the volume was made. libvirt would give them back to root when a stopped copy of
        # a domain is cleaned away, under the feet of the one that runs.
        ET.SubElement(source, "seclabel", model="dac", relabel="no")
    _backing(element, disk.backing)
    target = before.target(disk) or next(names["vd" if disk.bus == "virtio" else "sd"])
    ET.SubElement(element, "target", dev=target, bus=disk.bus)
    if disk.serial:
        _text(element, "serial", disk.serial)
    ET.SubElement(element, "boot", order=str(order))
    ET.SubElement(element, "alias", name=disk.alias)
    element.extend(before.disk(disk))
    return element


def _backing(parent: ET.Element, backing: Iterable[tuple[str, str]]) -> None:
    """The chain as it is known. Its end is always given: QEMU would look into a raw disk for a header to believe."""
    for path, format_ in backing:
        parent = ET.SubElement(parent, "backingStore", type="file")
        ET.SubElement(parent, "format", type=format_)
        ET.SubElement(parent, "source", file=path)
    ET.SubElement(parent, "backingStore")


def _nic(nic: NicConfig, before: Carried) -> ET.Element:
    kind, attribute = ("network", "network") if nic.kind == "Network" else ("bridge", "bridge")
    element = ET.Element("interface", type=kind)
    ET.SubElement(element, "mac", address=nic.mac)
    ET.SubElement(element, "source", {attribute: nic.source})
    if nic.vlan is not None:
        ET.SubElement(ET.SubElement(element, "vlan"), "tag", id=str(nic.vlan))
    if nic.kind == "OpenVSwitch":
        ET.SubElement(element, "virtualport", type="openvswitch").extend(before.virtualport(nic))
    ET.SubElement(element, "model", type=nic.model)
    ET.SubElement(element, "alias", name=nic.alias)
    element.extend(before.nic_address(nic))
    return element


def _console(config: DomainConfig) -> Iterator[ET.Element]:
    serial = ET.Element("serial", type="pty")
    if config.console_log:
        ET.SubElement(serial, "log", file=config.console_log, append="on")
    ET.SubElement(ET.SubElement(serial, "target", type="isa-serial", port="0"), "model", name="isa-serial")
    yield serial
    console = ET.Element("console", type="pty")
    ET.SubElement(console, "target", type="serial", port="0")
    yield console


def _agent(before: Carried) -> ET.Element:
    channel = ET.Element("channel", type="unix")
    ET.SubElement(channel, "target", type="virtio", name=AGENT_CHANNEL)
    channel.extend(before.agent_address())
    return channel


def _single(tag: str, model: str, before: Carried) -> ET.Element:
    element = ET.Element(tag, model=model)
    if tag == "rng":
        _text(element, "backend", "/dev/urandom", model="random")
    element.extend(before.single_address(tag, model))
    return element


def _parse_config(root: ET.Element, disks: tuple[DiskConfig, ...], agent: bool) -> DomainConfig:
    os_type, cpu, topology = root.find("os/type"), root.find("cpu"), root.find("cpu/topology")
    log = root.find("devices/serial/log")
    vcpus = int(root.findtext("vcpu") or 1)
    sizes = {name: int(topology.get(name, "1")) for name in ("cores", "threads")} if topology is not None else {}
    return DomainConfig(
        memory_mib=_memory_mib(root),
        sockets=int(topology.get("sockets", "1")) if topology is not None else vcpus,
        cores=sizes.get("cores", 1),
        threads=sizes.get("threads", 1),
        cpu_model=_parse_cpu(cpu),
        machine=os_type.get("machine", "") if os_type is not None else "",
        acceleration="KVM" if root.get("type") == "kvm" else "Emulation",
        kernel=root.findtext("os/kernel") or "",
        initrd=root.findtext("os/initrd") or "",
        command_line=root.findtext("os/cmdline") or "",
        disks=disks,
        nics=tuple(_parse_nic(nic) for nic in root.findall("devices/interface")),
        console_log=log.get("file", "") if log is not None else "",
        agent=agent,
    )


def _memory_mib(root: ET.Element) -> int:
    units = {"b": 1, "bytes": 1, "KiB": 2**10, "k": 2**10, "MiB": 2**20, "M": 2**20, "GiB": 2**30, "G": 2**30}
    memory = root.find("memory")
    if memory is None:
        return 0
    return int(memory.text or 0) * units.get(memory.get("unit", "KiB"), 2**10) // 2**20


def _parse_cpu(cpu: ET.Element | None) -> str:
    if cpu is None:
        return ""
    mode = cpu.get("mode", "custom")
    return (cpu.findtext("model") or "") if mode == "custom" else mode


def _boot_order(disk: ET.Element) -> int:
    """Sort key: libvirt sorts disks by device name; our order is the boot order. Disks without one come last."""
    boot = disk.find("boot")
    return int(boot.get("order", "0")) if boot is not None else 1 << 16


def _parse_disk(disk: ET.Element) -> DiskConfig:
    source, driver, target = disk.find("source"), disk.find("driver"), disk.find("target")
    seclabel = disk.find("source/seclabel[@model='dac']")
    return DiskConfig(
        alias=_name(disk.find("alias")),
        path=_location(source),
        format=driver.get("type", "raw") if driver is not None else "raw",
        bus=target.get("bus", "") if target is not None else "",
        serial=disk.findtext("serial") or "",
        owned=seclabel is not None and seclabel.get("relabel") == "no",
        backing=tuple(_parse_backing(disk.find("backingStore"))),
    )


def _parse_backing(store: ET.Element | None) -> Iterator[tuple[str, str]]:
    while store is not None and (source := store.find("source")) is not None:
        format_ = store.find("format")
        yield _location(source), format_.get("type", "") if format_ is not None else ""
        store = store.find("backingStore")


def _location(source: ET.Element | None) -> str:
    """Path of a file or device; for anything else, what names it."""
    if source is None:
        return ""
    volume = f"{source.get('pool')}/{source.get('volume')}" if source.get("volume") else ""
    return source.get("file") or source.get("dev") or source.get("dir") or source.get("name") or volume


def _parse_nic(nic: ET.Element) -> NicConfig:
    source, mac, model, tag = nic.find("source"), nic.find("mac"), nic.find("model"), nic.find("vlan/tag")
    port = nic.find("virtualport")
    of_switch = port is not None and port.get("type") == "openvswitch"
    kind = {"network": "Network", "bridge": "OpenVSwitch" if of_switch else "Bridge"}.get(nic.get("type", ""), "")
    attribute = "network" if kind == "Network" else "bridge"
    return NicConfig(
        alias=_name(nic.find("alias")),
        kind=kind or nic.get("type", ""),
        source=(source.get(attribute) or source.get("dev") or "") if source is not None else "",
        mac=mac.get("address", "") if mac is not None else "",
        model=model.get("type", "") if model is not None else "",
        vlan=int(tag.get("id", "0")) if tag is not None else None,
    )


def _name(alias: ET.Element | None) -> str:
    return alias.get("name", "") if alias is not None else ""


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
