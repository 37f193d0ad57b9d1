# SPDX-License-Identifier: Apache-2.0
"""A host that answers and does not tell of its storage: nothing is said to be missing, and nothing is defined."""

from __future__ import annotations

from dataclasses import replace

import pytest

from homeostat.api.hypervisor import Hypervisor
from homeostat.api.observed import Absent, Answer, HostAnswer, HostFacts, Present
from homeostat.decide import hypervisor, report
from homeostat.decide.view import HostView
from homeostat.decide.vm import decide
from tests.unit import test_decide_vm as vms

pytestmark = pytest.mark.unit

DISK = {"disks": [{"name": "root", "pool": "fast", "size": "8Mi", "source": {"type": "Blank", "blank": {}}}]}


def told(host: HostView) -> HostFacts:
    assert host.facts is not None
    return host.facts


def silent(answer: Answer) -> HostView:
    """Host a: its volumes are listed, its pools' folders were never told."""
    facts = replace(told(vms.host("a", answer)), pools=(), pools_known=False)
    return vms.host("a", answer, facts=facts, volumes={"default": frozenset({f"shop_web_root_{vms.UID}.qcow2"})})


def test_a_vm_is_not_defined_where_the_folder_of_its_pool_is_not_known() -> None:
    wish = vms.settled(DISK)
    decision = decide(wish, vms.view(silent(Absent())), vms.NOW)
    assert (decision.action, decision.say.reason) == (None, "PoolUnavailable")
    assert "'fast'" in decision.say.detail


def test_what_runs_without_a_definition_runs_on_and_gets_none_with_empty_paths() -> None:
    wish = vms.settled(DISK)
    answer = Present(vms.domain(wish, state="Running", reason="Booted", persistent=False, inactive=None))
    decision = decide(wish, vms.view(silent(answer)), vms.NOW)
    assert (decision.action, decision.say.reason) == (None, "Running")
    assert decide(wish, vms.view(vms.host("a", answer)), vms.NOW).action is not None


def test_a_running_vm_does_not_differ_by_paths_that_are_not_known() -> None:
    wish = vms.settled(DISK)
    seen = vms.view(silent(Present(vms.domain(wish, state="Running", reason="Booted"))))
    status = report.status(wish, seen, decide(wish, seen, vms.NOW), vms.NOW)
    assert [each.status for each in status.conditions if each.type == "RestartRequired"] == ["False"]


def test_a_pool_that_was_not_told_of_is_unknown_and_not_missing() -> None:
    facts = told(vms.host("a", Absent()))
    pools = [{"name": name, "pool": name} for name in ("default", "other")]
    spec = {"uri": "qemu+tcp://198.51.100.1/system", "pools": pools}
    one = Hypervisor.model_validate({"metadata": {"name": "a", "uid": "uid-a"}, "spec": spec})

    def shown(answered: HostFacts) -> list[object]:
        answer = HostAnswer(reachable=True, facts=answered)
        said = hypervisor.verdict(one, answer, ())
        status = hypervisor.status(one, answer, said, hypervisor.Claims(0, 0, 0, (), frozenset()), vms.CLUSTER, vms.NOW)
        return [pool.active for pool in status.pools]

    assert shown(facts) == ["Active", "Missing"]
    assert shown(replace(facts, pools_known=False)) == ["Unknown", "Unknown"]
