# SPDX-License-Identifier: Apache-2.0
"""A VM whose host is evacuated and that cannot be moved: off for that long if its owner says so, and never else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from homeostat.api import actions as act
from homeostat.api.observed import Absent, Answer, Present, Traits, Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import report
from homeostat.decide.view import Decision, HostView, Say
from homeostat.decide.vm import decide
from tests.unit import test_decide_vm as vms
from tests.unit.planning import NOW, host, machine, running, spec

STUCK = Traits(tpm=True)
GOING = {"reason": "Evacuating", "since": "2025-12-31T23:59:00Z", "host": "a"}
VOLUMES = {"volumes": {"default": frozenset({f"shop_web_root_{vms.UID}.qcow2"})}}


def evacuated(**fields: Any) -> VirtualMachine:
    return machine(**({"evacuation": "ShutOff"} | fields))


def told(vm: VirtualMachine, status: dict[str, Any]) -> VirtualMachine:
    return VirtualMachine.model_validate(vm.model_dump(by_alias=True, exclude_none=True) | {"status": status})


def step(
    vm: VirtualMachine,
    answer: Answer,
    *others: HostView,
    maintenance: str = "Evacuate",
    status: Any = None,
    **more: Any,
) -> Decision:
    """What is done to the VM on host a, with b beside it unless others are given."""
    seen = told(vm, vm.status.wire() | (status or {}))
    here = host("a", answer, spec=spec(maintenance=maintenance), **VOLUMES)
    hosts = others or (host("b"),)
    return decide(seen, replace(vms.view(here, *hosts), **more), NOW)


def test_what_cannot_be_moved_is_shut_down_when_its_owner_says_so() -> None:
    vm = evacuated()
    there = running(vm, traits=STUCK)
    first = step(vm, there)
    assert (first.action, first.say.reason) == (None, "Evacuating")  # on record before the guest hears of it
    assert "TPM" in first.say.detail
    then = step(vm, there, status=GOING | {"since": "2026-01-01T00:00:00Z"})
    assert isinstance(then.action, act.Shutdown)
    long = step(evacuated(terminationGracePeriodSeconds=30), there, status=GOING)
    assert isinstance(long.action, act.Destroy)


@pytest.mark.parametrize(
    ("fields", "more", "maintenance"),
    [
        ({"evacuation": "Stay"}, {"traits": STUCK}, "Evacuate"),
        ({}, {"traits": STUCK}, "Cordon"),
        ({}, {"traits": STUCK}, "Off"),
        ({}, {}, "Evacuate"),
        ({}, {"traits": Traits(block_jobs=("vda",))}, "Evacuate"),
    ],
    ids=["not agreed", "cordoned", "not in maintenance", "can be moved", "cannot be moved yet"],
)
def test_otherwise_it_runs_on(fields: dict[str, Any], more: dict[str, Any], maintenance: str) -> None:
    vm = evacuated(**fields)
    decision = step(vm, running(vm, **more), maintenance=maintenance)
    assert (decision.action, decision.say.reason) == (None, "Running")


def test_one_that_has_no_definition_yet_gets_one_and_is_not_shut_down_for_the_lack_of_it() -> None:
    vm = evacuated()
    decision = step(vm, running(vm, persistent=False, inactive=None))
    assert isinstance(decision.action, act.Define)
    assert decision.say.reason == "Running"


def test_every_host_is_asked_now_before_it_is_said_that_none_can_take_it() -> None:
    vm = evacuated()
    here = host("a", running(vm, traits=STUCK), spec=spec(maintenance="Evacuate"), **VOLUMES)
    first = decide(vm, vms.view(here, host("b"), fresh=False), NOW)
    assert first.look is not None
    assert (first.action, first.look.hosts) == (None, ("a", "b"))


def test_a_host_that_was_not_heard_from_may_be_able_to_take_it() -> None:
    vm = evacuated()
    there = running(vm)
    other = host("b", spec=spec(pools=[]))
    assert step(vm, there, other).say.reason == "Evacuating"
    silent = replace(other, answer=Unknown("ConnectionLost", "no route to host", NOW))
    assert step(vm, there, other, replace(silent, name="c")).say.reason == "Running"
    assert step(vm, there, other, replace(other, name="c", facts=None)).say.reason == "Running"
    assert step(vm, there, other, replace(silent, name="c", released=True)).say.reason == "Evacuating"
    assert step(vm, running(vm, traits=STUCK), replace(silent, name="c")).say.reason == "Evacuating"


def test_a_guest_that_was_asked_goes_on_even_if_it_could_be_moved_now() -> None:
    vm = evacuated()
    assert isinstance(step(vm, running(vm), status=GOING).action, act.Shutdown)
    assert step(vm, running(vm), status=GOING, maintenance="Off").say.reason == "EvacuationEnded"


def test_it_is_not_while_a_migration_waits_for_its_turn() -> None:
    vm = evacuated()
    assert step(vm, running(vm, traits=STUCK), queued=True).say.reason == "Running"
    assert isinstance(step(vm, running(vm, traits=STUCK), status=GOING, queued=True).action, act.Shutdown)


def test_that_a_guest_was_asked_is_remembered_for_as_long_as_it_may_obey() -> None:
    vm = evacuated(terminationGracePeriodSeconds=59, runStrategy="RerunOnFailure")
    early = {"reason": "EvacuationEnded", "since": "2025-12-31T23:59:30Z", "host": "a"}
    late = early | {"since": "2025-12-31T23:59:00Z"}
    decision = step(vm, running(vm), status=early, maintenance="Off")
    assert (decision.say.reason, decision.requeue_after) == ("EvacuationEnded", 30)
    assert step(vm, running(vm), status=late, maintenance="Off").say.reason == "Running"
    ran = early | {"domain": {"state": "Running", "reason": "Booted"}}
    obeyed = step(vm, Present(vms.domain(vm, reason="Shutdown")), status=ran, maintenance="Off")
    assert isinstance(obeyed.action, act.Define | act.Start)
    paused = evacuated(execution="Paused")
    assert step(paused, running(paused, state="Paused", reason="User"), status=early).say.reason == "Paused"


@pytest.mark.parametrize("strategy", ["Always", "RerunOnFailure", "Manual"])
@pytest.mark.parametrize("went", ["Shutdown", "Destroyed"])
def test_it_stays_off_as_long_and_is_started_again_whatever_its_strategy(strategy: str, went: str) -> None:
    vm = evacuated(runStrategy=strategy)
    ran = GOING | {"domain": {"state": "Running", "reason": "Booted"}}
    off = vms.domain(vm, reason=went)
    mark = step(vm, Present(off), status=ran).action
    assert isinstance(mark, act.Mark)
    assert mark.owner.off == "Evacuated"
    forgotten = Present(replace(off, reason="Unknown", owner=mark.owner))
    rest = step(vm, forgotten, status={"reason": "Evacuated", "host": "a"})
    assert (rest.action, rest.say.reason) == (None, "Evacuated")
    assert isinstance(step(vm, forgotten, maintenance="Off").action, act.Define)
    at_once = step(vm, Present(off), status=ran, maintenance="Off").action
    assert isinstance(at_once, act.Define | act.Start)  # the evacuation was called off while it went off


def test_one_that_is_to_be_off_is_off_for_that_reason() -> None:
    vm = evacuated(runStrategy="Halted")
    mark = step(vm, Present(vms.domain(vm, reason="Shutdown")), status=GOING)
    assert mark.say.reason == "Halted"


def test_its_owner_can_send_it_to_another_host() -> None:
    vm = evacuated(placement={"host": "b"})
    off = vms.domain(vm, owner=vms.owner(vm, off="Evacuated"))
    assert isinstance(step(vm, Present(off)).action, act.Undefine)


def test_one_whose_process_may_be_left_is_looked_for_first() -> None:
    vm = evacuated()
    lost = {"domain": {"state": "Unknown", "reason": "RecordLost", "since": "2025-12-31T00:00:00Z"}, "host": "a"}
    mark = step(vm, Present(vms.domain(vm)), status=lost).action
    assert isinstance(mark, act.Mark)
    assert mark.owner.probe


@pytest.mark.parametrize("strategy", ["RerunOnFailure", "Manual"])
def test_that_it_is_to_run_again_outlasts_its_definition(strategy: str) -> None:
    vm = evacuated(runStrategy=strategy)
    status = GOING | {"domain": {"state": "Running", "reason": "Booted", "request": ""}}
    seen = told(vm, vm.status.wire() | status)
    prepared = Present(vms.domain(vm, reason="Shutdown", owner=vms.owner(vm, was="Shutdown")))
    for answer, action in ((prepared, act.Start), (Absent(), act.RecordCandidates | act.Define), (prepared, act.Start)):
        here = vms.view(host("a", answer, **VOLUMES))
        decision = decide(seen, here, NOW)
        assert isinstance(decision.action, action)
        after = report.status(seen, here, replace(decision, say=Say("Starting")), NOW).wire()
        seen = told(vm, vm.status.wire() | after)
