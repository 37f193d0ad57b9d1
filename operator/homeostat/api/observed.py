# SPDX-License-Identifier: Apache-2.0
"""What was seen on hosts, in the words that `decide` reads.

Every observation is Present, Absent (proved by a fresh answer of the expected host) or Unknown. There is no fourth
answer and no default: whoever builds an observation has to say which of the three it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

RUNNING_STATES = frozenset({"Running", "Blocked", "ShuttingDown"})
"""States with the guest's CPUs running."""
ACTIVE_STATES = frozenset({"Running", "Blocked", "Paused", "ShuttingDown", "PMSuspended", "Crashed"})


@dataclass(frozen=True, slots=True)
class Owner:
    """Our metadata element in a domain: whose it is and what was asked of it last.

    `request` is the power request that the definition was last prepared for. `off` is how the last process was seen to
    have ended (a shutoff reason of libvirt, or "Halted" when the run strategy ended it), None while a process may
    exist. `was` is the shutoff reason libvirt showed when the definition was prepared: the same reason later proves
    nothing. `paused` says that we paused, or started paused, this domain; `probe` that it was started only to see
    whether an earlier process is still there.
    """

    cluster: str
    namespace: str
    name: str
    uid: str
    generation: int = 0
    request: str = ""
    off: str | None = None
    was: str | None = None
    paused: bool = False
    probe: bool = False


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """One disk of a domain. `owned` disks are volumes we created.

    Their owner and mode are ours, libvirt does not relabel.
    """

    alias: str
    path: str
    format: str
    bus: str = "virtio"
    serial: str = ""
    owned: bool = False
    backing: tuple[tuple[str, str], ...] = ()
    """(path, format) of each backing file, nearest first."""


@dataclass(frozen=True, slots=True)
class NicConfig:
    """One network interface of a domain.

    kind is Bridge, Network or OpenVSwitch; source the bridge's or network's name.
    """

    alias: str
    kind: str
    source: str
    mac: str
    model: str = "virtio"
    vlan: int | None = None


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """The part of a domain's XML that the spec of a VM decides. Paths are paths on the host."""

    memory_mib: int
    sockets: int
    cores: int
    threads: int
    cpu_model: str
    machine: str
    acceleration: str  # KVM | Emulation
    kernel: str = ""
    initrd: str = ""
    command_line: str = ""
    disks: tuple[DiskConfig, ...] = ()
    nics: tuple[NicConfig, ...] = ()
    console_log: str = ""
    agent: bool = False


@dataclass(frozen=True, slots=True)
class Traits:
    """What a domain has beside its configuration that a live migration minds.

    `caches` are (disk alias, cache mode) where one is set, `cdroms` the paths of media, `block_jobs` aliases of disks
    that are being copied or merged.
    """

    caches: tuple[tuple[str, str], ...] = ()
    host_devices: tuple[str, ...] = ()
    tpm: bool = False
    nvram: str = ""
    cdroms: tuple[str, ...] = ()
    block_jobs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """libvirt's metadata of one checkpoint: its name, and its XML without that of the domain.

    What was written since is kept in the disk's file, and stays there without the metadata.
    """

    name: str
    xml: str


@dataclass(frozen=True, slots=True)
class Domain:
    """One libvirt domain as last read. `live` is None for a domain that is off, `inactive` for a transient one."""

    uuid: str
    name: str
    state: str  # Running Blocked Paused ShuttingDown Shutoff Crashed PMSuspended NoState
    reason: str  # libvirt's reason in CamelCase: Booted, User, Shutdown, Destroyed, Crashed, Failed, Unknown, ...
    persistent: bool
    managed_save: bool = False
    autostart: bool = False
    snapshots: bool = False  # whether libvirt has metadata of any
    checkpoints: tuple[Checkpoint, ...] = ()
    """Those that libvirt has metadata of, parents first."""
    owner: Owner | None = None  # from the persistent definition (from the live one when transient)
    live_owner: Owner | None = None
    live: DomainConfig | None = None
    inactive: DomainConfig | None = None
    agent_connected: bool | None = None
    chains: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(disk alias, paths from top to base) as the live definition shows it, of the persistent one when off."""
    traits: Traits = Traits()

    @property
    def active(self) -> bool:
        """Whether a QEMU process is there, with its CPUs running or not."""
        return self.state in ACTIVE_STATES


@dataclass(frozen=True, slots=True)
class Present:
    """The host has this domain."""

    domain: Domain


@dataclass(frozen=True, slots=True)
class Absent:
    """The host, of the expected identity, answered that it has no such domain."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The host could not be asked.

    `reason` is a word (HostUnreachable, IdentityMismatch, ...), `message` a sentence.
    """

    reason: str
    message: str = ""
    since: datetime | None = None


Answer = Present | Absent | Unknown


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume in a pool as the host reports it."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Pool:
    """A libvirt pool: state is Active, Inactive, Missing or Unknown; path the folder its volumes are in.

    Sizes in bytes.
    """

    name: str
    state: str
    path: str = ""
    capacity: int = 0


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host says of itself, read once per connection and at each sweep."""

    host_uuid: str
    hostname: str
    libvirt_version: str  # "9.0.0"
    qemu_version: str  # "" when there is no QEMU
    cpus: int
    memory_mib: int
    kvm: bool = False
    cpu_models: tuple[str, ...] = ()
    default_cpu_model: str = ""
    """For the best acceleration the host advertises; emulated_* for guests that are to be emulated all the same."""
    emulated_cpu_models: tuple[str, ...] = ()
    emulated_cpu_model: str = ""
    disk_owner: tuple[int, int] = (0, 0)
    """uid and gid QEMU runs as (the DAC baselabel): who has to be able to open a disk."""
    pools: tuple[Pool, ...] = ()
    pools_known: bool = True
    """False when the host answered, but not in time about its storage: `pools` are those it told of before."""
    networks: tuple[str, ...] = ()
    """Active libvirt networks."""
    bridges: tuple[str, ...] = ()
    """Bridges of the host; empty when the host has no interface driver and they cannot be listed."""
    bridges_known: bool = False
    mtus: tuple[tuple[str, str, int], ...] = ()
    """(Bridge or Network, its name, MTU), where the host says."""


@dataclass(frozen=True, slots=True)
class HostAnswer:
    """What one Hypervisor's connection says, for every domain at once: the host informer's cache.

    `reachable` None: never asked yet. `since` is when reachability last changed, `heard` when the host last answered.
    """

    reachable: bool | None
    since: datetime | None = None
    heard: datetime | None = None
    reason: str = ""
    message: str = ""
    facts: HostFacts | None = None
    domains: dict[str, Domain] = field(default_factory=dict)  # by UUID


@dataclass(frozen=True, slots=True)
class Credentials:
    """Contents of a credentials Secret, by file name (ca.crt, tls.crt, tls.key). Never logged: repr shows no value."""

    files: dict[str, bytes] = field(default_factory=dict, repr=False)
