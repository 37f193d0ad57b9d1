# SPDX-License-Identifier: Apache-2.0
"""What libvirt makes of a domain's XML: the definition it keeps, and the one it shows of a running domain.

Only what tells a careless reader from a careful one: canonical machine type, units, addresses, aliases of its own,
defaults that nobody asked for, the chain of backing files. The shape was taken from libvirt 9.0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from xml.etree import ElementTree

Element = ElementTree.Element

MACHINES = {"q35": "pc-q35-7.2", "pc": "pc-i440fx-7.2", "": "pc-i440fx-7.2"}
ORDER = (
    *("name", "uuid", "title", "description", "metadata", "maxMemory", "memory", "currentMemory", "vcpu", "resource"),
    *("os", "features", "cpu", "clock", "on_poweroff", "on_reboot", "on_crash", "pm", "devices", "seclabel"),
)
UNITS = {"b": 1, "bytes": 1, "KB": 1000, "k": 1024, "KiB": 1024, "MB": 10**6, "M": 2**20, "MiB": 2**20}
UNITS |= {"GB": 10**9, "G": 2**30, "GiB": 2**30}


XML_ERROR, XML_DETAIL, CONFIG_UNSUPPORTED, XML_INVALID_SCHEMA = 27, 35, 67, 92


class Invalid(ValueError):
    """Libvirt refuses this XML; the text is what it says, `code` its number for it."""

    def __init__(self, what: str, code: int = XML_ERROR) -> None:
        super().__init__(what)
        self.code = code


def parse(text: str) -> Element:
    """The root element, with the white space between elements gone. Raises Invalid."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise Invalid(f"(domain_definition):1: {error}", XML_DETAIL) from None
    for element in root.iter():
        if element.text is not None and not element.text.strip():
            element.text = None
        element.tail = None
    return root


def text_of(root: Element) -> str:
    """The text libvirt answers with, less its indentation."""
    return ElementTree.tostring(root, encoding="unicode")


def name_of(root: Element) -> str:
    """The domain's name."""
    return root.findtext("name") or ""


def called(text: str) -> str:
    """The name that XML gives to a domain or volume; a question mark where that cannot be told."""
    try:
        return name_of(parse(text)) or "?"
    except Invalid:
        return "?"


def uuid_of(root: Element) -> str:
    """The domain's UUID."""
    return root.findtext("uuid") or ""


def defined(text: str) -> Element:
    """The persistent definition libvirt makes of XML that it is given. Raises Invalid."""
    root = parse(text)
    if root.tag != "domain":
        raise Invalid(f"unexpected root element <{root.tag}>, expecting <domain>")
    if unknown := [each.tag for each in root if each.tag not in ORDER]:
        raise Invalid(f"Extra element {unknown[0]} in interleave", XML_INVALID_SCHEMA)
    if not name_of(root) or "/" in name_of(root):
        raise Invalid(f"name {name_of(root)} cannot contain '/'" if name_of(root) else "missing name for domain")
    _memory(root)
    _machine(root)
    _defaults(root)
    _devices(root)
    root[:] = sorted(root, key=lambda each: ORDER.index(each.tag))
    return root


def _memory(root: Element) -> None:
    memory = root.find("memory")
    if memory is None:
        raise Invalid("missing memory")
    for element in (memory, root.find("currentMemory")):
        if element is not None:
            size = int(element.text or "0") * UNITS[element.get("unit", "KiB")]
            element.text, element.attrib = str(size // 1024), {"unit": "KiB"}
    if root.find("currentMemory") is None:
        ElementTree.SubElement(root, "currentMemory", {"unit": "KiB"}).text = memory.text


def _machine(root: Element) -> None:
    kind = root.find("os/type")
    if kind is None:
        raise Invalid("an os <type> must be specified")
    kind.attrib = {"arch": kind.get("arch", "x86_64"), "machine": MACHINES.get(*(2 * [kind.get("machine", "")]))}
    if root.find("os/kernel") is None and root.find("os/boot") is None and root.find("devices/disk/boot") is None:
        ElementTree.SubElement(root.find("os") or root, "boot", {"dev": "hd"})


def _defaults(root: Element) -> None:
    vcpu = root.find("vcpu")
    if vcpu is None:
        ElementTree.SubElement(root, "vcpu", {"placement": "static"}).text = "1"
    else:
        vcpu.set("placement", vcpu.get("placement", "static"))
    cpu = root.find("cpu")
    if cpu is not None and cpu.get("mode") == "custom":
        cpu.attrib = {"mode": "custom", "match": cpu.get("match", "exact"), "check": cpu.get("check", "partial")}
        for model in cpu.findall("model"):
            model.set("fallback", model.get("fallback", "allow"))
    if root.find("clock") is None:
        ElementTree.SubElement(root, "clock", {"offset": "utc"})
    for tag, what in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        if root.find(tag) is None:
            ElementTree.SubElement(root, tag).text = what


def _devices(root: Element) -> None:
    devices = root.find("devices")
    if devices is None:
        devices = ElementTree.SubElement(root, "devices")
    _refuse_shared_aliases(devices)
    for element in devices:
        _own_aliases_only(element)
        if element.tag == "interface" and element.find("mac") is None:
            element.insert(0, Element("mac", {"address": "52:54:00:" + _digits(name_of(root))}))
    if devices.find("controller[@type='pci'][@model='pcie-root']") is None:
        devices.append(Element("controller", {"type": "pci", "index": "0", "model": "pcie-root"}))
    if devices.find("memballoon") is None:
        devices.append(Element("memballoon", {"model": "virtio"}))
    _addresses(devices)


def _refuse_shared_aliases(devices: Element) -> None:
    aliases = [each.get("name", "") for each in devices.iterfind("*/alias") if each.get("name", "").startswith("ua-")]
    for alias in aliases:
        if aliases.count(alias) > 1:
            raise Invalid(f"non unique alias detected: {alias}", CONFIG_UNSUPPORTED)


def _own_aliases_only(element: Element) -> None:
    # An alias of a user begins with ua- and holds letters, digits, - and _; any other is dropped without a word.
    for alias in element.findall("alias"):
        if not re.fullmatch(r"ua-[A-Za-z0-9_-]+", alias.get("name", "")):
            element.remove(alias)


def _digits(seed: str) -> str:
    number = sum(ord(letter) * 31**place for place, letter in enumerate(seed)) % 2**24
    return ":".join(f"{number >> shift & 255:02x}" for shift in (16, 8, 0))


def _addresses(devices: Element) -> None:
    """Every PCI device gets the first free slot: an address that is not given back may become another one's."""
    taken = {(a.get("bus"), a.get("slot")) for a in devices.iterfind("*/address[@type='pci']")}
    free = ((f"0x{bus:02x}", "0x00") for bus in range(1, 256) if (f"0x{bus:02x}", "0x00") not in taken)
    for element in devices:
        if element.find("address") is None and _on_pci(element):
            bus, slot = next(free)
            place = {"type": "pci", "domain": "0x0000", "bus": bus, "slot": slot, "function": "0x0"}
            element.append(Element("address", place))


def _on_pci(element: Element) -> bool:
    target = element.find("target")
    if element.tag == "disk":
        return target is not None and target.get("bus") == "virtio"
    return element.tag in ("interface", "memballoon", "rng") or element.get("type") == "virtio-serial"


def disks(root: Element) -> Iterator[tuple[Element, str]]:
    """Each disk that has a file, with its path."""
    for disk in root.iterfind("devices/disk"):
        source = disk.find("source")
        if source is not None and (path := source.get("file")):
            yield disk, path


def boot_files(root: Element) -> list[str]:
    """Paths of kernel and initrd."""
    return [element.text for tag in ("kernel", "initrd") for element in root.iterfind(f"os/{tag}") if element.text]


def memory_mib(root: Element) -> int:
    """The guest's memory in MiB."""
    return int(root.findtext("memory") or "0") // 1024


def channel(root: Element) -> Element | None:
    """The target element of the guest agent's channel, if there is one."""
    return root.find("devices/channel/target[@name='org.qemu.guest_agent.0']")


def running(root: Element, number: int, chain: Callable[[str], list[tuple[str, str]]]) -> Element:
    """The live definition of a domain that was started; `chain` gives the backing files (path, format) of a path."""
    live = deepcopy(root)
    live.set("id", str(number))
    index = 0
    for place, (disk, path) in enumerate(disks(live)):
        index += 1
        source = disk.find("source")
        assert source is not None
        source.set("index", str(index))
        index = _backing(disk, chain(path), index)
        if disk.find("alias") is None:
            disk.append(Element("alias", {"name": f"virtio-disk{place}"}))
    for place, nic in enumerate(live.iterfind("devices/interface")):
        if nic.find("target") is None:
            nic.append(Element("target", {"dev": f"vnet{number + place}"}))
        if nic.find("alias") is None:
            nic.append(Element("alias", {"name": f"net{place}"}))
    for element in live.iterfind("devices/*"):
        if element.find("alias") is None:
            element.append(Element("alias", {"name": f"{element.tag}0"}))
    agent = channel(live)
    if agent is not None:
        agent.set("state", "disconnected")
    label = Element("seclabel", {"type": "dynamic", "model": "dac", "relabel": "yes"})
    ElementTree.SubElement(label, "label").text = "+64055:+109"
    live.append(label)
    return live


def _backing(disk: Element, chain: list[tuple[str, str]], index: int) -> int:
    for store in disk.findall("backingStore"):
        disk.remove(store)
    parent = disk
    for path, form in chain:
        index += 1
        store = ElementTree.SubElement(parent, "backingStore", {"type": "file", "index": str(index)})
        ElementTree.SubElement(store, "format", {"type": form})
        ElementTree.SubElement(store, "source", {"file": path})
        parent = store
    ElementTree.SubElement(parent, "backingStore")
    return index


def set_metadata(root: Element, text: str, namespace: str) -> None:
    """Puts an element in place of the one of its namespace, as virDomainSetMetadata does: it is given without one."""
    element = parse(text)
    if not element.tag.startswith("{"):
        element.tag = f"{{{namespace}}}{element.tag}"
    space = element.tag.partition("}")[0]
    holder = root.find("metadata")
    if holder is None:
        holder = Element("metadata")
        root.insert(2, holder)
    for old in [each for each in holder if each.tag.partition("}")[0] == space]:
        holder.remove(old)
    holder.append(element)
