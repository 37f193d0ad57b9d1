# SPDX-License-Identifier: Apache-2.0
"""VirtualMachineMigration: one attempt to move a running VM to another host, and what was seen of it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from homeostat.api.markers import ATOMIC, SET, Column, Rule, map_by
from homeostat.api.meta import (
    UUID,
    Condition,
    Count,
    Enabled,
    HostName,
    Integer,
    LibvirtName,
    Line,
    Message,
    Model,
    Resource,
    Time,
    Word,
    name_fits,
)
from homeostat.api.migration_policy import EffectivePolicy, MigrationPolicy
from homeostat.api.virtualmachine_spec import DeviceName, HostSelector

Evidence = Annotated[str, Field(min_length=16, max_length=16, pattern=r"^[0-9a-f]{16}$")]
MOST_CHECKPOINTS = 256
IMMUTABLE = ("vmRef", "target", "policy", "storageCopy", "ttlSecondsAfterFinished")


class VMRef(Model):
    """The VM to be moved."""

    name: HostName
    """Name of the VirtualMachine, in the migration's namespace."""


class MigrationTarget(Model):
    """Where the VM is to go."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.host) != has(self.hostSelector)",
            "target is either a host or a hostSelector; leave target out to have a host chosen",
            lambda self: (self.host is None) != (self.host_selector is None),
        ),
    )

    host: HostName | None = None
    """Name of the Hypervisor."""
    host_selector: HostSelector | None = None
    """Labels of the Hypervisors that will do."""


class StorageCopy(Model):
    """Disks that are copied because the target does not have their storage."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.type == 'None') == (!has(self.disks) || size(self.disks) == 0)",
            "type Full and Incremental need disks, and type None has none: a disk that is not named is never copied",
            lambda self: (self.type == "None") == (not self.disks),
            path="disks",
        ),
    )

    type: Literal["None", "Full", "Incremental"] = "None"
    """None: no disk is copied. Full: whole disks. Incremental: what is in the disk above its image."""
    disks: Annotated[tuple[DeviceName, ...], Field(max_length=64), SET] = ()
    """Names of the disks to copy, as in the VM's spec.disks. None may be on storage that the target shares."""


class Resolve(Model):
    """A person's answer to an Ambiguous migration."""

    keep: Literal["KeepSource", "KeepTarget"]
    """Which host's copy of the VM is to stay: the other one's process is ended, and its definition removed."""
    evidence: Evidence
    """status.decision.evidence that this answers: it counts for just what was seen then."""


def _fixed(alias: str) -> str:
    return f"has(self.{alias}) == has(oldSelf.{alias}) && (!has(self.{alias}) || self.{alias} == oldSelf.{alias})"


class VirtualMachineMigrationSpec(Model):
    """What is to be moved, where to and how. It cannot be changed, but for abort and resolve."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            " && ".join(_fixed(alias) for alias in IMMUTABLE),
            "a migration is one attempt and cannot be changed: make another VirtualMachineMigration",
        ),
        Rule(
            "!has(oldSelf.abort) || (has(self.abort) && self.abort == oldSelf.abort)",
            "abort cannot be taken back: make another VirtualMachineMigration",
            path="abort",
        ),
        Rule(
            "!has(oldSelf.resolve) || (has(self.resolve) && (self.resolve == oldSelf.resolve"
            " || self.resolve.evidence != oldSelf.resolve.evidence))",
            "resolve answers an evidence once: only another status.decision.evidence can have another answer",
            path="resolve",
        ),
    )

    vm_ref: VMRef
    """The VM to be moved. It has to run."""
    target: MigrationTarget | None = None
    """Where the VM is to go. Unset: to the host with the most free memory among those that fit."""
    policy: MigrationPolicy | None = None
    """How it is moved. What is unset comes from the source's spec.migration.policy, then from the operator's
    --migration-policy, then from the built-in default."""
    storage_copy: StorageCopy | None = None
    """Disks that are copied. Unset: none; every disk has to be on storage that both hosts share."""
    ttl_seconds_after_finished: Annotated[Integer, Field(ge=0, le=31536000)] = 86400
    """How long this object stays after the migration has ended. An Ambiguous one stays until it is resolved."""
    abort: Literal["Requested"] | None = None
    """Requested: stop, and leave the VM running on one host. What can no longer be stopped says so and is finished."""
    resolve: Resolve | None = None
    """The answer to condition Ambiguous: which copy to keep. Each evidence can be answered once."""


class DiskCopyStatus(Model):
    """A disk that is copied, and the volume that is made for it on the target."""

    disk: DeviceName
    """Name of the disk in the VM's spec.disks."""
    volume: LibvirtName
    """Name of its volume, on the source and on the target alike."""
    source_pool: LibvirtName
    """The libvirt pool that has the volume on the source."""
    target_pool: LibvirtName
    """The libvirt pool that is to have it on the target."""
    format: Word
    """The volume's format."""
    size_bytes: Count
    """The disk's virtual size, in bytes."""
    backing: Line | None = None
    """Path of the image under the disk, the same on both hosts."""
    backing_format: Word | None = None
    """The format of the image under the disk."""


class IntentStatus(Model):
    """What was about to be done, written down before it was: it cannot be read back from a host."""

    source: HostName
    """Name of the Hypervisor that the VM was to leave."""
    source_uuid: UUID
    """The libvirt host UUID of the source."""
    target: HostName
    """Name of the Hypervisor that the VM was to go to."""
    target_uuid: UUID
    """The libvirt host UUID of the target."""
    attempt: Word
    """Names this attempt: the UID of this object."""
    domain_uuid: UUID
    """UUID of the domain that is moved."""
    time: Time
    """When this was written."""
    started_paused: Enabled = "Disabled"
    """Whether the target leaves the guest's CPUs stopped for the operator to let them run (switchover Confirmed)."""
    locks: Literal["Effective", "None"] = "None"
    """Whether all disks are on pools whose locks keep a second process from running, as their Hypervisors declare."""
    post_copy: Enabled = "Disabled"
    """Whether QEMU was prepared for post-copy."""
    copies: Annotated[tuple[DiskCopyStatus, ...], Field(max_length=64), map_by("disk")] = ()
    """The disks that are copied."""
    port: Count | None = None
    """The one of the target's spec.migration.ports that its QEMU takes memory on."""


class ObservationStatus(Model):
    """One host's side of the migration, as seen."""

    answer: Literal["Present", "Absent", "Unknown", "OutOfService"]
    """Whether the host has the domain. Unknown: it could not be asked. OutOfService: declared so, and silent since."""
    state: Word | None = None
    """The state that libvirt shows."""
    reason: Word | None = None
    """The reason that libvirt gives for it."""
    job: Word | None = None
    """The job libvirt has with it: Out, In, Other; None when there is none, Unknown when it did not say."""
    definition: Literal["Persistent", "Transient"] | None = None
    """Whether the host would keep the domain when it goes off."""
    since: Time
    """When the host was first seen to say this."""


class DecisionStatus(Model):
    """The row of the decision table (docs/migration.md) that was last decided on, and what it rests on."""

    row: Word
    """Number of the row; none when no row fits."""
    owner: Literal["Source", "Target", "Nobody", "Libvirt", "Both", "Unknown"]
    """Whose copy of the VM is the one that counts."""
    since: Time
    """When this pair of observations was first seen. What ends a process waits until it has held for a while."""
    evidence: Evidence
    """Names this pair of observations; spec.resolve has to repeat it."""
    source: ObservationStatus
    """What was seen on the source."""
    target: ObservationStatus
    """What was seen on the target."""


class CheckpointStatus(Model):
    """libvirt's metadata of a checkpoint, which is lost with the source's definition."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the checkpoint, one of its domain's."""
    xml: Annotated[str, Field(max_length=4096)]
    """Its XML without that of the domain, as `virsh checkpoint-create --redefine` takes it."""


class MarksStatus(Model):
    """What was done that a host does not show. Each is written before it is done, but for frozen."""

    not_asked: Time | None = None
    """Since when it is certain that libvirt was not asked: written with the intent, taken away before the call."""
    asked: Time | None = None
    """When libvirt was last asked to migrate."""
    aborted: Time | None = None
    """When libvirt was asked to stop."""
    frozen: Time | None = None
    """When the source's CPUs were stopped because both hosts ran the VM."""
    ended_source: Time | None = None
    """When the source's process, which had not run since the switchover, was ended for the target to go on."""
    force_completed: Time | None = None
    """When the source's CPUs were stopped for the copy to catch up."""
    post_copy: Time | None = None
    """When it was switched to post-copy."""
    timed_out: Word | None = None
    """The time-out that has passed: Completion or Progress."""
    resolved: Resolve | None = None
    """The answer in spec.resolve that is being carried out."""
    resolved_heard: Time | None = None
    """When that answer was accepted, if the host of the other copy answered then: only so is a process there ended."""
    volume_made: Time | None = None
    """When a host was last asked to make a volume for a storage copy."""
    volume_removed: Time | None = None
    """When a host was last asked to remove a volume that was in the way of a storage copy or that one had left."""
    target_ran: Time | None = None
    """When the target was found to have run the VM although the source runs: its copy of the disks is kept."""
    not_prepared: Message | None = None
    """Why the target's volumes could not be made ready for a storage copy."""
    checkpoints: Annotated[tuple[CheckpointStatus, ...], Field(max_length=MOST_CHECKPOINTS), ATOMIC] = ()
    """What libvirt on the source had metadata of when it was asked to migrate, parents first."""


class ProgressStatus(Model):
    """How far the copy is, written every few seconds."""

    percent: Count | None = None
    """How much of the memory has been copied and not been written to since, in percent."""
    remaining_mib: Count | None = None
    """What is left to copy, in MiB."""
    dirty_mib_per_second: Count | None = None
    """How fast the guest writes to memory, in MiB a second."""
    bandwidth_mib_per_second: Count | None = None
    """How fast memory is copied, in MiB a second."""
    downtime_limit_milliseconds: Count | None = None
    """How long the guest may stand still at the switchover, as of now."""
    iteration: Count | None = None
    """How many times memory has been gone through."""
    elapsed_seconds: Count | None = None
    """How long it has taken so far."""


class CostStatus(Model):
    """What the attempt cost, as far as libvirt said."""

    transferred_mib: Count | None = None
    """What was sent, in MiB."""
    downtime_milliseconds: Count | None = None
    """How long the guest stood still."""
    total_seconds: Count | None = None
    """How long it took from the request to the end."""


class VirtualMachineMigrationStatus(Model):
    """What was seen."""

    observed_generation: Count | None = None
    """The metadata.generation that this status was decided on."""
    phase: Word | None = None
    """Where it is in one word, for printing; the conditions say what holds."""
    reason: Word | None = None
    """Why it is there, in one word."""
    since: Time | None = None
    """When phase or reason last changed."""
    source: HostName | None = None
    """Name of the Hypervisor that the VM leaves."""
    target: HostName | None = None
    """Name of the Hypervisor that the VM goes to."""
    intent: IntentStatus | None = None
    """What was about to be done, written down before it was."""
    policy: EffectivePolicy | None = None
    """The policy that it is carried out by, with all defaults filled in."""
    marks: MarksStatus | None = None
    """What was done that a host does not show."""
    decision: DecisionStatus | None = None
    """The row of the decision table that was last decided on, and the observations it rests on."""
    progress: ProgressStatus | None = None
    """How far the copy is."""
    cost: CostStatus | None = None
    """What the attempt cost."""
    start_time: Time | None = None
    """When the migration was first seen to be under way."""
    completion_time: Time | None = None
    """When the attempt was seen to have ended."""
    last_message: Message | None = None
    """What libvirt said last. It decides nothing."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16), map_by("type")] = ()
    """Finished, Succeeded (Unknown until the end), Ambiguous and Queued, with sentences."""


class VirtualMachineMigration(Resource):
    """One attempt to move a running VM to another host."""

    plural = "virtualmachinemigrations"
    short_name = "vmmig"
    scope = "Namespaced"
    columns = (
        Column("Phase", ".status.phase"),
        Column("Source", ".status.source"),
        Column("Target", ".status.target"),
        Column("%", ".status.progress.percent", "integer"),
        Column("MiB", ".status.progress.remainingMiB", "integer"),
        Column("Dirty", ".status.progress.dirtyMiBPerSecond", "integer"),
        Column("Limit", ".status.progress.downtimeLimitMilliseconds", "integer"),
        Column("Secs", ".status.progress.elapsedSeconds", "integer"),
        Column("VM", ".spec.vmRef.name", wide=True),
        Column("Reason", ".status.reason", wide=True),
        Column("Row", ".status.decision.row", wide=True),
        Column("Age", ".metadata.creationTimestamp", "date", wide=True),
    )
    selectable = (".spec.vmRef.name", ".status.phase")
    rules: ClassVar[tuple[Rule, ...]] = (name_fits("VirtualMachineMigration"),)

    spec: VirtualMachineMigrationSpec
    """What is to be moved, where to and how."""
    status: VirtualMachineMigrationStatus = VirtualMachineMigrationStatus()
    """What was seen."""
