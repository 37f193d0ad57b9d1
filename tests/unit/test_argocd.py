# SPDX-License-Identifier: Apache-2.0
"""The health rule for Argo CD, run by a real Lua on statuses that the operator writes."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from homeostat.api import reasons
from homeostat.api.hypervisor import Hypervisor
from homeostat.api.observed import HostAnswer
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import hypervisor as verdicts
from homeostat.decide import report
from homeostat.decide.view import Decision, Say, VMView

DOCS = Path(__file__).parent.parent.parent / "docs"
RULE = (DOCS / "argocd/health.lua").read_text()
ADMITTED = set(re.findall(r"^\| (\w+) \| ", (DOCS / "argocd.md").read_text(), re.MULTILINE)) - {"Health"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
Object = dict[str, Any]

VM = {
    "Running": "Healthy",
    "Halted": "Healthy",
    "Paused": "Healthy",
    "Finished": "Healthy",
    "Accepted": "Progressing",
    "Starting": "Progressing",
    "Stopping": "Progressing",
    "NoRoom": "Progressing",
    "HostUnreachable": "Unknown",
    "UnknownPool": "Degraded",
    "TooBig": "Degraded",
    "ImageMissing": "Degraded",
    "StartFailed": "Degraded",
    "CrashLoop": "Degraded",
    "ForeignDomain": "Degraded",
    "ManagedSaveFound": "Degraded",
    "RunningTwice": "Degraded",
    "ReconcileDisabled": "Suspended",
}
HYPERVISOR = {
    "Connected": "Healthy",
    "Cordoned": "Healthy",
    "Connecting": "Progressing",
    "Unreachable": "Degraded",
    "TLSFailed": "Degraded",
    "IdentityMismatch": "Degraded",
    "OutOfService": "Suspended",
}


class Health(NamedTuple):
    """What Argo CD would show."""

    status: str
    message: str


def lua(value: Any) -> str:
    """A value that came from JSON, as Lua spells it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{lua(key)}] = {lua(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(map(lua, value)) + "}"
    return json.dumps(value, ensure_ascii=False)


def health(item: Object) -> Health:
    """What the rule says of an object."""
    program = f"obj = {lua(item)}\nlocal said = (function()\n{RULE}\nend)()\nprint(said.status)\nio.write(said.message)"
    done = subprocess.run(["lua5.1", "-"], input=program, capture_output=True, text=True, check=True)
    return Health(*done.stdout.split("\n", 1))


def item(kind: type[VirtualMachine | Hypervisor], spec: Object, status: Object | None = None) -> Object:
    metadata = {"name": "a", "uid": "u", "generation": 3, "resourceVersion": "7"}
    namespaced = {"namespace": "shop"} if kind is VirtualMachine else {}
    return {"kind": kind.__name__, "metadata": metadata | namespaced, "spec": spec, "status": status or {}}


def vm(reason: str) -> Object:
    """A VM with the status that the operator writes for this reason."""
    bare = item(VirtualMachine, {"memory": {"size": "64Mi"}})
    said = Decision(Say(reason, "this is the case"))
    status = report.status(VirtualMachine.model_validate(bare), VMView("cluster", {}), said, NOW)
    return bare | {"status": status.wire()}


def hypervisor(reason: str) -> Object:
    """A Hypervisor with the status that the operator writes for this reason."""
    bare = item(Hypervisor, {"uri": "qemu+tls://host-1.example/system"})
    claims = verdicts.Claims(0, 0, 0, (), frozenset())
    answer = HostAnswer(reachable=None if reason == "Connecting" else reason in ("Connected", "Cordoned"))
    status = verdicts.status(Hypervisor.model_validate(bare), answer, (reason, ""), claims, "cluster", NOW)
    return bare | {"status": status.wire()}


@pytest.mark.parametrize(("reason", "expected"), VM.items())
def test_the_health_of_a_vm(reason: str, expected: str) -> None:
    assert health(vm(reason)).status == expected


@pytest.mark.parametrize(("reason", "expected"), HYPERVISOR.items())
def test_the_health_of_a_hypervisor(reason: str, expected: str) -> None:
    assert health(hypervisor(reason)).status == expected


def test_whatever_the_reason_the_health_is_one_that_the_page_names_with_the_operators_sentence() -> None:
    for each in (*map(vm, reasons.VM), *map(hypervisor, reasons.HYPERVISOR)):
        found = health(each)
        assert found.status in ADMITTED
        assert found.message in [condition["message"] for condition in each["status"]["conditions"]]


@pytest.mark.parametrize("kind", [VirtualMachine, Hypervisor])
def test_what_was_not_decided_on_yet_is_under_way(kind: type[VirtualMachine | Hypervisor]) -> None:
    new = vm("Running") if kind is VirtualMachine else hypervisor("Connected")
    assert health(new | {"status": {}}).status == "Progressing"
    edited = new | {"metadata": new["metadata"] | {"generation": 4}}
    assert health(edited).status == "Progressing"
    del new["status"]
    assert health(new).status == "Progressing"
