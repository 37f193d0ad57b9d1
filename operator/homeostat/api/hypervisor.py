# SPDX-License-Identifier: Apache-2.0
"""Hypervisor: a libvirt host, and what of it virtual machines may use."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from homeostat.api.markers import ATOMIC, SET, Column, Rule, map_by, member
from homeostat.api.meta import (
    UUID,
    Condition,
    Count,
    Enabled,
    Integer,
    Label,
    LibvirtName,
    Line,
    Model,
    Quantity,
    Resource,
    Time,
    Word,
    between,
    name_fits,
)
from homeostat.api.migration_policy import MigrationPolicy

URI_PATTERN = (
    r"^qemu(:///system"
    r"|\+(tls|tcp)://([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?/system)$"
)
PEER_URI_PATTERN = (
    r"^qemu\+(tls|tcp)://([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?/system$"
)
Address = Annotated[
    str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$|^[0-9a-fA-F:.]+$")
]
Port = Annotated[Integer, Field(ge=1024, le=65535)]
NamespaceOrAll = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^(\*|[a-z0-9]([a-z0-9-]*[a-z0-9])?)$")]
Namespaces = Annotated[tuple[NamespaceOrAll, ...], Field(max_length=256), SET]
BridgeName = Annotated[str, Field(min_length=1, max_length=15, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]


class SecretRef(Model):
    """A Secret in the operator's own namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
    """Name of the Secret."""


class Credentials(Model):
    """What the operator shows to the host to be let in."""

    secret_ref: SecretRef
    """The Secret, in the operator's own namespace, with the TLS client certificate: tls.crt, tls.key and ca.crt."""


class HostPool(Model):
    """A libvirt storage pool that virtual machines may use."""

    name: Label
    """The name by which virtual machines ask for this storage; the same on every host that offers it."""
    pool: LibvirtName
    """The name of the storage pool on the host, as libvirt knows it."""
    storage_id: Label | None = None
    """Names storage that several hosts share: pools with the same id hold the same volumes. Unset: this host's own."""
    locks: Literal["Effective", "None"] = "None"
    """Effective: a file that QEMU has open here cannot be written by QEMU on another host, so that even a reply lost in
    a migration cannot make two hosts run one VM. True of NFS with its lock service and of cluster file systems; not of
    block devices."""
    allowed_namespaces: Namespaces = ()
    """Namespaces whose virtual machines may use this pool; '*' is all of them. Unset: nobody."""


class Bridge(Model):
    """A Linux bridge."""

    name: BridgeName
    """The interface name of the bridge on the host."""


class LibvirtNetwork(Model):
    """A network defined in libvirt."""

    name: LibvirtName
    """The name of the network on the host, as libvirt knows it."""


class OpenVSwitch(Model):
    """A switch of Open vSwitch."""

    bridge: BridgeName
    """The name of the Open vSwitch bridge on the host."""


class Vlan(Model):
    """A VLAN of the switch."""

    tag: Annotated[Integer, Field(ge=1, le=4094)]
    """The VLAN's number, 1 to 4094."""


class HostNetwork(Model):
    """A network of the host that virtual machines may use."""

    rules: ClassVar[tuple[Rule, ...]] = (
        member("Bridge", "bridge", "bridge"),
        member("Network", "network", "network"),
        member("OpenVSwitch", "open_v_switch", "openVSwitch"),
        Rule(
            "!has(self.vlan) || self.type == 'OpenVSwitch'",
            "vlan works with type OpenVSwitch only: libvirt cannot tag frames on a plain Linux bridge"
            " (make one bridge per VLAN), and a libvirt network has its VLAN in its own definition",
            lambda self: self.vlan is None or self.type == "OpenVSwitch",
            path="vlan",
        ),
    )

    name: Label
    """The name by which virtual machines ask for this network; the same on every host that offers it."""
    type: Literal["Bridge", "Network", "OpenVSwitch"]
    """What the network is on the host; the member of the same name says which one."""
    bridge: Bridge | None = None
    """The Linux bridge, with type Bridge."""
    network: LibvirtNetwork | None = None
    """The libvirt network, with type Network."""
    open_v_switch: OpenVSwitch | None = None
    """The Open vSwitch bridge, with type OpenVSwitch."""
    vlan: Vlan | None = None
    """The VLAN that interfaces are put in, with type OpenVSwitch only. Unset: untagged."""
    allowed_namespaces: Namespaces = ()
    """Namespaces whose virtual machines may use this network; '*' is all of them. Unset: nobody."""


class Overcommit(Model):
    """How much more than it has a host may promise."""

    cpu_percent: Annotated[Integer, Field(ge=100, le=2000)] = 400
    """Virtual CPUs that may be placed here, in percent of the host's CPUs."""
    memory_percent: Annotated[Integer, Field(ge=50, le=400)] = 100
    """Guest memory that may be placed here, in percent of the host's memory less reservedMemory."""


class Ports(Model):
    """A range of TCP ports."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.first <= self.last",
            "first must not be greater than last",
            lambda self: self.first <= self.last,
            path="last",
        ),
    )

    first: Port
    """The lowest port."""
    last: Port
    """The highest port."""


class HostMigration(Model):
    """How this host takes part in live migrations."""

    peer_uri: Annotated[str, Field(min_length=1, max_length=512, pattern=PEER_URI_PATTERN)] | None = None
    """Where the libvirt daemons of *other hosts* reach this one, with certificates of their own:
    qemu+tls://HOST[:PORT]/system or qemu+tcp://HOST[:PORT]/system. Unset: spec.uri, if that names a host."""
    address: Address | None = None
    """Host name or address that QEMU on other hosts sends memory to. Unset: the one of the peer URI."""
    ports: Ports | None = None
    """TCP ports that QEMU takes memory on. Unset: those of the host's qemu.conf, 49152 to 49215 by default."""
    tls: Enabled | None = None
    """Whether memory that comes here is encrypted; QEMU on both hosts needs certificates. Unset: as the peer URI."""
    max_inbound: Annotated[Integer, Field(ge=1, le=100)] = 2
    """How many VMs may be on their way here at once."""
    max_outbound: Annotated[Integer, Field(ge=1, le=100)] = 2
    """How many VMs may be on their way from here at once."""
    policy: MigrationPolicy | None = None
    """For migrations from here, where they do not say otherwise."""


class OutOfService(Model):
    """A person's statement that the host does not run anything."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(  # also refuses a list, which the API server lets pass where a date-time is wanted
            "self.since >= timestamp('2000-01-01T00:00:00Z')",
            "since must not lie before the year 2000",
            lambda self: self.since.year >= 2000,
            path="since",
        ),
    )

    since: Time
    """From when on the host was off. Void as soon as anything is heard from the host after this time."""
    evidence: Literal["PoweredOff", "Destroyed"]
    """What is known: PoweredOff (it may come back) or Destroyed (it never will)."""


class HypervisorSpec(Model):
    """The host, how to reach it, and what of it may be used."""

    rules: ClassVar[tuple[Rule, ...]] = (between("0Mi", "16Ti", "reserved_memory", "reservedMemory"),)

    uri: Annotated[str, Field(min_length=1, max_length=512, pattern=URI_PATTERN)]
    """Where libvirt answers: qemu+tls://HOST[:PORT]/system, qemu+tcp://HOST[:PORT]/system or qemu:///system."""
    credentials: Credentials | None = None
    """The client certificate for qemu+tls. Unset: the operator's own default."""
    pools: Annotated[tuple[HostPool, ...], Field(max_length=64), map_by("name")] = ()
    """Storage pools that virtual machines may use, by logical name."""
    networks: Annotated[tuple[HostNetwork, ...], Field(max_length=64), map_by("name")] = ()
    """Networks that virtual machines may use, by logical name."""
    acceleration: Literal["KVM", "Emulation"] = "KVM"
    """How guests' CPUs run: KVM, or Emulation (slow). A host without KVM is never fallen back to Emulation silently."""
    overcommit: Overcommit = Overcommit()
    """How many virtual CPUs and how much guest memory may be placed here."""
    reserved_memory: Quantity = "1Gi"
    """Memory of the host that no virtual machine is promised."""
    maintenance: Literal["Off", "Cordon", "Evacuate"] = "Off"
    """Cordon: no virtual machine is newly placed here; those that are here stay and are kept as they should be.
    Evacuate: as Cordon, and those that run here are moved away by live migrations; what cannot be moved runs
    on, or is shut down if its own spec.evacuation says so."""
    migration: HostMigration = HostMigration()
    """How this host takes part in live migrations."""
    out_of_service: OutOfService | None = None
    """Set only when the host is surely off: its virtual machines may then be started on other hosts."""
    host_uuid: UUID | None = None
    """The libvirt host UUID that must answer at uri. Unset: that of the first contact. Set it to replace a host."""


class Capacity(Model):
    """What the host has."""

    cpus: Count | None = None
    """CPUs of the host."""
    memory_mib: Count | None = None
    """Memory of the host in MiB."""


class Allocated(Model):
    """What is promised to virtual machines that are or may be on the host."""

    cpus: Count | None = None
    """Virtual CPUs."""
    memory_mib: Count | None = None
    """Guest memory in MiB."""
    domains: Count | None = None
    """Number of virtual machines."""


class PoolStatus(Model):
    """A pool as the host shows it."""

    name: Label
    """The logical name of the pool in spec.pools."""
    pool: Line | None = None
    """The name of the storage pool on the host."""
    active: Literal["Active", "Inactive", "Missing", "Unknown"] | None = None
    """Whether the host has the pool, started; Unknown while the host cannot be asked."""
    capacity_mib: Count | None = None
    """Size of the pool in MiB."""


class NetworkStatus(Model):
    """A network as the host shows it."""

    name: Label
    """The logical name of the network in spec.networks."""
    present: Literal["Present", "Missing", "Unknown"] | None = None
    """Whether the host has it, started; Unknown while that cannot be asked."""


class Orphan(Model):
    """A domain with this cluster's mark whose virtual machine is not there. It is reported, and not touched."""

    uuid: UUID
    """The domain's UUID."""
    name: Line | None = None
    """The domain's name on the host."""
    namespace: Word | None = None
    """Namespace of the virtual machine that the domain was made for."""
    vm: Annotated[str, Field(max_length=253)] | None = None
    """Name of the virtual machine that the domain was made for."""
    since: Time | None = None
    """When it was first seen without its virtual machine."""


class BlockedVM(Model):
    """A virtual machine that does not leave the host."""

    vm: Annotated[str, Field(max_length=317)]
    """The virtual machine, as NAMESPACE/NAME."""
    reason: Word
    """Why, in one word: a reason of the virtual machine's condition Migratable, or of its last migration."""
    message: Line | None = None
    """Why, in a sentence."""


class EvacuationStatus(Model):
    """How far spec.maintenance Evacuate is."""

    since: Time | None = None
    """When it was first seen to be wanted."""
    moved: Count | None = None
    """Virtual machines that have been moved away since."""
    moving: Count | None = None
    """Virtual machines that are on their way, or queued to be."""
    remaining: Count | None = None
    """Virtual machines that still run here, or are to, the moving and the blocked ones among them."""
    shut_off: Count | None = None
    """Virtual machines that are off for it, because their spec.evacuation is ShutOff."""
    blocked: Annotated[tuple[BlockedVM, ...], Field(max_length=100), map_by("vm")] = ()
    """Virtual machines that do not leave, and why; at most 100 are listed."""


class HypervisorStatus(Model):
    """The host as last seen."""

    observed_generation: Count | None = None
    """The metadata.generation that this status was decided on."""
    host_uuid: UUID | None = None
    """The libvirt host UUID, pinned at first contact: another host that answers at uri is not believed."""
    state: Word | None = None
    """The host's state in one word."""
    reason: Word | None = None
    """Why it is in this state, in one word; the Ready condition has the sentence."""
    since: Time | None = None
    """When state last changed."""
    next: Word | None = None
    """What happens next, or who has to act, in one word."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16), map_by("type")] = ()
    """Ready, and each aspect of it, with sentences."""
    last_heard: Time | None = None
    """When the host last answered, written when it stops answering or voids spec.outOfService, which is valid only from
    then on."""
    hostname: Line | None = None
    """The name the host gives itself."""
    libvirt_version: Word | None = None
    """Version of libvirt on the host."""
    qemu_version: Word | None = None
    """Version of QEMU on the host."""
    capacity: Capacity | None = None
    """What the host has."""
    allocated: Allocated | None = None
    """What is promised to virtual machines that are or may be on the host."""
    cpu_models: Annotated[tuple[Word, ...], Field(max_length=200), ATOMIC] = ()
    """Named CPU models that the host can run."""
    pools: Annotated[tuple[PoolStatus, ...], Field(max_length=64), map_by("name")] = ()
    """The pools of the spec as the host shows them."""
    networks: Annotated[tuple[NetworkStatus, ...], Field(max_length=64), map_by("name")] = ()
    """The networks of the spec as the host shows them."""
    foreign_domains: Count | None = None
    """Domains on the host that are not this cluster's. They are counted in placement, and not touched."""
    orphans: Annotated[tuple[Orphan, ...], Field(max_length=100), map_by("uuid")] = ()
    """Domains with this cluster's mark whose virtual machine is not there; at most 100 are listed."""
    holds: Annotated[tuple[Annotated[str, Field(max_length=317)], ...], Field(max_length=100), SET] = ()
    """The virtual machines, as NAMESPACE/NAME, that the deletion waits for; at most 100 are listed."""
    evacuation: EvacuationStatus | None = None
    """How far spec.maintenance Evacuate is; unset when it is not wanted."""


class Hypervisor(Resource):
    """A libvirt host on which virtual machines are kept in their declared state."""

    plural = "hypervisors"
    short_name = "hv"
    scope = "Cluster"
    columns = (
        Column("State", ".status.state"),
        Column("Reason", ".status.reason"),
        Column("Since", ".status.since", "date"),
        Column("Next", ".status.next"),
        Column("VMs", ".status.allocated.domains", "integer"),
        Column("URI", ".spec.uri", wide=True),
        Column("Age", ".metadata.creationTimestamp", "date", wide=True),
    )
    rules: ClassVar[tuple[Rule, ...]] = (name_fits("Hypervisor"),)

    spec: HypervisorSpec
    """The host, how to reach it, and what of it virtual machines may use."""
    status: HypervisorStatus = HypervisorStatus()
    """The host as last seen."""
