# SPDX-License-Identifier: Apache-2.0
"""What a plan of a migration reads and what it says: the two ends of migration_plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from homeostat.api import actions as act
from homeostat.api.migration import IntentStatus, VirtualMachineMigration
from homeostat.api.migration_policy import EffectivePolicy, MigrationPolicy
from homeostat.api.observed import Domain
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide.migratable import Move
from homeostat.decide.migration_peers import Peers, Reach
from homeostat.decide.view import HostView, Say, VMView


@dataclass(frozen=True, slots=True)
class Look:
    """What to ask of hosts before the plan can be made: the VM's domain, volumes of the named pools of each, and sizes.

    `sizes` names (pool, volume) on the first of the hosts.
    """

    hosts: tuple[str, ...]
    pools: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to report (a row of reasons.MIGRATION), and at most one thing to do.

    `intent` and `policy` are written into status together. `source` and `target` are written while it is queued: they
    say where its turn counts.
    """

    say: Say
    source: str = ""
    target: str = ""
    intent: IntentStatus | None = None
    policy: EffectivePolicy | None = None
    action: act.AddFinalizer | act.CreateVolume | None = None
    look: Look | None = None
    reach: Reach | None = None
    requeue_after: float | None = 5.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """All hosts as this VM sees them, all migrations, and what holds for all of them.

    `most` is how many may be under way in the whole cluster.
    """

    view: VMView
    migrations: tuple[VirtualMachineMigration, ...]
    most: int
    now: datetime
    policy: MigrationPolicy | None = None
    """For all migrations, where neither they nor their source say otherwise."""
    reached: Mapping[Peers, str] = field(default_factory=dict)
    """Which daemons were seen to connect, and libvirt's words where one could not ("" where it could)."""


@dataclass(frozen=True, slots=True)
class Found:
    """The VM, where it runs, and the migration that is to move it."""

    migration: VirtualMachineMigration
    vm: VirtualMachine
    domain: Domain
    source: HostView
    fleet: Fleet

    def move(self, target: HostView) -> Move:
        """The move to this target."""
        copied = self.migration.spec.storage_copy.disks if self.migration.spec.storage_copy else ()
        return Move(self.vm, self.domain, self.source, target, frozenset(copied))
