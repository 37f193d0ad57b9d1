# SPDX-License-Identifier: Apache-2.0
"""What a decision about a VM reads and what it says: the two ends of every function in this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from homeostat.api.actions import Action
from homeostat.api.hypervisor import HypervisorSpec
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.observed import Answer, HostFacts, Unknown


@dataclass(frozen=True, slots=True)
class Failure:
    """An action on a host that raised, in libvirt's words. It proves nothing; it explains what is then seen."""

    action: Action
    message: str


@dataclass(frozen=True, slots=True)
class HostView:
    """One Hypervisor as a decision about one VM sees it.

    `closed` says why no VM may be placed there now (reason, sentence), None when one may. `released` says that a person
    declared the host out of service and nothing was heard from it since. `awaited` says that the operator has just
    started, and that this host, which answered the one before, has neither answered nor failed to. `volumes` has the
    volume names of each pool that was looked at, or why it could not be; empty when nothing was looked at.
    """

    name: str
    uid: str
    spec: HypervisorSpec
    answer: Answer
    labels: Mapping[str, str] = field(default_factory=dict)
    host_uuid: str = ""
    facts: HostFacts | None = None
    name_holder: str | None = None
    closed: tuple[str, str] | None = None
    starts_blocked: tuple[str, str] | None = None
    released: bool = False
    awaited: bool = False
    free_cpus: int = 0
    free_memory_mib: int = 0
    volumes: Mapping[str, frozenset[str] | Unknown] = field(default_factory=dict)
    sizes: Mapping[tuple[str, str], int | Unknown] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VMView:
    """All that is known when a VM is decided on. `fresh`: the hosts in question were asked after the VM was read."""

    cluster: str
    hosts: Mapping[str, HostView]
    fresh: bool = False
    asked_seconds_ago: float | None = None
    failure: Failure | None = None
    addresses: tuple[tuple[str, str, str], ...] = ()
    """(interface in the guest, MAC, IP address) as the guest agent said last."""
    migration: VirtualMachineMigration | None = None
    """The migration in flight: it alone may touch the domain, on either host."""
    queued: bool = False
    """Whether a migration waits for its turn."""


@dataclass(frozen=True, slots=True)
class Look:
    """What has to be asked of hosts, now, before the decision can be made.

    The domain there, and volumes of `pools` on `pools_on`.
    """

    hosts: tuple[str, ...]
    pools_on: str | None = None
    pools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Say:
    """A reason (a row of api.reasons) and the details of this case: a sentence without its full stop."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to report, the one action to perform (or what to look at first), and when to look again (seconds)."""

    say: Say
    action: Action | None = None
    look: Look | None = None
    requeue_after: float | None = None
    failed: Failure | None = None
    """A failure that this decision took into account and that status.startFailures has to count."""
    settled: bool = False
    """The start failures counted so far are over."""
