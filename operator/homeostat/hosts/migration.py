# SPDX-License-Identifier: Apache-2.0
"""What a live migration is asked for, what is going on of one, and what an error of one says. No libvirt in here."""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.hosts.driver import (
    ARGUMENT_UNSUPPORTED,
    AUTH_FAILED,
    CONFIG_UNSUPPORTED,
    INVALID_ARG,
    MIGRATE_UNSAFE,
    NO_DOMAIN,
    NO_SUPPORT,
    OPERATION_ABORTED,
    RPC,
    SYSTEM_ERROR,
    HostError,
    HostUnreachable,
)

_REFUSALS = frozenset({ARGUMENT_UNSUPPORTED, CONFIG_UNSUPPORTED, INVALID_ARG, MIGRATE_UNSAFE, NO_DOMAIN, NO_SUPPORT})
_BEFORE = ("another migration job is already running", "migrate guest to the same host")
_NO_POST_COPY = "Postcopy is not supported"
_FROM_RPC = 7  # VIR_FROM_RPC


@dataclass(frozen=True, slots=True)
class MigrationRequest:
    """How a running domain is to be moved. The source's daemon does it, peer to peer, and needs nobody until the end.

    `peer` is the target's libvirt as the source's daemon reaches it, with its own credentials. `unsafe` tells libvirt
    not to check whether the disks are on shared storage: only for disks proved to be on the same storage.
    """

    peer: str
    migrate_uri: str = ""
    """Where QEMU connects to (tcp://ADDRESS[:PORT]); "" lets the target name itself."""
    tls: bool = False
    post_copy: bool = False
    """May be turned into post-copy by start_post_copy."""
    auto_converge: bool = False
    connections: int = 0
    """Parallel connections; 0 for the one of a plain migration."""
    compression: str = ""
    """xbzrle, zlib or zstd (the last two only with parallel connections); "" for none."""
    bandwidth_mib_s: int = 0
    """0 for libvirt's own limit, which is none. It does not hold in post-copy: `post_copy_mib_s` does."""
    post_copy_mib_s: int = 0
    max_downtime_ms: int = 300
    start_paused: bool = False
    """The target does not let the CPUs run; somebody has to resume them there."""
    copy: str = "None"
    """Storage: None | Full | Incremental, of `copy_disks` and no others."""
    copy_disks: tuple[str, ...] = ()
    """Aliases of the disks to be copied."""
    unsafe: bool = False

    def __post_init__(self) -> None:
        # libvirt takes an empty list of disks for every writable disk, shared ones too.
        if (self.copy == "None") != (not self.copy_disks):
            raise ValueError(f"storage copy {self.copy} of disks {self.copy_disks}")


@dataclass(frozen=True, slots=True)
class Out:
    """An outgoing migration is under way. Sizes in bytes, times in milliseconds."""

    processed: int = 0
    remaining: int = 0
    total: int = 0
    dirty_rate: int = 0
    """Pages a second."""
    page_size: int = 4096
    iteration: int = 0
    bytes_per_second: int = 0
    elapsed: int = 0
    max_downtime: int | None = None
    """The limit QEMU has now; None when it did not say."""


@dataclass(frozen=True, slots=True)
class In:
    """An incoming migration is under way."""


@dataclass(frozen=True, slots=True)
class Other:
    """A job that is no migration: a save, a dump, a backup, ..."""


Job = Out | In | Other
"""What libvirt is doing with a domain; None (no job) also for one that is off or not there."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a migration that has ended cost: bytes sent, and milliseconds that the guest stood still, if known."""

    transferred: int
    downtime: int | None = None


class MigrationRefused(HostError):
    """Refused before anything was begun, as far as libvirt's words go. No proof: both hosts have to be looked at."""


class PeerUnreachable(MigrationRefused):
    """The source's daemon could not connect to the target's."""


class PostCopyRefused(MigrationRefused):
    """The target's QEMU cannot do post-copy: its kernel does not let it have a userfaultfd."""


class MigrationAborted(HostError):
    """Somebody aborted it. No proof either."""


def classified(error: HostError) -> HostError:
    """An error of `migrate` by what it says; one that says nothing certain is returned as it is."""
    if isinstance(error, HostUnreachable):
        return error
    if error.code == OPERATION_ABORTED:
        return MigrationAborted(error.code, error.message, error.domain)
    if _NO_POST_COPY in error.message:
        return PostCopyRefused(error.code, error.message, error.domain)
    if _no_peer(error):
        return PeerUnreachable(error.code, error.message, error.domain)
    if error.code in _REFUSALS or any(words in error.message for words in _BEFORE):
        return MigrationRefused(error.code, error.message, error.domain)
    return error


def _no_peer(error: HostError) -> bool:
    """The source's daemon could not connect to the target's. The loss of that connection later has other words."""
    connecting = ("unable to connect", "Unable to resolve address", "Failed to connect")
    if "TLS" in error.message or "certificate" in error.message:
        return error.code in (SYSTEM_ERROR, RPC) or (error.code == AUTH_FAILED and error.domain == _FROM_RPC)
    return error.domain == _FROM_RPC and any(words in error.message for words in connecting)
