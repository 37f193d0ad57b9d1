# SPDX-License-Identifier: Apache-2.0
"""What other kinds say of live migrations: a Hypervisor how they are carried out, a VM that it is in one."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from homeostat.api.markers import Rule
from homeostat.api.meta import Enabled, HostName, Integer, Model, Quantity, Time, Word, between

MULTIFD_COMPRESSION = ("Zlib", "Zstd")
SWITCHING = ("PostCopy", "Auto")
"""Modes in which QEMU is prepared for post-copy from the start."""


class MigrationPolicy(Model):
    """How a VM is moved. What is unset: as the source's Hypervisor, the operator's settings, or a default say."""

    rules: ClassVar[tuple[Rule, ...]] = (
        between("1Mi", "1Ti", "bandwidth", "bandwidth"),
        Rule(
            "!has(self.onTimeout) || !has(self.mode) || self.onTimeout != 'PostCopy' || self.mode != 'PreCopy'",
            "onTimeout PostCopy needs mode PostCopy or Auto: QEMU is prepared for post-copy before the first byte",
            lambda self: self.on_timeout != "PostCopy" or self.mode != "PreCopy",
            path="onTimeout",
        ),
        Rule(
            "!has(self.autoConverge) || !has(self.mode) || self.autoConverge != 'Enabled' || self.mode != 'PostCopy'",
            "autoConverge is for pre-copy: mode PostCopy does not slow the guest down, it moves it early",
            lambda self: self.auto_converge != "Enabled" or self.mode != "PostCopy",
            path="autoConverge",
        ),
        Rule(
            "!has(self.parallelConnections) || !has(self.mode) || self.parallelConnections == 1"
            " || self.mode == 'PreCopy'",
            "parallelConnections above 1 needs mode PreCopy: QEMU does not do post-copy over several connections",
            lambda self: (self.parallel_connections or 1) == 1 or self.mode in (None, "PreCopy"),
            path="parallelConnections",
        ),
        Rule(
            "!has(self.compression) || !(self.compression in ['Zlib', 'Zstd'])"
            " || (has(self.parallelConnections) && self.parallelConnections > 1)",
            "compression Zlib and Zstd need parallelConnections of at least 2",
            lambda self: self.compression not in MULTIFD_COMPRESSION or (self.parallel_connections or 1) > 1,
            path="compression",
        ),
        Rule(
            "!has(self.compression) || self.compression != 'XBZRLE' || !has(self.parallelConnections)"
            " || self.parallelConnections == 1",
            "compression XBZRLE works on one connection only: leave parallelConnections out",
            lambda self: self.compression != "XBZRLE" or (self.parallel_connections or 1) == 1,
            path="compression",
        ),
    )

    mode: Literal["PreCopy", "PostCopy", "Auto"] | None = None
    """PreCopy (the default): memory is copied while the guest runs on the source. PostCopy: after one pass the guest
    runs on the target and fetches the rest. Auto: as PreCopy, and PostCopy when that does not converge."""
    bandwidth: Quantity | None = None
    """At most this much a second, such as 100Mi. Unset: no limit."""
    max_downtime_milliseconds: Annotated[Integer, Field(ge=1, le=2000000)] | None = None
    """How long the guest may stand still at the switchover; reached in steps. Default 500."""
    completion_timeout_seconds_per_gib: Annotated[Integer, Field(ge=1, le=86400)] | None = None
    """How long it may take for each GiB of memory (and of disks to be copied), counted as at least 2. Default 150."""
    progress_timeout_seconds: Annotated[Integer, Field(ge=1, le=86400)] | None = None
    """How long what is left to copy may fail to get less. Default 150."""
    on_timeout: Literal["Abort", "ForceComplete", "PostCopy"] | None = None
    """What to do when a time-out has passed. Abort (the default of PreCopy): stay on the source. ForceComplete: switch
    over whatever the downtime. PostCopy (the default of PostCopy and Auto): let the guest run on the target and fetch
    the rest."""
    auto_converge: Enabled | None = None
    """Slow the guest's CPUs down when it writes faster than memory is copied. Default: Enabled with mode Auto on a
    target that cannot do post-copy, otherwise Disabled."""
    parallel_connections: Annotated[Integer, Field(ge=1, le=64)] | None = None
    """Connections that memory is copied over. Default 1."""
    compression: Literal["None", "XBZRLE", "Zlib", "Zstd"] | None = None
    """How memory is compressed on the way. Default None."""
    tls: Enabled | None = None
    """Whether memory is encrypted on the way. Default: what the target's spec.migration.tls says."""
    switchover: Literal["Automatic", "Confirmed"] | None = None
    """Who lets the guest run on the target. Automatic (the default): libvirt. Confirmed: the operator, after it has
    seen that the source is gone; for storage without effective locks, at the cost of a longer downtime."""


class EffectivePolicy(Model):
    """The policy that a migration is carried out by: every field has a value."""

    mode: Literal["PreCopy", "PostCopy", "Auto"] = "PreCopy"
    """Whether the guest may run on the target before all memory is there."""
    bandwidth: Quantity | None = None
    """At most this much a second; unset: no limit."""
    max_downtime_milliseconds: Integer = 500
    """How long the guest may stand still at the switchover."""
    completion_timeout_seconds_per_gib: Integer = 150
    """How long it may take for each GiB, counted as at least 2."""
    progress_timeout_seconds: Integer = 150
    """How long what is left to copy may fail to get less."""
    on_timeout: Literal["Abort", "ForceComplete", "PostCopy"] = "Abort"
    """What is done when a time-out has passed."""
    auto_converge: Enabled = "Disabled"
    """Whether the guest's CPUs are slowed down when it writes faster than memory is copied."""
    parallel_connections: Integer = 1
    """Connections that memory is copied over."""
    compression: Literal["None", "XBZRLE", "Zlib", "Zstd"] = "None"
    """How memory is compressed on the way."""
    tls: Enabled = "Disabled"
    """Whether memory is encrypted on the way."""
    switchover: Literal["Automatic", "Confirmed"] = "Automatic"
    """Who lets the guest run on the target: libvirt, or the operator."""


class MigrationInFlight(Model):
    """The migration that the VM is in."""

    name: HostName
    """Name of the VirtualMachineMigration."""
    uid: Word
    """UID of that object."""
    source: HostName
    """Name of the Hypervisor that the VM leaves."""
    target: HostName
    """Name of the Hypervisor that the VM goes to."""
    since: Time
    """When it began."""
