# SPDX-License-Identifier: Apache-2.0
"""What is asked of a VirtualMachine."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from homeostat.api.markers import SET, Rule, map_by, member
from homeostat.api.meta import (
    MAC_PATTERN,
    UUID,
    Enabled,
    HostName,
    Integer,
    Label,
    LibvirtName,
    Model,
    Quantity,
    Time,
    between,
)

DeviceName = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
Mac = Annotated[str, Field(min_length=17, max_length=17, pattern=MAC_PATTERN)]
Serial = Annotated[str, Field(min_length=1, max_length=20, pattern=r"^[A-Za-z0-9_.+-]+$")]
CpuModel = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
PRINTABLE = r"^[ -~]*$"
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$")]
MAX_VCPUS = 512


class Power(Model):
    """Which power request was made last; it is carried out once."""

    state: Literal["Running", "Stopped"] = "Running"
    """What the last request asked for. Stopped is for runStrategy Manual only; use Halted to keep a VM off."""
    request: Annotated[str, Field(max_length=63, pattern=PRINTABLE)] = ""
    """Names the last request, in any words: a new value asks once for a start or restart. Ignored under Halted."""


class Machine(Model):
    """The machine that the guest sees."""

    type: Literal["q35"] = "q35"
    """The chipset. Its exact version is chosen at the first start and kept in status.machineType."""


class KernelBoot(Model):
    """A kernel started without a boot loader."""

    pool: Label
    """Logical name of the pool that kernel and initrd are in."""
    kernel: LibvirtName
    """Name of the volume that holds the kernel."""
    initrd: LibvirtName | None = None
    """Name of the volume that holds the initial RAM disk."""
    command_line: Annotated[str, Field(max_length=2048, pattern=PRINTABLE)] = ""
    """The kernel's command line."""


class Boot(Model):
    """What the guest boots from."""

    rules: ClassVar[tuple[Rule, ...]] = (member("Kernel", "kernel", "kernel"),)

    type: Literal["Disk", "Kernel"] = "Disk"
    """Disk: the first disk in spec.disks. Kernel: the kernel named under kernel."""
    kernel: KernelBoot | None = None
    """The kernel to start, with type Kernel."""


class Firmware(Model):
    """The firmware that the guest starts with."""

    type: Literal["BIOS"] = "BIOS"
    """The kind of firmware."""


class Cpu(Model):
    """The guest's CPUs; their number is sockets times cores times threads."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"self.sockets * self.cores * self.threads <= {MAX_VCPUS}",
            f"sockets * cores * threads must be at most {MAX_VCPUS}",
            lambda self: self.sockets * self.cores * self.threads <= MAX_VCPUS,
        ),
    )

    sockets: Annotated[Integer, Field(ge=1, le=MAX_VCPUS)] = 1
    """Number of CPU sockets."""
    cores: Annotated[Integer, Field(ge=1, le=MAX_VCPUS)] = 1
    """Cores in each socket."""
    threads: Annotated[Integer, Field(ge=1, le=MAX_VCPUS)] = 1
    """Threads of each core."""
    model: CpuModel | None = None
    """A named CPU model of libvirt, host-model or host-passthrough. Unset: chosen once, kept in status.cpuModel."""


class Memory(Model):
    """The guest's memory."""

    rules: ClassVar[tuple[Rule, ...]] = (between("16Mi", "16Ti", "size", "size"),)

    size: Quantity
    """How much memory, such as 512Mi or 4Gi: a whole number with the unit Ki, Mi, Gi, Ti, k, M, G or T."""


class ImageSource(Model):
    """A volume that is read only and shared, under an overlay of the disk's own."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self == oldSelf", "a disk keeps its image: add a disk with another name, or remove this one first"),
    )

    pool: Label
    """Logical name of the pool that the image is in."""
    volume: LibvirtName
    """Name of the volume that holds the image."""
    format: Literal["qcow2", "raw"]
    """Format of the image; it is never guessed."""


class VolumeSource(Model):
    """A volume that is there already."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self == oldSelf", "a disk keeps its volume: add a disk with another name, or remove this one first"),
    )

    name: LibvirtName
    """Name of the volume in the disk's pool."""
    format: Literal["qcow2", "raw"]
    """Format of the volume; it is never guessed."""


class BlankSource(Model):
    """How a blank disk is made."""

    when_retained: Literal["Wait", "Ignore"] = "Wait"
    """What to do when an earlier VM of this name left its volume: Wait (and say so) or Ignore it and make a new one."""


class DiskSource(Model):
    """What is on the disk at first."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.blank) || self.type == 'Blank'",
            "blank belongs to type Blank: set it with that type, and with no other",
            lambda self: self.blank is None or self.type == "Blank",
            path="blank",
        ),
        member("Image", "image", "image"),
        member("Volume", "volume", "volume"),
        # blank.whenRetained may change: it is decided when a retained volume turns up.
        Rule(
            "self.type == oldSelf.type",
            "a disk keeps its source: add a disk with another name, or remove this one first",
            path="type",
        ),
    )

    type: Literal["Blank", "Image", "Volume"] = "Blank"
    """Blank: nothing. Image: what an image holds, with changes kept apart from it. Volume: a volume that exists."""
    blank: BlankSource | None = None
    """How a blank disk is made, with type Blank. Optional."""
    image: ImageSource | None = None
    """The image, with type Image."""
    volume: VolumeSource | None = None
    """The existing volume, with type Volume."""


class Disk(Model):
    """A disk of the guest."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.source.type != 'Blank' || has(self.size)",
            "a disk with source Blank needs a size",
            lambda self: self.source.type != "Blank" or self.size is not None,
            path="size",
        ),
        Rule(
            "self.source.type != 'Volume' || !has(self.size)",
            "a disk with source Volume has the size of the volume: leave size out",
            lambda self: self.source.type != "Volume" or self.size is None,
            path="size",
        ),
        between("1Mi", "64Ti", "size", "size"),
        Rule(
            "self.source.type != 'Volume' || self.deletionPolicy != 'Delete'",
            "deletionPolicy Delete is not for source Volume: a volume that was not created here is not deleted here",
            lambda self: self.source.type != "Volume" or self.deletion_policy != "Delete",
            path="deletionPolicy",
        ),
        Rule("self.pool == oldSelf.pool", "a disk stays in its pool: pool cannot be changed", path="pool"),
        Rule(
            "has(self.size) == has(oldSelf.size)"
            " && (!has(self.size) || quantity(self.size).compareTo(quantity(oldSelf.size)) == 0)",
            "size cannot be changed: a disk never shrinks, and growing one is not supported yet",
            path="size",
        ),
    )

    name: DeviceName
    """Name of the disk, unique in the VM; it is part of the name of the volume."""
    pool: Label
    """Logical name of the pool that the disk is in, as offered by Hypervisors."""
    size: Quantity | None = None
    """Virtual size. Source Blank needs it; Image: at least the image's (unset: the same); Volume: leave it out."""
    source: DiskSource = DiskSource()
    """What is on the disk at first."""
    bus: Literal["virtio"] = "virtio"
    """The bus that the guest sees the disk on: virtio, for which the guest needs a driver (every Linux has it)."""
    serial: Serial | None = None
    """Serial number shown to the guest, at most 20 characters. Unset: the first 20 characters of the disk's name."""
    deletion_policy: Literal["Retain", "Delete"] = "Retain"
    """What happens to the volume when the VM is deleted: Retain leaves it on the host, Delete removes it."""


class Interface(Model):
    """A network interface of the guest."""

    name: DeviceName
    """Name of the interface, unique in the VM."""
    network: Label
    """Logical name of the network it is on, as offered by Hypervisors."""
    model: Literal["virtio", "e1000e"] = "virtio"
    """The card that the guest sees."""
    mac: Mac | None = None
    """Its MAC address: unicast, lower case, not beginning with fe. Unset: derived from VM and name, so it is stable."""


class Console(Model):
    """The serial console."""

    log: Enabled = "Enabled"
    """Whether its output is kept in a bounded file on the host."""


class HostSelector(Model):
    """Which hosts will do, by their labels."""

    match_labels: Annotated[dict[str, LabelValue], Field(default_factory=dict, max_length=16)]
    """Labels that a Hypervisor must have, all of them."""


class Placement(Model):
    """Where the VM may be."""

    host: HostName | None = None
    """Name of the only Hypervisor it may be on."""
    host_selector: HostSelector | None = None
    """Labels of the Hypervisors it may be on."""


class ManagedSave(Model):
    """What to do with the memory image that somebody saved on a host."""

    host: HostName
    """Name of the Hypervisor that has the image."""
    action: Literal["Restore", "Discard"]
    """Restore: go on from the image. Discard: remove it and boot afresh."""


class ConfirmedOff(Model):
    """A person's word that a host runs no process of this VM any more."""

    host: HostName
    """Name of the Hypervisor that was looked at."""
    since: Time
    """When it was looked at: counts for a record that was lost before that, not for one that is lost later."""


class VirtualMachineSpec(Model):
    """What the owner wants."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.power.state != 'Stopped' || self.runStrategy == 'Manual'",
            "power.state Stopped is for runStrategy Manual only: use runStrategy Halted to keep the VM off",
            lambda self: self.power.state != "Stopped" or self.run_strategy == "Manual",
            path="power.state",
        ),
        Rule(
            "has(self.domainUUID) == has(oldSelf.domainUUID)"
            " && (!has(self.domainUUID) || self.domainUUID == oldSelf.domainUUID)",
            "domainUUID is set at creation or never, and cannot be changed",
            path="domainUUID",
        ),
        Rule(
            "!has(self.disks) || self.disks.all(d, !has(d.serial)"
            " || self.disks.exists_one(e, has(e.serial) && e.serial == d.serial))",
            "two disks have the same serial: the guest could not tell them apart",
            lambda self: _unique(disk.serial for disk in self.disks),
            path="disks",
        ),
        Rule(
            "!has(self.interfaces) || self.interfaces.all(i, !has(i.mac)"
            " || self.interfaces.exists_one(e, has(e.mac) && e.mac == i.mac))",
            "two interfaces have the same mac",
            lambda self: _unique(interface.mac for interface in self.interfaces),
            path="interfaces",
        ),
    )

    run_strategy: Literal["Always", "RerunOnFailure", "Manual", "Halted"] = "Always"
    """When to start it after it went off. Always: each time. RerunOnFailure: unless the guest shut itself down.
    Manual: when power.request asks for it. Halted: never, and it is shut down."""
    power: Power = Power()
    """Which power request was made last."""
    execution: Literal["Running", "Paused"] = "Running"
    """Whether the guest's CPUs run. Paused keeps the process and its memory."""
    machine: Machine = Machine()
    """The machine that the guest sees."""
    boot: Boot = Boot()
    """What the guest boots from."""
    firmware: Firmware = Firmware()
    """The firmware that the guest starts with."""
    cpu: Cpu = Cpu()
    """The guest's CPUs."""
    memory: Memory
    """The guest's memory."""
    disks: Annotated[tuple[Disk, ...], Field(max_length=64), map_by("name")] = ()
    """The guest's disks, by name, in the order of booting."""
    interfaces: Annotated[tuple[Interface, ...], Field(max_length=16), map_by("name")] = ()
    """The guest's network interfaces, by name."""
    console: Console = Console()
    """The serial console."""
    guest_agent: Enabled = "Enabled"
    """Whether there is a channel for the QEMU guest agent; the guest has to run the agent to use it."""
    placement: Placement | None = None
    """Where the VM may be. Unset: on any host that offers its pools and networks."""
    termination_grace_period_seconds: Annotated[Integer, Field(ge=0, le=86400)] = 120
    """How long the guest may take to shut down before its process is ended."""
    deletion_policy: Literal["Destroy", "Release"] = "Destroy"
    """What happens to the domain when this object is deleted: Destroy ends it, Release leaves it as it is, running."""
    evacuation: Literal["Stay", "ShutOff"] = "Stay"
    """What happens when its host is evacuated and it cannot be moved live. Stay: it runs on; the Hypervisor names it.
    ShutOff: it is shut down, and started again when the evacuation is over, or on another host that placement names."""
    domain_uuid: UUID | None = None
    """UUID of the libvirt domain, for taking over one that exists. Set at creation only. Unset: this object's UID."""
    takeover: Literal["Never", "Unowned", "PreviousIncarnation"] = "Never"
    """Which existing domain with this UUID may be taken over. Unowned: one that nobody manages.
    PreviousIncarnation: that of an earlier object of the same namespace and name in this cluster."""
    abandon_hosts: Annotated[tuple[HostName, ...], Field(max_length=256), SET] = ()
    """Hosts that a deletion no longer waits for. What may be left of the VM there is not cleaned up."""
    managed_save: ManagedSave | None = None
    """What to do with a memory image found on a host; until this says so, the VM is not started."""
    confirmed_off: ConfirmedOff | None = None
    """The way out of reason RecordLost where no lock can tell: a person saw that no process of this VM is left."""


def _unique(values: object) -> bool:
    known = [value for value in values if value is not None]  # type: ignore[attr-defined]
    return len(known) == len(set(known))
