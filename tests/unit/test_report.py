# SPDX-License-Identifier: Apache-2.0
"""What a status says: since when, and in which words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from homeostat.api import reasons
from homeostat.api.hypervisor import Hypervisor
from homeostat.api.meta import Condition
from homeostat.api.observed import HostAnswer, HostFacts, Present
from homeostat.api.virtualmachine import VirtualMachine, VirtualMachineStatus
from homeostat.decide import hypervisor as verdicts
from homeostat.decide import report
from homeostat.decide.view import Decision, Say, VMView
from tests.unit import test_decide_vm as vms

NOW = datetime(2026, 1, 1, 12, 0, 0, 900_000, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
FACTS = HostFacts("00000000-0000-4000-8000-00000000000a", "host", "9.0.0", "7.2.0", 4, 8192, kvm=True)


def vm(status: dict[str, Any] | None = None) -> VirtualMachine:
    metadata = {"name": "web", "namespace": "shop", "uid": "u", "generation": 1, "resourceVersion": "7"}
    return VirtualMachine.model_validate(
        {"metadata": metadata, "spec": {"memory": {"size": "64Mi"}}, "status": status or {}}
    )


def said(reason: str, at: datetime, before: VirtualMachineStatus | None = None) -> VirtualMachineStatus:
    """The status of a VM of which this is said, as it comes back from the API server."""
    old = vm(before.wire() if before else None)
    status = report.status(old, VMView("cluster", {}), Decision(Say(reason, "this is the case")), at)
    return VirtualMachineStatus.model_validate(status.wire())


def ready(conditions: tuple[Condition, ...]) -> str:
    return next(each.message for each in conditions if each.type == "Ready")


@pytest.mark.parametrize("reason", reasons.VM)
def test_a_message_says_what_is_since_when_what_happens_next_and_what_to_do(reason: str) -> None:
    row, message = reasons.VM[reason], ready(said(reason, NOW).conditions)
    since = "" if row.ready == "True" else "It has been so since 2026-01-01T12:00:00Z."
    assert message == " ".join(filter(None, (row.meaning, "This is the case.", since, row.then, row.todo)))
    assert row.then, "what happens next is always said"
    assert row.todo or not row.stalled, "where only a person can help, it is said how"


@pytest.mark.parametrize("reason", reasons.HYPERVISOR)
def test_a_message_of_a_host_says_so_too(reason: str) -> None:
    hypervisor = Hypervisor.model_validate({"metadata": {"name": "h"}, "spec": {"uri": "qemu:///system"}})
    claims = verdicts.Claims(0, 0, 0, (), frozenset())
    answer = HostAnswer(reachable=True, facts=FACTS)
    message = ready(verdicts.status(hypervisor, answer, (reason, "so it is"), claims, "c", NOW).conditions)
    row = reasons.HYPERVISOR[reason]
    since = "" if row.ready == "True" else "It has been so since 2026-01-01T12:00:00Z."
    assert message == " ".join(filter(None, (row.meaning, "So it is.", since, row.then, row.todo)))


@pytest.mark.parametrize("reason", reasons.VM)
def test_a_status_is_as_old_as_its_state_and_reason_and_does_not_change_with_time(reason: str) -> None:
    first = said(reason, NOW)
    again = said(reason, LATER, first)
    assert again == first
    assert first.since == NOW.replace(microsecond=0)
    other = "Halted" if reason != "Halted" else "NoRoom"
    assert said(other, LATER, first).since == LATER.replace(microsecond=0)


def test_what_a_host_or_a_guest_says_at_length_does_not_keep_the_status_from_being_written() -> None:
    kernel = {"pool": "fast", "kernel": "k"}
    disk = {"name": "root", "pool": "fast", "size": "1Gi"}
    ran, edited = (
        vms.settled({"disks": [disk], "boot": {"type": "Kernel", "kernel": kernel | {"commandLine": letter * 600}}})
        for letter in "ab"
    )
    chain = (("ua-disk-root", ("/pool/" + "d" * 4000,) * 100),)
    mark = vms.owner(ran, request="r" * 100)
    there = vms.domain(ran, state="Running", reason="Booted", live_owner=mark, chains=chain)
    mac = "52:54:00:00:00:01"
    long = (
        ("n" * 64, mac, "10.0.0.1"),
        ("eth1", mac, "1" * 65),
        ("eth2", "f" * 18, "10.0.0.2"),
        ("eth3", mac, "fe80::1"),
    )
    seen = vms.view(vms.host("a", Present(there)), addresses=long)
    status = report.status(edited, seen, Decision(Say("Running")), NOW)
    assert VirtualMachineStatus.model_validate(status.wire())
    assert [len(line) for line in status.pending_changes] == [1024]
    assert [len(path) for path in status.disks[0].chain] == [1024] * 64
    assert [(len(each.interface or ""), each.ip) for each in status.addresses] == [(63, "10.0.0.1"), (4, "fe80::1")]
