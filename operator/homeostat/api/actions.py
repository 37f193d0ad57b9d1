# SPDX-License-Identifier: Apache-2.0
"""What can be done, one effect each: one mutating request to one host or to the API server.

The post-condition of each action is its second sentence. What an action returns decides nothing; its post-condition is
looked for in the next pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.api.observed import DomainConfig, Owner


@dataclass(frozen=True, slots=True)
class Candidate:
    """A host where a VM may be."""

    hypervisor: str
    uid: str
    host_uuid: str


@dataclass(frozen=True, slots=True)
class RecordCandidates:
    """Write status.candidates. Seen when the live object lists exactly these."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class AddFinalizer:
    """Add our finalizer. Seen when the live object has it."""


@dataclass(frozen=True, slots=True)
class RemoveFinalizer:
    """Remove our finalizer. Seen when the object is gone, or lacks it."""


@dataclass(frozen=True, slots=True)
class CreateVolume:
    """Create a volume. Seen when the pool has a volume of this name.

    capacity is in bytes (None: that of the backing file); backing is (path, format) or None.
    """

    host: str
    pool: str
    name: str
    format: str
    capacity: int | None
    backing: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class DeleteVolume:
    """Delete a volume. Seen when the refreshed pool has no volume of this name."""

    host: str
    pool: str
    name: str


@dataclass(frozen=True, slots=True)
class Define:
    """Define the domain, or redefine it keeping device addresses.

    Seen when the persistent definition shows config and owner.
    """

    host: str
    uuid: str
    name: str
    config: DomainConfig
    owner: Owner


@dataclass(frozen=True, slots=True)
class Mark:
    """Write our metadata element into the live or the persistent definition.

    Seen when that definition shows this owner.
    """

    host: str
    uuid: str
    owner: Owner
    live: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Start the defined domain. Seen when the domain is active."""

    host: str
    uuid: str
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Ask the guest to power off, by its agent (if that is connected) or by ACPI. Seen when the domain is off."""

    host: str
    uuid: str
    agent: bool = False


@dataclass(frozen=True, slots=True)
class Destroy:
    """End the QEMU process. Seen when the domain is off."""

    host: str
    uuid: str


@dataclass(frozen=True, slots=True)
class Suspend:
    """Stop the guest's CPUs. Seen when the domain is paused by a user."""

    host: str
    uuid: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Let the guest's CPUs run. Seen when the domain is running."""

    host: str
    uuid: str


@dataclass(frozen=True, slots=True)
class DiscardManagedSave:
    """Remove the managed-save image. Seen when the domain has none."""

    host: str
    uuid: str


@dataclass(frozen=True, slots=True)
class Undefine:
    """Remove the persistent definition of a domain that is off. Seen when the host has no such domain."""

    host: str
    uuid: str


HostAction = (
    CreateVolume
    | DeleteVolume
    | Define
    | Mark
    | Start
    | Shutdown
    | Destroy
    | Suspend
    | Resume
    | DiscardManagedSave
    | Undefine
)
ObjectAction = RecordCandidates | AddFinalizer | RemoveFinalizer
Action = HostAction | ObjectAction


# Of migrations. `host` is where it is done; the source, but for what is done to the target's copy.


@dataclass(frozen=True, slots=True)
class Migrate:
    """Have the source's libvirt move a running domain, peer to peer. Seen in both hosts' states and jobs only.

    `peer` is the target's libvirt as the source's daemon reaches it, `address` and `port` (0: the target chooses) where
    its QEMU sends memory to. `compression` is in libvirt's word, `connections` are parallel ones, bandwidth is in MiB a
    second: 0 and "" ask for none. `copy_disks` are the aliases of the disks to be copied, `copy` None, Full or
    Incremental.
    """

    host: str
    uuid: str
    peer: str
    address: str = ""
    port: int = 0
    tls: bool = False
    post_copy: bool = False
    auto_converge: bool = False
    connections: int = 0
    compression: str = ""
    bandwidth_mib: int = 0
    max_downtime_ms: int = 500
    start_paused: bool = False
    copy: str = "None"
    copy_disks: tuple[str, ...] = ()
    unsafe: bool = False


@dataclass(frozen=True, slots=True)
class ResumePostCopy:
    """Have libvirt go on with a migration that broke in post-copy. Seen when neither side is PostcopyFailed."""

    request: Migrate


@dataclass(frozen=True, slots=True)
class AbortMigration:
    """Ask libvirt to stop. Seen when the source runs without a job and the target has no process."""

    host: str
    uuid: str


@dataclass(frozen=True, slots=True)
class SetMaxDowntime:
    """Set how long the guest may stand still at the switchover. Seen in the job's statistics."""

    host: str
    uuid: str
    milliseconds: int


@dataclass(frozen=True, slots=True)
class StartPostCopy:
    """Let the guest run on the target and fetch what is missing. Seen when the source is paused for post-copy."""

    host: str
    uuid: str


@dataclass(frozen=True, slots=True)
class DestroyStale:
    """End the process of the copy that does not count. Seen when the domain is off or gone.

    libvirt gives the disks back to their former owner when it does this (measured), although they are in use on the
    other host: who may open them there is to be looked at afterwards.
    """

    host: str
    uuid: str


@dataclass(frozen=True, slots=True)
class UndefineStale:
    """Remove the definition of the copy that does not count and is off. Seen when the host has no such domain."""

    host: str
    uuid: str


@dataclass(frozen=True, slots=True)
class PersistTarget:
    """Make what runs on the target its persistent definition. Seen when the domain there is persistent."""

    host: str
    uuid: str


@dataclass(frozen=True, slots=True)
class RedefineCheckpoint:
    """Give the target's domain the metadata of a checkpoint that the source's had. Seen when the domain there has it.

    libvirt takes it to its grave with the source's definition; the disk's file keeps the bitmap.
    """

    host: str
    uuid: str
    xml: str


MigrationAction = (
    Migrate
    | ResumePostCopy
    | AbortMigration
    | SetMaxDowntime
    | StartPostCopy
    | DestroyStale
    | UndefineStale
    | PersistTarget
    | RedefineCheckpoint
    | Suspend
    | Resume
    | CreateVolume
    | DeleteVolume
)
