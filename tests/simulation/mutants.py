# SPDX-License-Identifier: Apache-2.0
"""Breaks the product on purpose: each mutant has to die at a named crash point where the unbroken product passes.

`python -m tests.simulation.mutants [NAME ...]` runs them; the exit status is the number of mutants that live.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

from homeostat.api import actions as act
from homeostat.api.meta import FINALIZER, set_condition
from homeostat.api.observed import Absent, Present, Unknown
from homeostat.decide import report, runstrategy, view, vm_running, wanted
from homeostat.decide import vm as decide_vm
from homeostat.hosts import perform
from homeostat.hosts.driver import Connection, HostError
from homeostat.hosts.informer import HostInformer, LookAnswer
from homeostat.reconcile import observe
from homeostat.reconcile import vm as reconcile_vm
from tests.simulation import crash_points, test_control_plane, test_disasters
from tests.simulation.connection import SimulatedConnection
from tests.simulation.crash_points import SCENARIOS
from tests.simulation.effects import current

Patches = list[Any]
Place = tuple[str, str, str, str] | Callable[[], None]
"""(scenario, effect, fault, meanwhile), or a test."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A way to break the product, and where that must show: at a crash point, or in a scenario."""

    name: str
    patches: Callable[[], Patches]
    dies_at: Place

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The product is broken inside of this."""
        patches = self.patches()
        for each in patches:
            each.start()
        try:
            yield
        finally:
            for each in reversed(patches):
                each.stop()


# What is seen ---------------------------------------------------------------------------------------------------------


def unknown_is_absent() -> Patches:
    """A host that cannot be asked is taken for one that has nothing."""
    cached, look = observe.cached_answer, HostInformer.look

    async def broken(self: HostInformer, uuid: str, name: str) -> LookAnswer:
        answer = await look(self, uuid, name)
        return LookAnswer(Absent()) if isinstance(answer.answer, Unknown) else answer

    def broken_cache(*arguments: Any) -> Any:
        answer = cached(*arguments)
        return Absent() if isinstance(answer, Unknown) else answer

    return [patch.object(HostInformer, "look", broken), patch.object(observe, "cached_answer", broken_cache)]


def a_return_value_is_trusted() -> Patches:
    """A start that raised is taken for one that did not happen, whatever is seen."""
    failed: set[str] = set()
    original, look = perform.perform, HostInformer.look

    async def remembering(action: act.HostAction, connection: Connection, facts: Any) -> None:
        try:
            await original(action, connection, facts)
        except HostError:
            if isinstance(action, act.Start):
                failed.add(action.uuid)
            raise

    async def believing(self: HostInformer, uuid: str, name: str) -> LookAnswer:
        answer = await look(self, uuid, name)
        if uuid in failed and isinstance(answer.answer, Present):
            off = replace(answer.answer.domain, state="Shutoff", reason="Failed", live=None, live_owner=None)
            return replace(answer, answer=Present(off))
        return answer

    def cached(answer: Any, uuid: str) -> Any:
        return Absent() if uuid in failed else there(answer, uuid)

    there = observe.cached_answer
    return [
        patch.object(reconcile_vm, "perform", remembering),
        patch.object(HostInformer, "look", believing),
        patch.object(observe, "cached_answer", cached),
    ]


def looks_are_spared() -> Patches:
    """What the caches say is taken for what was asked just now."""
    original = observe.from_caches

    def broken(*arguments: Any) -> view.VMView:
        return replace(original(*arguments), fresh=True)

    return [patch.object(observe, "from_caches", broken)]


# What is written ahead ------------------------------------------------------------------------------------------------


def candidates_are_skipped() -> Patches:
    """Nothing is written down of where the VM may be."""
    yes = lambda *_: True  # noqa: E731
    return [patch.object(decide_vm, "listed", yes), patch.object(decide_vm, "only", yes)]


def candidates_are_left_out_of_an_apply() -> Patches:
    """The status is applied by the manager that owns the candidates: they are gone."""
    return [patch.object(reconcile_vm, "STATUS_MANAGER", reconcile_vm.CANDIDATES_MANAGER)]


def the_finalizer_comes_last() -> Patches:
    """The object is not held while something is made for it."""
    original = decide_vm.decide

    def broken(vm: Any, seen: view.VMView, now: Any) -> view.Decision:
        held = vm.metadata.model_copy(update={"finalizers": (*vm.metadata.finalizers, FINALIZER)})
        decision = original(vm.model_copy(update={"metadata": held}), seen, now)
        settled = decision.action is None and decision.look is None and not vm.metadata.finalizers
        return replace(decision, action=act.AddFinalizer()) if settled else decision

    return [patch.object(reconcile_vm, "decide", broken)]


# What is done ---------------------------------------------------------------------------------------------------------


def define_and_create_are_one() -> Patches:
    """A definition starts at once, as with virDomainCreateXML: a late one starts too."""

    async def both(self: SimulatedConnection, xml: str) -> None:
        async def work() -> None:
            await self.host.define(xml)
            uuid = xml.partition("<uuid>")[2].partition("</uuid>")[0]
            if not self.host.records[uuid].active:
                await self.host.create(uuid, paused=False)

        await self._call("define", work, xml.partition("<name>")[2].partition("</name>")[0])

    return [patch.object(SimulatedConnection, "define", both)]


def the_finalizer_goes_early() -> Patches:
    """An object that is being deleted is let go at once."""
    original = decide_vm.decide

    def broken(vm: Any, seen: view.VMView, now: Any) -> view.Decision:
        if vm.metadata.deleting and FINALIZER in vm.metadata.finalizers:
            return view.Decision(view.Say("Deleting"), act.RemoveFinalizer())
        return original(vm, seen, now)

    return [patch.object(reconcile_vm, "decide", broken)]


def volumes_have_random_names() -> Patches:
    """Each process of the operator thinks of a name of its own."""
    original = wanted.volume_name

    def broken(vm: Any, disk: Any) -> str:
        life = current.get()
        own = f"-{life.number}.qcow2" if life is not None and life.number > 1 else ".qcow2"
        return original(vm, disk).replace(".qcow2", own)

    return [patch.object(wanted, "volume_name", broken)]


def a_volume_is_made_without_a_look() -> Patches:
    """A volume that exists already counts as a failure for ever."""

    async def broken(*_: Any) -> frozenset[str]:
        return frozenset()

    return [patch.object(observe, "_names", broken)]


def a_guest_is_asked_to_stop_but_once() -> Patches:
    """A request that a booting guest lost is not repeated, and nothing ends it."""
    original = vm_running.stop

    def broken(case: Any, place: Any, say: Any, since: Any) -> view.Decision:
        decision = original(case, place, say, since)
        again = isinstance(decision.action, act.Destroy) or case.view.asked_seconds_ago is not None
        return view.Decision(say) if again else decision

    return [patch.object(vm_running, "stop", broken)]


def off_is_off() -> Patches:
    """Shutoff/Unknown of a VM that was seen running counts as any other way to be off: started anywhere."""
    return [patch.object(runstrategy, "maybe_running", lambda *_, **__: False)]


def an_error_ends_the_effort() -> Patches:
    """What could not be written or done is not tried again."""
    original = perform.perform

    async def broken(action: act.HostAction, connection: Connection, facts: Any) -> None:
        try:
            await original(action, connection, facts)
        except HostError:
            given_up.add(getattr(action, "uuid", ""))
            raise

    given_up: set[str] = set()
    decide = decide_vm.decide

    def resigned(vm: Any, seen: view.VMView, now: Any) -> view.Decision:
        decision = decide(vm, seen, now)
        return replace(decision, action=None, look=None) if wanted.domain_uuid(vm) in given_up else decision

    return [patch.object(reconcile_vm, "perform", broken), patch.object(reconcile_vm, "decide", resigned)]


# What is said ---------------------------------------------------------------------------------------------------------


def ready_is_taken_from_the_spec() -> Patches:
    """Ready says what is wanted."""
    original = report.status

    def broken(vm: Any, seen: Any, decision: Any, now: Any) -> Any:
        status = original(vm, seen, decision, now)
        ready = set_condition(status.conditions, "Ready", "True", "Running", "It runs.", vm.metadata.generation, now)
        return status.model_copy(update={"conditions": ready})

    return [patch.object(report, "status", broken)]


def _moved() -> None:
    test_disasters.test_a_vm_whose_record_was_lost_is_not_started_elsewhere(moved="placed elsewhere", disks=0)


MUTANTS = (
    Mutant("off is off", off_is_off, _moved),
    Mutant(
        "looks are spared",
        looks_are_spared,
        test_control_plane.test_two_operators_that_hear_nothing_of_hosts_restart_once,
    ),
    Mutant("Unknown is Absent", unknown_is_absent, ("start", "create", "kill-after", "host cut")),
    Mutant(
        "a return value is trusted", a_return_value_is_trusted, ("create", "create", "raise-after-success", "nothing")
    ),
    Mutant("candidates are skipped", candidates_are_skipped, ("create", "define", "kill-after", "nothing")),
    Mutant(
        "candidates are left out of an apply",
        candidates_are_left_out_of_an_apply,
        ("create", "PATCH status vm by homeostat-vm", "kill-after", "nothing"),
    ),
    Mutant("the finalizer comes last", the_finalizer_comes_last, ("create", "define", "kill-after", "deleted")),
    Mutant("define and create are one", define_and_create_are_one, ("create", "define", "late=45", "deleted")),
    Mutant("the finalizer goes early", the_finalizer_goes_early, ("delete", "PATCH vm", "kill-before", "nothing")),
    Mutant(
        "volumes have random names", volumes_have_random_names, ("create", "create_volume", "kill-after", "nothing")
    ),
    Mutant(
        "a volume is made without a look",
        a_volume_is_made_without_a_look,
        ("create", "create_volume", "kill-after", "nothing"),
    ),
    Mutant("a guest is asked once", a_guest_is_asked_to_stop_but_once, ("stop", "shutdown", "drop-request", "nothing")),
    Mutant("an error ends the effort", an_error_ends_the_effort, ("start", "create", "drop-request", "nothing")),
    Mutant(
        "Ready is taken from the spec", ready_is_taken_from_the_spec, ("create", "create", "kill-before", "host cut")
    ),
)


def _run(place: Place) -> Callable[[], object]:
    """What runs a place. LookupError when its scenario has no such effect."""
    if not isinstance(place, tuple):
        return place
    name, action, fault, meanwhile = place
    scenario = next(each for each in SCENARIOS if each.name == name)
    for point in crash_points.points(scenario, crash_points.clean(scenario)):
        if (*crash_points.pair(point), point.meanwhile) == (action, fault, meanwhile):
            return partial(crash_points.run, scenario, point)
    raise LookupError(f"scenario {name} has no {action}")


def verdict(mutant: Mutant) -> str:
    """What the mutant died of. AssertionError when it lives, or when the unbroken product fails there too."""
    run = _run(mutant.dies_at)
    assert run() is not False, "nothing can happen there"
    with mutant.at_work():
        try:
            run()
        except AssertionError as error:
            return str(error).partition("\n")[0]
    raise AssertionError(f"it lives at {mutant.dies_at}")


def main(*names: str) -> int:
    """Runs mutants and prints what they died of; returns how many live."""
    living = 0
    for mutant in MUTANTS:
        if names and mutant.name not in names:
            continue
        try:
            print(f"dead   {mutant.name}: {verdict(mutant)}", flush=True)
        except AssertionError as error:
            living += 1
            print(f"ALIVE  {mutant.name}: {error}", flush=True)
    return living


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
