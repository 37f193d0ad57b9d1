# SPDX-License-Identifier: Apache-2.0
"""What `kubectl describe` prints has the sentences of which `kubectl get` has the words."""

from datetime import UTC, datetime
from typing import Any

import pytest

from homeostat.api import reasons
from homeostat.api.hypervisor import Hypervisor
from homeostat.api.observed import HostAnswer
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import hypervisor as verdicts
from homeostat.decide import report
from homeostat.decide.view import Decision, Say, VMView
from tests.api.objects import hypervisor, vm
from tests.api.server import Server
from tests.controlplane import ControlPlane, GivenControlPlane

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DETAIL = "spec.disks[root].pool is 'void', which Hypervisor host-1 does not offer"


def of_vm(there: dict[str, Any], reason: str) -> Any:
    return report.status(
        VirtualMachine.model_validate(there), VMView("cluster", {}), Decision(Say(reason, DETAIL)), NOW
    )


def of_hypervisor(there: dict[str, Any], reason: str) -> Any:
    claims, answer = (
        verdicts.Claims(0, 0, 0, (), frozenset()),
        HostAnswer(reachable=False, reason=reason, message="No."),
    )
    return verdicts.status(Hypervisor.model_validate(there), answer, (reason, DETAIL), claims, "cluster", NOW)


@pytest.mark.parametrize("reason", ["UnknownPool", "HostUnreachable", "StartFailed", "Running"])
def test_the_sentences_of_a_vm(
    cluster: ControlPlane | GivenControlPlane, server: Server, namespace: str, reason: str
) -> None:
    there = server.create(vm("web", namespace))
    status = of_vm(there, reason)
    server.replace(there | {"status": status.wire()}, subresource="/status")
    described = cluster.kubectl("describe", "vm", "web", "--namespace", namespace)
    for condition in status.conditions:
        assert condition.message in described
    assert reasons.VM[reason].sentence(DETAIL, "2026-01-01T00:00:00Z" if reason != "Running" else "") in described


@pytest.mark.parametrize("reason", ["Unreachable", "TLSFailed"])
def test_the_sentences_of_a_hypervisor(cluster: ControlPlane | GivenControlPlane, server: Server, reason: str) -> None:
    there = server.create(hypervisor(f"described-{reason.lower()}"))
    server.replace(there | {"status": of_hypervisor(there, reason).wire()}, subresource="/status")
    described = cluster.kubectl("describe", "hv", there["metadata"]["name"])
    server.delete("Hypervisor", there["metadata"]["name"])
    assert reasons.HYPERVISOR[reason].sentence(DETAIL, "2026-01-01T00:00:00Z") in described
