# SPDX-License-Identifier: Apache-2.0
"""VirtualMachine: what its owner wants, and what was seen."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from homeostat.api.markers import ATOMIC, Column, Rule, map_by
from homeostat.api.meta import (
    UUID,
    Condition,
    Count,
    HostName,
    Line,
    Message,
    Model,
    Resource,
    Time,
    Word,
    name_fits,
)
from homeostat.api.migration_policy import MigrationInFlight
from homeostat.api.virtualmachine_spec import DeviceName, VirtualMachineSpec


class DomainStatus(Model):
    """The libvirt domain as last seen."""

    state: Word | None = None
    """The state that libvirt shows."""
    reason: Word | None = None
    """The reason that libvirt gives for it; of one that is off, or gone, how it went off, which libvirt forgets."""
    since: Time | None = None
    """When it was first seen in this state."""
    uuid: UUID | None = None
    """The domain's UUID."""
    request: Word | None = None
    """The power request that its last process was started for."""


class CandidateStatus(Model):
    """A host where the VM may be."""

    hypervisor: HostName
    """Name of the Hypervisor."""
    uid: Word
    """UID of the Hypervisor object."""
    host_uuid: UUID
    """The libvirt host UUID that was pinned for it."""


class Address(Model):
    """An address of the guest, as its agent or the host says."""

    interface: Word | None = None
    """Name of the interface in spec.interfaces, or the guest's own name for it."""
    ip: Annotated[str, Field(max_length=64)]
    """An IPv4 or IPv6 address."""
    mac: Annotated[str, Field(max_length=17)] | None = None
    """The MAC address of the interface it is on."""


class DiskStatus(Model):
    """A disk as it is on the host."""

    name: DeviceName
    """Name of the disk in spec.disks."""
    alias: Word | None = None
    """The alias that the disk has in the domain."""
    volume: Annotated[str, Field(max_length=255)] | None = None
    """Name of its volume in the pool."""
    pool: Word | None = None
    """Logical name of the pool it is in."""
    storage: Word | None = None
    """The storage that holds it: a storage id, or host:HOSTUUID for storage of one host."""
    chain: Annotated[tuple[Line, ...], Field(max_length=64), ATOMIC] = ()
    """The files it consists of, the one that is written first."""


class StartFailures(Model):
    """Starts that failed since the last one that did not."""

    count: Count = 0
    """How many in a row."""
    last_message: Message | None = None
    """What libvirt said to the last one."""
    last_time: Time | None = None
    """When the last one failed."""
    retry_time: Time | None = None
    """When the next one is due."""


class VirtualMachineStatus(Model):
    """What was seen."""

    observed_generation: Count | None = None
    """The metadata.generation that this status was decided on."""
    state: Word | None = None
    """The VM's state in one word."""
    reason: Word | None = None
    """Why it is in this state, in one word; the conditions have the sentences."""
    since: Time | None = None
    """When state last changed."""
    next: Word | None = None
    """What happens next, or who has to act, in one word."""
    host: HostName | None = None
    """Name of the Hypervisor that the domain is on."""
    domain: DomainStatus | None = None
    """The libvirt domain as last seen."""
    candidates: Annotated[tuple[CandidateStatus, ...], Field(max_length=256), map_by("hypervisor")] = ()
    """Hosts where the VM may be; nothing is started elsewhere before each of them was seen without it."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16), map_by("type")] = ()
    """Ready, Running, Synchronized, Stalled, RestartRequired, AgentConnected, Conflict and Migratable, with
    sentences."""
    migration: MigrationInFlight | None = None
    """The migration that the VM is in; while it is set, only that migration touches the VM on either host."""
    addresses: Annotated[tuple[Address, ...], Field(max_length=64), ATOMIC] = ()
    """Addresses of the guest."""
    disks: Annotated[tuple[DiskStatus, ...], Field(max_length=64), map_by("name")] = ()
    """The disks as they are on the host."""
    start_failures: StartFailures | None = None
    """Starts that failed since the last one that did not."""
    machine_type: Word | None = None
    """The exact version of the machine type, chosen at the first start and kept."""
    cpu_model: Message | None = None
    """The CPU model that was chosen, in full, and is kept."""
    pending_changes: Annotated[tuple[Line, ...], Field(max_length=32), ATOMIC] = ()
    """What of the spec takes effect at the next start, such as "memory: 512 MiB running, 1024 MiB wanted"."""


class VirtualMachine(Resource):
    """A virtual machine on a libvirt host, kept in its declared state."""

    plural = "virtualmachines"
    short_name = "vm"
    scope = "Namespaced"
    columns = (
        Column("State", ".status.state"),
        Column("Host", ".status.host"),
        Column("Since", ".status.since", "date"),
        Column("Reason", ".status.reason"),
        Column("Next", ".status.next"),
        Column("Age", ".metadata.creationTimestamp", "date", wide=True),
    )
    selectable = (".status.host", ".status.state")
    rules: ClassVar[tuple[Rule, ...]] = (name_fits("VirtualMachine"),)

    spec: VirtualMachineSpec
    """What the owner wants."""
    status: VirtualMachineStatus = VirtualMachineStatus()
    """What was seen."""
