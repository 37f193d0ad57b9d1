# SPDX-License-Identifier: Apache-2.0
"""Domain XML out and in, on XML that a real libvirt 9.0 returned (recorded/), and on any configuration."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.api.observed import DiskConfig, DomainConfig, NicConfig, Owner
from homeostat.hosts.capabilities import host_facts
from homeostat.hosts.domain_xml import SPARE_PORTS, owner_element, parse, render
from homeostat.hosts.volume_xml import render_volume
from homeostat.hosts.words import words

pytestmark = pytest.mark.unit

RECORDED = Path(__file__).parent / "recorded"
UUID, NAME = "11111111-2222-4333-8444-555555555555", "ns_vm"
IMAGES, BASE = "/var/lib/libvirt/images", "/var/lib/libvirt/base/base.qcow2"
OWNER = Owner("c1", "ns", "vm", "u1", 3, "r\n1", off=None, was="Shutdown", paused=True)
ROOT = DiskConfig("ua-disk-root", f"{IMAGES}/root.qcow2", "qcow2", "virtio", "rootserial", True, ((BASE, "qcow2"),))
FOREIGN = DiskConfig("ua-disk-own", f"{IMAGES}/own.raw", "raw", "sata")
DATA = DiskConfig("ua-disk-data", f"{IMAGES}/data.raw", "raw", "virtio", "d", True)
NEW = DiskConfig("ua-disk-new", f"{IMAGES}/new.raw", "raw", "virtio", "n", True)
DEFINED = DomainConfig(
    memory_mib=64,
    sockets=1,
    cores=2,
    threads=1,
    cpu_model="Westmere",
    machine="pc-q35-7.2",
    acceleration="Emulation",
    kernel="/var/lib/libvirt/base/vmlinuz",
    initrd="/var/lib/libvirt/base/initrd",
    command_line='console=ttyS0 quiet a="b & c"',
    disks=(ROOT, FOREIGN, DATA),
    nics=(
        NicConfig("ua-nic-a", "Bridge", "br0", "52:54:00:00:00:01"),
        NicConfig("ua-nic-b", "Network", "lan", "52:54:00:00:00:02", "e1000e"),
        NicConfig("ua-nic-c", "OpenVSwitch", "ovs0", "52:54:00:00:00:03", "virtio", 42),
    ),
    console_log="/var/log/libvirt/qemu/x-console.log",
    agent=True,
)


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.xml").read_text()


def devices(text: str) -> dict[str, str]:
    """Address of each device, by its alias or else its tag, and of each controller by type and index."""
    found = {}
    for device in ET.fromstring(text).findall("devices/*"):
        alias, address = device.find("alias"), device.find("address")
        name = alias.get("name", "") if alias is not None else device.tag
        if device.tag == "controller":
            name = f"{device.get('type')}{device.get('index')}"
        if address is not None:
            found[name] = " ".join(f"{key}={value}" for key, value in address.attrib.items() if key != "multifunction")
    return found


# What libvirt returned is what was asked for


def test_what_libvirt_defined_is_what_was_rendered() -> None:
    parsed = parse(recorded("defined"))
    assert parsed.config == DEFINED
    assert parsed.owner == OWNER
    assert (parsed.uuid, parsed.name, parsed.agent_connected) == (UUID, NAME, None)


def test_a_grown_definition_shows_the_disks_in_the_order_of_the_spec() -> None:
    assert parse(recorded("grown")).config == replace(DEFINED, disks=(ROOT, NEW, FOREIGN, DATA))


def test_a_running_domain_shows_config_chain_and_agent() -> None:
    parsed = parse(recorded("running"))
    root, data = (replace(disk, path=disk.path.replace("images/", "images/rec-")) for disk in (ROOT, DATA))
    network = DEFINED.nics[:1]
    assert parsed.config == replace(DEFINED, kernel="", initrd="", command_line="", disks=(root, data), nics=network)
    assert parsed.chains == ((root.alias, (root.path, BASE)), (data.alias, (data.path,)))
    assert parsed.agent_connected is False


def test_libvirt_moved_no_device_when_a_disk_was_added() -> None:
    before, after = devices(recorded("defined")), devices(recorded("grown"))
    assert after.keys() - before.keys() == {"ua-disk-new", "pci18"}
    assert {name: after[name] for name in before} == before


def test_spare_root_ports_stay_when_a_disk_is_added() -> None:
    for name in ("defined", "grown"):
        found = devices(recorded(name))
        buses = {address.split("bus=")[1].split()[0] for address in found.values() if "type=pci" in address}
        ports = {f"{number:#04x}" for number in range(1, sum(each.startswith("pci") for each in found) + 1)}
        assert len(ports - buses) >= SPARE_PORTS


# Redefinitions


def test_a_redefinition_names_every_address_the_guest_knows() -> None:
    present = recorded("defined")
    again = devices(render(UUID, NAME, DEFINED, OWNER, present))
    assert again == devices(present)


def test_device_names_stay_with_their_disks_when_one_between_them_goes() -> None:
    config = replace(DEFINED, disks=(ROOT, DATA))
    root = ET.fromstring(render(UUID, NAME, config, OWNER, recorded("grown")))
    names = {disk.find("alias").get("name"): disk.find("target").get("dev") for disk in root.iter("disk")}  # type: ignore[union-attr]
    before = ET.fromstring(recorded("grown"))
    was = {disk.find("alias").get("name"): disk.find("target").get("dev") for disk in before.iter("disk")}  # type: ignore[union-attr]
    assert names == {alias: was[alias] for alias in names}


def test_a_disk_on_another_bus_gets_an_address_and_a_name_of_that_bus() -> None:
    config = replace(DEFINED, disks=(ROOT, FOREIGN, replace(DATA, bus="sata")))
    text = render(UUID, NAME, config, OWNER, recorded("defined"))
    disk = next(one for one in ET.fromstring(text).iter("disk") if one.find(f"alias[@name='{DATA.alias}']") is not None)
    assert disk.find("target[@bus='sata']").get("dev") == "sdb"  # type: ignore[union-attr]
    assert disk.find("address") is None


def test_another_machine_type_of_the_same_family_keeps_addresses_and_another_family_does_not() -> None:
    newer = devices(render(UUID, NAME, replace(DEFINED, machine="pc-q35-9.2"), OWNER, recorded("defined")))
    assert newer["ua-disk-root"] == devices(recorded("defined"))["ua-disk-root"]
    older = devices(render(UUID, NAME, replace(DEFINED, machine="pc-i440fx-7.2"), OWNER, recorded("defined")))
    assert "ua-disk-root" not in older


def test_a_domain_taken_over_keeps_what_the_spec_has_no_word_for() -> None:
    disk = DiskConfig("ua-disk-root", f"{IMAGES}/web1.qcow2", "qcow2")
    nic = NicConfig("ua-nic-lan", "Bridge", "br0", "52:54:00:aa:bb:cc")
    config = replace(DEFINED, memory_mib=1024, disks=(disk,), nics=(nic,), kernel="", initrd="", command_line="")
    present = recorded("taken_over")
    root = ET.fromstring(render(UUID, NAME, config, OWNER, present))
    info = "metadata/{http://libosinfo.org/xmlns/libvirt/domain/1.0}libosinfo"
    firmware, tuning = ["os/loader", "os/nvram", "features/smm"], ["title", "cputune/shares", "devices/disk/iotune"]
    clock, display = (
        ["clock[@offset='localtime']", "clock/timer"],
        ["devices/graphics[@passwd='secret']", "devices/video"],
    )
    kept = [*firmware, *tuning, *clock, *display, "cpu/feature", info]
    assert [path for path in kept if root.find(path) is None] == []
    assert root.find("devices/controller[@type='usb']").get("model") == "qemu-xhci"  # type: ignore[union-attr]
    assert root.find("os/boot") is None, "libvirt refuses it beside the boot order of devices"
    assert root.find("devices/disk/target").get("dev") == "vdc"  # type: ignore[union-attr]
    now = devices(ET.tostring(root, encoding="unicode"))
    assert now["ua-disk-root"].split() == "type=pci domain=0x0000 bus=0x04 slot=0x00 function=0x0".split()
    assert now["ua-nic-lan"].split() == "type=pci domain=0x0000 bus=0x01 slot=0x00 function=0x0".split()
    assert parse(ET.tostring(root, encoding="unicode")).config == config


# Safety that is in the XML


def test_nothing_is_probed_and_owned_disks_are_not_relabelled() -> None:
    root = ET.fromstring(render(UUID, NAME, DEFINED, OWNER, None))
    disks = {disk.find("alias").get("name"): disk for disk in root.iter("disk")}  # type: ignore[union-attr]
    for disk in disks.values():
        driver = disk.find("driver[@cache='none']")
        assert driver is not None
        assert driver.get("type") in {"qcow2", "raw"}
        innermost = list(disk.iter("backingStore"))[-1]
        assert not len(innermost), "an open end of a chain is looked for in the guest's data"
    labels = {alias: disk.find("source/seclabel[@relabel='no']") is not None for alias, disk in disks.items()}
    assert labels == {"ua-disk-root": True, "ua-disk-own": False, "ua-disk-data": True}


def test_a_guest_that_ends_stays_off() -> None:
    root = ET.fromstring(render(UUID, NAME, DEFINED, OWNER, None))
    reactions = [root.findtext(f"on_{event}") for event in ("poweroff", "reboot", "crash")]
    assert reactions == ["destroy", "restart", "destroy"]


# Owners


@pytest.mark.parametrize(
    "damage",
    [{"uid": None}, {"cluster": None}, {"generation": "-1"}, {"generation": "many"}, {"request": None}],
)
def test_a_damaged_metadata_element_makes_nobody_the_owner(damage: dict[str, str | None]) -> None:
    root = ET.fromstring(render(UUID, NAME, DEFINED, OWNER, None))
    element = root.find("metadata/*")
    assert element is not None
    for name, value in damage.items():
        element.attrib.pop(name)
        element.attrib.update({name: value} if value is not None else {})
    assert parse(ET.tostring(root, encoding="unicode")).owner is None


NOT_IN_XML = "\ufffe\uffff"
_letters = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters=NOT_IN_XML)
words_ = st.text(_letters | st.sampled_from("\n\t"), max_size=20)
owners = st.builds(
    Owner, words_, words_, words_, words_, st.integers(0, 10**9), words_, st.none() | words_, st.none() | words_,
    st.booleans(), st.booleans(),
)  # fmt: skip


@given(owners)
def test_any_owner_survives_the_way_through_xml(owner: Owner) -> None:
    assert parse(render(UUID, NAME, DEFINED, owner, None)).owner == owner
    element = ET.fromstring(owner_element(owner))
    assert (element.tag, element.get("uid"), element.get("off")) == ("vm", owner.uid, owner.off)


# Any configuration

names = st.from_regex(r"[a-z][a-z0-9-]{0,12}", fullmatch=True)
paths = names.map("/pool/{}".format)
formats = st.sampled_from(["qcow2", "raw"])
disks = st.builds(
    DiskConfig, names.map("ua-disk-{}".format), paths, formats, st.sampled_from(["virtio", "sata"]), names,
    st.booleans(), st.lists(st.tuples(paths, formats), max_size=3).map(tuple),
)  # fmt: skip
nics = st.builds(
    NicConfig, names.map("ua-nic-{}".format), st.sampled_from(["Bridge", "Network", "OpenVSwitch"]), names,
    st.integers(0, 2**40 - 1).map(lambda n: "02:" + n.to_bytes(5).hex(":")), st.sampled_from(["virtio", "e1000e"]),
    st.none() | st.integers(1, 4094),
)  # fmt: skip
configs = st.builds(
    DomainConfig,
    memory_mib=st.integers(16, 2**20),
    sockets=st.integers(1, 4),
    cores=st.integers(1, 8),
    threads=st.integers(1, 2),
    cpu_model=st.sampled_from(["Westmere", "EPYC-Milan", "host-passthrough", "host-model"]),
    machine=st.sampled_from(["pc-q35-7.2", "pc-q35-9.2"]),
    acceleration=st.sampled_from(["KVM", "Emulation"]),
    kernel=st.just("") | paths,
    initrd=st.just("") | paths,
    command_line=words_.map(str.strip),
    disks=st.lists(disks, max_size=40, unique_by=lambda disk: disk.alias).map(tuple),
    nics=st.lists(nics, max_size=3, unique_by=lambda nic: nic.alias).map(tuple),
    console_log=st.just("") | paths,
    agent=st.booleans(),
)


@given(configs, configs)
def test_any_configuration_survives_being_defined_and_redefined(first: DomainConfig, second: DomainConfig) -> None:
    text = render(UUID, NAME, first, OWNER, None)
    assert parse(text).config == first
    again = render(UUID, NAME, second, OWNER, text)
    assert parse(again).config == second
    targets = [target.get("dev") for target in ET.fromstring(again).findall("devices/disk/target")]
    assert len(targets) == len(set(targets)), "two disks with one device name"


# Volumes, facts and words


def test_a_volume_belongs_to_who_has_to_open_it() -> None:
    root = ET.fromstring(render_volume("v", "qcow2", None, ("/pool/base", "raw"), owner=(64055, 107)))
    owner = [root.findtext(f"target/permissions/{tag}") for tag in ("owner", "group", "mode")]
    assert owner == ["64055", "107", "0600"]
    assert root.find("capacity") is None, "that of the backing file"
    assert (root.findtext("backingStore/path"), root.find("backingStore/format[@type='raw']") is None) == (
        "/pool/base",
        False,
    )


def test_a_qcow2_volume_can_keep_the_bitmaps_of_checkpoints() -> None:
    assert ET.fromstring(render_volume("v", "qcow2", 1)).findtext("target/compat") == "1.1"
    assert ET.fromstring(render_volume("v", "raw", 1)).find("target/compat") is None


def test_facts_of_a_host_that_can_only_emulate() -> None:
    facts = host_facts(recorded("capabilities"), {"kvm": None, "qemu": recorded("emulation")})
    assert not facts.kvm
    assert facts.default_cpu_model == facts.emulated_cpu_model == "Westmere"
    assert facts.disk_owner == (64055, 64055)
    assert facts.host_uuid == "2ae0e24e-5e6f-54cd-bbb6-0bfe474b21ad"


def test_facts_of_a_host_with_kvm_and_of_one_without_qemu() -> None:
    kvm = """<domainCapabilities><cpu><mode name='host-passthrough' supported='yes'/>
      <mode name='host-model' supported='yes'><model>EPYC-Milan</model></mode>
      <mode name='custom' supported='yes'><model usable='yes'>EPYC-Milan</model><model usable='yes'>Nehalem</model>
      <model usable='no'>Snowridge</model></mode></cpu></domainCapabilities>"""
    facts = host_facts(recorded("capabilities"), {"kvm": kvm, "qemu": recorded("emulation")})
    assert (facts.default_cpu_model, facts.emulated_cpu_model) == ("EPYC-Milan", "Westmere")
    assert facts.cpu_models == ("EPYC-Milan", "Nehalem", "host-model", "host-passthrough")
    broken = kvm.replace("<model usable='yes'>EPYC-Milan</model>", "<model usable='no'>EPYC-Milan</model>")
    assert host_facts(recorded("capabilities"), {"kvm": broken}).default_cpu_model == "Nehalem"
    none = host_facts(recorded("capabilities"), {"kvm": None, "qemu": None})
    assert (none.kvm, none.default_cpu_model, none.cpu_models) == (False, "", ())


def test_numbers_of_a_newer_libvirt_are_unknown_not_an_error() -> None:
    assert words(5, 2) == ("Shutoff", "Destroyed")
    assert words(1, 1) == ("Running", "Booted")
    assert words(3, 1) == ("Paused", "User")
    assert words(5, 99) == ("Shutoff", "Unknown")
    assert words(42, 0) == ("NoState", "Unknown")
