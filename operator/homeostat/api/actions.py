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
