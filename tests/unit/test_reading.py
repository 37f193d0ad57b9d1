# SPDX-License-Identifier: Apache-2.0
"""Objects whose status another version has written."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from homeostat.api.hypervisor import Hypervisor
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.reading import read
from homeostat.api.virtualmachine import VirtualMachine

NOW = "2026-01-01T00:00:00Z"
UUID = "00000000-0000-4000-8000-000000000001"
INTENT = {"source": "a", "target": "b", "sourceUUID": UUID, "targetUUID": UUID, "domainUUID": UUID}
INTENT |= {"attempt": "u", "time": NOW}


def migration(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "go"}, "spec": {"vmRef": {"name": "web"}}, "status": status}


def test_what_cannot_be_read_is_left_out_as_a_whole_and_the_rest_is_kept() -> None:
    policy = {"mode": "Adaptive", "tls": "Enabled"}
    found = read(VirtualMachineMigration, migration(policy=policy, decision={"row": "1"}, phase="New", intent=INTENT))
    assert (found.status.policy, found.status.decision, found.status.phase) == (None, None, "New")
    assert found.status.intent is not None
    pools = [{"name": "fast", "active": "Hibernating"}]
    spec = {"uri": "qemu+tcp://a/system"}
    host = read(Hypervisor, {"metadata": {"name": "a"}, "spec": spec, "status": {"pools": pools, "hostUUID": UUID}})
    assert (host.status.pools, host.status.host_uuid) == ((), UUID)


@pytest.mark.parametrize(
    "status",
    [
        {"intent": INTENT | {"locks": "Leased"}},
        {"intent": {"source": "a"}},
        {"marks": {"resolved": {"keep": "KeepBoth", "evidence": "0" * 16}}},
        {"conditions": [{"type": "Finished"}]},
    ],
)
def test_what_says_where_a_vm_may_be_or_what_was_done_is_not_left_out(status: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read(VirtualMachineMigration, migration(**status))


def test_a_spec_is_read_whole_or_not_at_all() -> None:
    with pytest.raises(ValidationError):
        read(VirtualMachineMigration, migration() | {"spec": {"vmRef": {"name": "web"}, "abort": "Maybe"}})


@pytest.mark.parametrize("field", ["machineType", "cpuModel", "migration", "domain"])
def test_what_a_guest_has_always_had_and_who_moves_it_is_not_left_out(field: str) -> None:
    seen = {
        "metadata": {"name": "web"},
        "spec": {"memory": {"size": "64Mi"}},
        "status": {field: ["of", "another kind"]},
    }
    with pytest.raises(ValidationError) as raised:
        read(VirtualMachine, seen)
    assert raised.value.errors()[0]["loc"][:2] == ("status", field)
