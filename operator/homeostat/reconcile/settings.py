# SPDX-License-Identifier: Apache-2.0
"""What can be set; the defaults are the shipped ones, drills shorten them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from homeostat.api.migration_policy import MigrationPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    """All in seconds, but the numbers of workers, calls and migrations, and the policy."""

    resync_seconds: float = 600.0
    host_resync_seconds: float = 30.0
    sweep_seconds: float = 600.0
    connect_timeout_seconds: float = 10.0
    reconnect_seconds: float = 30.0
    keepalive_interval_seconds: int = 5
    keepalive_count: int = 3
    call_deadline_seconds: float = 60.0
    api_timeout_seconds: float = 30.0
    vm_workers: int = 256
    """VMs that are looked at at once: so many that those of a host that falls silent leave some for the others."""
    migration_workers: int = 32
    migrations: int = 10
    """How many VMs may be on their way at once in the whole cluster."""
    host_calls: int = 8
    settle_seconds: float = 5.0
    """How long a passing state of a VM may last before it is written down."""
    hypervisor_write_seconds: float = 10.0
    """The least time between two writes of one Hypervisor's status that only change figures."""
    migration_grace_seconds: float = 60.0
    """For how long the same has to be seen on both hosts before a migration ends a process or removes a definition."""
    migration_resume_seconds: float = 30.0
    """The least time between two attempts to go on with a migration that broke in post-copy."""
    migration_write_seconds: float = 5.0
    """The least time between two writes of one migration's status that only change its progress; it grows with the time
    that the copy has taken (decide.migration_policy.progress_due)."""
    secret_resync_seconds: float = 60.0
    """How long a changed credentials Secret may go unnoticed."""
    lease_seconds: int = 15
    migration_policy: MigrationPolicy | None = None
    """For all migrations, where neither they nor their source's Hypervisor say otherwise."""


COUNTS = ("vm_workers", "migration_workers", "migrations", "host_calls", "keepalive_count")
"""Settings that have to be at least 1."""


def numbers() -> dict[str, int | float]:
    """The settings that are numbers, by name, with their shipped defaults."""
    shipped = Settings()
    values = {field.name: getattr(shipped, field.name) for field in fields(Settings)}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
