# SPDX-License-Identifier: Apache-2.0
"""The port through which hosts are spoken to: libvirt's calls, one method each, as coroutines.

`libvirt_driver` implements it on libvirt-python; the simulation implements it in memory. Nothing above this file knows
which one it talks to, and a method that changes a host is exactly one mutating RPC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from homeostat.api.observed import Checkpoint, Credentials, HostFacts, Pool, Volume

if TYPE_CHECKING:
    from homeostat.hosts.migration import Cost, Job, MigrationRequest

# Error numbers of libvirt (virterror.h) that are told apart here; every other number is passed on as it is.
INTERNAL_ERROR, NO_SUPPORT, NO_CONNECT, INVALID_ARG, OPERATION_FAILED = 1, 3, 5, 8, 9
SYSTEM_ERROR, RPC, NO_DOMAIN, NO_STORAGE_POOL, NO_STORAGE_VOL = 38, 39, 42, 49, 50
OPERATION_INVALID, CONFIG_UNSUPPORTED, OPERATION_TIMEOUT, AUTH_FAILED = 55, 67, 68, 45
STORAGE_VOL_EXIST, AGENT_UNRESPONSIVE = 90, 86
ARGUMENT_UNSUPPORTED, OPERATION_ABORTED, MIGRATE_UNSAFE, OPERATION_UNSUPPORTED = 74, 78, 81, 84

__all__ = ["Connection", "Credentials", "DomainRow", "Driver", "Event", "HostError", "HostUnreachable", "NotBegun"]


class HostError(Exception):
    """An error of libvirt, in its own words. `code` and `domain` are libvirt's numbers (VIR_ERR_*, VIR_FROM_*)."""

    def __init__(self, code: int, message: str, domain: int = 0) -> None:
        super().__init__(message)
        self.code, self.message, self.domain = code, message, domain


class HostUnreachable(HostError):
    """The connection is not there, was lost, or did not answer in time.

    Whether the call was carried out is not known.
    """


class NotBegun(HostError):
    """The call was taken back before it began: the host was not asked."""


@dataclass(frozen=True, slots=True)
class DomainRow:
    """One domain of the bulk list. Words for state and reason as in api.observed.Domain."""

    uuid: str
    name: str
    state: str
    reason: str
    persistent: bool
    managed_save: bool = False
    autostart: bool = False
    snapshots: bool = False
    checkpoints: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """Something changed: look. `uuid` None: look at everything. Never decides anything."""

    uuid: str | None
    kind: str = ""


class Connection(Protocol):
    """One host, connected. Every method raises HostError, HostUnreachable once the connection is lost."""

    # Reads
    async def facts(self) -> HostFacts:
        """Identity, versions, capacity, pools and networks; a handful of calls whatever the number of domains."""

    async def domains(self) -> list[DomainRow]:
        """All domains, in a number of calls that does not depend on how many there are."""

    async def domain(self, uuid: str) -> DomainRow | None:
        """One domain, asked for now; None when libvirt says it has none (42)."""

    async def domain_named(self, name: str) -> str | None:
        """UUID of the domain of this name, asked for now; None when there is none."""

    async def xml(self, uuid: str, *, inactive: bool) -> str | None:
        """The live XML (the persistent one when off) or the persistent XML; None when the domain is gone.

        `inactive` of a transient domain returns what libvirt returns: its live definition.
        """

    async def job(self, uuid: str) -> Job | None:
        """What libvirt is doing with a domain, asked for now; None for nothing, also when it is off or not there.

        May wait for QEMU: asked of domains with a migration in flight only.
        """

    async def cost(self, uuid: str) -> Cost | None:
        """What the migration that brought a domain here cost; None once libvirt has forgotten, with any other job.

        The downtime is the difference between two hosts' clocks.
        """

    async def checkpoints(self, uuid: str) -> tuple[Checkpoint, ...] | None:
        """What libvirt has metadata of, parents first; None when the domain is gone. Waits for no job."""

    async def addresses(self, uuid: str) -> list[tuple[str, str, str]]:
        """(interface, MAC, IP address) the guest agent reports. May take long: the agent answers or does not."""

    async def pool(self, name: str) -> Pool:
        """State of a pool, asked for now. Missing is an answer, not an error."""

    async def volumes(self, pool: str, examined: frozenset[str] = frozenset()) -> list[Volume]:
        """Volumes of an active pool as libvirt has them cached. NO_STORAGE_POOL or OPERATION_INVALID otherwise.

        Those of `examined` (names) are left out when their file proves to be gone.
        """

    async def volume_size(self, pool: str, name: str) -> int:
        """Virtual size of a volume in bytes, as its file says now. NO_STORAGE_VOL when there is none."""

    # Effects
    async def refresh_pool(self, pool: str) -> None:
        """Make libvirt look at the pool's storage again."""

    async def create_volume(self, pool: str, xml: str) -> None:
        """Create a volume; STORAGE_VOL_EXIST when there is one of that name."""

    async def delete_volume(self, pool: str, name: str) -> None:
        """Delete a volume, in use or not: libvirt does not check."""

    async def define(self, xml: str) -> None:
        """Define or redefine a persistent domain (XML validated against libvirt's schema)."""

    async def create(self, uuid: str, *, paused: bool) -> None:
        """Start a defined domain."""

    async def shutdown(self, uuid: str, *, agent: bool) -> None:
        """Ask the guest to power off through its agent or ACPI. NotBegun: it was not asked, and may be again."""

    async def destroy(self, uuid: str) -> None:
        """End the process."""

    async def suspend(self, uuid: str) -> None:
        """Stop the CPUs."""

    async def resume(self, uuid: str) -> None:
        """Let the CPUs run."""

    async def undefine(self, uuid: str) -> None:
        """Remove the persistent definition with the metadata of checkpoints, keeping NVRAM and volumes.

        OPERATION_INVALID with a managed-save image.
        """

    async def set_metadata(self, uuid: str, element: str, *, live: bool) -> None:
        """Write our metadata element to the live or the persistent definition."""

    async def remove_managed_save(self, uuid: str) -> None:
        """Remove the managed-save image."""

    async def redefine_checkpoint(self, uuid: str, xml: str) -> None:
        """Give a domain the metadata of a checkpoint whose bitmaps its disks have; its parent has to be there."""

    # Live migration: asked of the source
    async def reach(self, uuid: str, peer: str) -> None:
        """Have this host's daemon connect to a peer as it would to migrate a domain, and do no more.

        PeerUnreachable with libvirt's words when it cannot. Takes as long as that: the domain has a job meanwhile, as
        it has while a migration connects.
        """

    async def migrate(self, uuid: str, request: MigrationRequest) -> None:
        """Move a running domain; returns when libvirt's call does, which may take hours and decides nothing.

        Given up on, it goes on: only abort_job ends it. MigrationRefused and MigrationAborted are HostErrors of it.
        """

    async def resume_post_copy(self, uuid: str, request: MigrationRequest) -> None:
        """Go on with a migration that failed in post-copy; as `migrate`."""

    async def abort_job(self, uuid: str) -> None:
        """Ask for the end of the job; OPERATION_INVALID when there is none, or in post-copy."""

    async def set_max_downtime(self, uuid: str, milliseconds: int) -> None:
        """Set for how long the guest may stand still at the switchover."""

    async def set_migration_speed(self, uuid: str, mib_s: int) -> None:
        """Limit the stream."""

    async def start_post_copy(self, uuid: str) -> None:
        """Have the guest run on the target before its memory is there; not without `post_copy` in the request."""

    def subscribe(self, on_event: Callable[[Event], None], on_close: Callable[[str], None]) -> None:
        """Have `on_event` called on the event loop for each event, `on_close` once when the connection is lost.

        With why.
        """

    async def close(self) -> None:
        """End the connection; calls under way end with HostUnreachable."""


class Driver(Protocol):
    """Opens connections."""

    async def open(self, uri: str, credentials: Credentials | None) -> Connection:
        """A connection that answers, or HostUnreachable with libvirt's words.

        May take as long as the host likes: wrap it.
        """
