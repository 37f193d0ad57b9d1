# SPDX-License-Identifier: Apache-2.0
"""libvirt's numbers for states and reasons (virDomainState and its reasons, a stable part of its ABI) as words."""

from __future__ import annotations

_STATES = ("NoState", "Running", "Blocked", "Paused", "ShuttingDown", "Shutoff", "Crashed", "PMSuspended")
_REASONS: dict[str, tuple[str, ...]] = {
    "Running": (
        "Unknown", "Booted", "Migrated", "Restored", "FromSnapshot", "Unpaused", "MigrationCanceled", "SaveCanceled",
        "Wakeup", "Crashed", "Postcopy", "PostcopyFailed",
    ),
    "Paused": (
        "Unknown", "User", "Migration", "Save", "Dump", "IOError", "Watchdog", "FromSnapshot", "ShuttingDown",
        "Snapshot", "Crashed", "StartingUp", "Postcopy", "PostcopyFailed", "APIError",
    ),
    "ShuttingDown": ("Unknown", "User"),
    "Shutoff": (
        "Unknown", "Shutdown", "Destroyed", "Crashed", "Migrated", "Saved", "Failed", "FromSnapshot", "Daemon",
    ),
    "Crashed": ("Unknown", "Panicked"),
}  # fmt: skip


def words(state: int, reason: int) -> tuple[str, str]:
    """State and reason as in api.observed.Domain; a number this table does not have is "NoState" or "Unknown"."""
    name = _at(_STATES, state, "NoState")
    return name, _at(_REASONS.get(name, ()), reason, "Unknown")


def _at(table: tuple[str, ...], index: int, default: str) -> str:
    return table[index] if 0 <= index < len(table) else default
