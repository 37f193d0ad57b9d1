# SPDX-License-Identifier: Apache-2.0
"""Migrations, sides and views for the tests of their decisions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from homeostat.api import actions as act
from homeostat.api.migration import IntentStatus, VirtualMachineMigration
from homeostat.api.observed import Absent, Unknown
from homeostat.decide.migration import decide
from homeostat.decide.migration_case import MigrationDecision, MigrationView
from homeostat.decide.migration_table import OutOfService, Seen, Side, evidence

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GRACE = 60.0
UID = "11111111-1111-4111-8111-111111111111"
UUIDS = {"a": "00000000-0000-4000-8000-000000000000", "b": "00000000-0000-4000-8000-000000000001"}
REQUEST = act.Migrate("a", UID, "qemu+tcp://198.51.100.2/system")
INTENT: dict[str, Any] = {
    "source": "a",
    "sourceUUID": UUIDS["a"],
    "target": "b",
    "targetUUID": UUIDS["b"],
    "attempt": "attempt",
    "domainUUID": UID,
    "time": "2026-01-01T00:00:00Z",
}
SHORT, LONG = 1.0, GRACE + 1
BEGUN = {"startTime": "2026-01-01T00:00:00Z"}
DARK = Unknown("ConnectionLost", "no route to host")
GONE = Absent()
OUT = OutOfService()


def seen(text: str, job: str | None = None, **fields: Any) -> Seen:
    """Return a side that shows `State/Reason`."""
    state, reason = text.split("/")
    return Seen(state, reason, job, **fields)


RUNS = seen("Running/Booted")
CANCELED = seen("Running/MigrationCanceled")
COPIES = seen("Running/Booted", "Out")
HELD = seen("Paused/Migration")
SWITCHES = seen("Paused/Migration", "Out")
INCOMING = seen("Paused/Migration", "In", persistent=False)
ARRIVED = seen("Running/Migrated")
PAUSED = seen("Paused/User")
OFF = seen("Shutoff/Destroyed")
BROKEN, STRANDED = seen("Paused/PostcopyFailed", "Out"), seen("Running/PostcopyFailed", "In")


def migration(
    status: dict[str, Any] | None = None, intent: dict[str, Any] | None = None, meta: dict[str, Any] | None = None,
    **spec: Any,
) -> VirtualMachineMigration:  # fmt: skip
    """Return a migration of shop/web whose intent is on record."""
    metadata = {"name": "move", "namespace": "shop", "uid": "attempt", "generation": 1} | (meta or {})
    whole = {"intent": INTENT | (intent or {})} | (status or {})
    return VirtualMachineMigration.model_validate(
        {"metadata": metadata, "spec": {"vmRef": {"name": "web"}} | spec, "status": whole}
    )


def intent_of(of: VirtualMachineMigration) -> IntentStatus:
    """Return the intent, which is there."""
    assert of.status.intent is not None
    return of.status.intent


def view(source: Side, target: Side, age: float = 0.0, **fields: Any) -> MigrationView:
    """Return a view of a pair that has been seen for `age` seconds."""
    known: dict[str, Any] = {"since": NOW - timedelta(seconds=age), "now": NOW, "grace": GRACE, "request": REQUEST}
    return MigrationView(source, target, **(known | fields))


def decided(of: VirtualMachineMigration, known: MigrationView) -> MigrationDecision:
    """Return the decision about what is known."""
    return decide(of, intent_of(of), known)


def shown(source: Side, target: Side, age: float = LONG, *, begun: bool = True, **fields: Any) -> MigrationDecision:
    """Return the decision about a pair that has been seen for some time."""
    return decided(migration(BEGUN if begun else None, fields.pop("intent", None)), view(source, target, age, **fields))


def answered(source: Side, target: Side, keep: str, *, accepted: bool = True, age: float = LONG) -> MigrationDecision:
    """Return the decision when spec.resolve answers just what is seen."""
    answer = {"keep": keep, "evidence": evidence("attempt", source, target)}
    dropped = target if keep == "KeepSource" else source
    heard = {} if isinstance(dropped, Unknown | OutOfService) else {"resolvedHeard": "2026-01-01T00:00:00Z"}
    status = BEGUN | ({"marks": {"resolved": answer} | heard} if accepted else {})
    return decided(migration(status, resolve=answer), view(source, target, age))
