# SPDX-License-Identifier: Apache-2.0
"""One pass over one VirtualMachine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

from homeostat.api import actions as act
from homeostat.api import reasons
from homeostat.api.meta import FINALIZER
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.observed import Present
from homeostat.api.virtualmachine import VirtualMachine, VirtualMachineStatus
from homeostat.decide import report
from homeostat.decide.migration import in_flight, queued
from homeostat.decide.view import Decision, Failure, VMView
from homeostat.decide.vm import decide
from homeostat.hosts.driver import HostError, HostUnreachable, NotBegun
from homeostat.hosts.perform import perform
from homeostat.kube.client import Client
from homeostat.kube.events import Recorder
from homeostat.reconcile import observe
from homeostat.reconcile.addresses import AddressBook
from homeostat.reconcile.fleet import Fleet
from homeostat.reconcile.retried import parsed, retried
from homeostat.reconcile.settings import Settings
from homeostat.runtime.controller import Key, Result, Retry

log = logging.getLogger(__name__)
STATUS_MANAGER, CANDIDATES_MANAGER = "homeostat-vm", "homeostat-candidates"
MAX_LOOKS = 3
MAX_STEPS = 3
"""In one pass: the candidates are written, and the finalizer, and a host is asked for something."""
COUNTED = (act.CreateVolume, act.Define, act.Start)
"""Actions whose failures status.startFailures counts and paces; those of all others are paced by the queue."""
Object = dict[str, Any]


class VMReconciler:
    """Reconciles VirtualMachines. What it keeps between passes only paces it: losing it costs a repetition."""

    def __init__(
        self,
        client: Client,
        fleet: Fleet,
        recorder: Recorder,
        settings: Settings,
        now: Callable[[], datetime],
        wake: Callable[[Key], None],
        written: Callable[[Key, VirtualMachine], None],
    ) -> None:
        self._client, self._fleet, self._recorder = client, fleet, recorder
        self._settings, self._now, self._written = settings, now, written
        self._addresses = AddressBook(settings.sweep_seconds, wake)
        self._asked: dict[Key, float] = {}  # when the guest was last asked to power off
        self._failed: dict[Key, Failure] = {}  # the last action that raised, until a decision has counted it
        self._unwritten: dict[Key, float] = {}  # since when status differs from what is written, by a passing state
        self._read_last: dict[Key, str] = {}  # the resourceVersion of the last read
        self._wrote: dict[Key, deque[str]] = {}  # those of the last writes

    async def reconcile(self, key: Key) -> Result:
        """Read, then step by step: observe, decide, perform one action, report. Not so where all is as it is to be.

        Its own writes wake nobody: what was written is decided on at once, and needs no reading.
        """
        if (rest := self._at_rest(key)) is not None:
            return rest
        seen = await self._read(key)
        if seen is None:
            return Result()
        for _ in range(MAX_STEPS):
            step = await self._step(key, seen)
            if isinstance(step, Result):
                return step
            seen = step
        return Result(0.0)

    def _at_rest(self, key: Key) -> Result | None:
        """When to look again, if by what is known there is nothing to do and nothing to say; None else.

        That costs no request. What is not known is told by an event, or by the list of a resync.
        """
        vm = self._fleet.vms.get(key)
        if vm is None or key in self._fleet.doubted:
            return None
        view = self._seen_now(key, vm, in_flight(self._fleet.migrations_of(key), vm))
        decision = decide(vm, view, self._now())
        if decision.look is not None or decision.action is not None or decision.failed is not None:
            return None
        after, unsaid = self._unsaid(key, vm, view, decision)
        if unsaid is not None:
            return None
        self._settle(key, view, decision)
        return Result(after)

    async def _step(self, key: Key, seen: Object) -> Result | Object:
        """One step from the object as it is; what was written to that is returned, to be decided on."""
        vm = parsed(VirtualMachine, seen)
        self._fleet.note_vm(key, vm)
        self._fleet.doubted.discard(key)  # not before it could be understood
        view, decision = await self._decide(key, vm, await self._migration(key, vm))
        meanwhile = functools.partial(self._report, key, vm, seen, view, decision)
        acted = await self._perform(key, seen, decision, meanwhile)
        if isinstance(decision.action, act.RemoveFinalizer):
            return Result()  # there may be no object any more to write a status of
        if acted is None:
            return Result(0.0)
        if isinstance(decision.action, act.ObjectAction):
            return acted
        written, after = await self._report(key, vm, acted, view, decision)
        if (failure := self._failed.get(key)) is not None and not isinstance(failure.action, COUNTED):
            raise Retry(f"{type(failure.action).__name__} was refused: {failure.message}")
        if decision.action is not None and not isinstance(decision.action, act.Shutdown):
            return Result(0.0)
        return written or Result(after)

    async def _read(self, key: Key) -> Object | None:
        with retried("the VM could not be read"):
            seen = await self._client.get(VirtualMachine, *key)
        if seen is None:
            self._forget(key)
        else:
            self._read_last[key] = seen["metadata"]["resourceVersion"]
        return seen

    def has_read(self, key: Key, version: str) -> bool:
        """Whether this is the resourceVersion of a VM that was read last: what it shows was decided on."""
        return self._read_last.get(key) == version

    def has_written(self, key: Key, version: str) -> bool:
        """Whether this is the resourceVersion of a VM that was written here not long ago: all were told at once."""
        return version in self._wrote.get(key, ())

    def _note_written(self, key: Key, written: Object) -> VirtualMachine:
        vm = parsed(VirtualMachine, written)
        self._fleet.note_vm(key, vm)
        self._wrote.setdefault(key, deque(maxlen=MAX_STEPS)).append(vm.metadata.resource_version)
        self._written(key, vm)
        return vm

    def _forget(self, key: Key) -> None:
        self._fleet.note_vm(key, None)
        self._fleet.doubted.discard(key)
        for memory in (self._asked, self._failed, self._unwritten, self._read_last, self._wrote):
            memory.pop(key, None)
        self._addresses.forget(key)

    async def _migration(self, key: Key, vm: VirtualMachine) -> VirtualMachineMigration | None:
        """The migration in flight, read now: a late event must not show one that has ended, nor hide one.

        None begins before status.migration names it, so the one that is named there comes first.
        """
        named, known = vm.status.migration, in_flight(self._fleet.migrations_of(key), vm)
        names = dict.fromkeys(each for each in (named and named.name, known and known.metadata.name) if each)
        with retried("the VM's migration could not be read"):
            found = [await self._client.get(VirtualMachineMigration, key[0], name) for name in names]
        return in_flight([parsed(VirtualMachineMigration, each) for each in found if each is not None], vm)

    async def _decide(
        self, key: Key, vm: VirtualMachine, migration: VirtualMachineMigration | None
    ) -> tuple[VMView, Decision]:
        """Decide on what the caches say; where that would change a host, ask the hosts and decide again."""
        view = self._seen_now(key, vm, migration)
        for _ in range(MAX_LOOKS):
            decision = decide(vm, view, self._now())
            if decision.look is None:
                break
            view = await observe.look(self._fleet, vm, view, decision.look)
        if decision.look is not None:
            raise Retry(f"still nothing to act on after {MAX_LOOKS} looks at {', '.join(decision.look.hosts)}")
        self._settle(key, view, decision)
        if isinstance(decision.action, act.RecordCandidates):
            # Between this decision and the next one for another VM there is no await: it counts this VM already.
            self._fleet.assume(key, vm, frozenset(candidate.host_uuid for candidate in decision.action.candidates))
        return view, decision

    def _seen_now(self, key: Key, vm: VirtualMachine, migration: VirtualMachineMigration | None) -> VMView:
        """What the caches say, and what is remembered."""
        view = self._with_memory(key, observe.from_caches(self._fleet, key, vm))
        return replace(view, migration=migration, queued=queued(self._fleet.migrations_of(key)))

    def _settle(self, key: Key, view: VMView, decision: Decision) -> None:
        """What follows from every decision for what is remembered."""
        if decision.failed is None and not _under_way(decision):
            self._failed.pop(key, None)  # what it led to is seen; it explains nothing any more
        self._ask_addresses(key, view)

    def _with_memory(self, key: Key, view: VMView) -> VMView:
        asked = self._asked.get(key)
        ago = None if asked is None else asyncio.get_running_loop().time() - asked
        return replace(view, asked_seconds_ago=ago, failure=self._failed.get(key), addresses=self._addresses.of(key))

    def _ask_addresses(self, key: Key, view: VMView) -> None:
        """Ask the agent of a guest that has one; forget what one said that is gone."""
        for name, host in view.hosts.items():
            if isinstance(host.answer, Present) and host.answer.domain.agent_connected:
                if (connection := self._fleet.connection(name)) is not None:
                    self._addresses.ask(key, host.answer.domain.uuid, connection)
                return
        self._addresses.forget(key)

    async def _perform(
        self, key: Key, seen: Object, decision: Decision, meanwhile: Callable[[], Awaitable[object]]
    ) -> Object | None:
        """Carry out the action, if any. What it returned proves nothing.

        Returns the object as it is after it, None when it took so long that `meanwhile` reported.
        """
        action = decision.action
        if action is None:
            return seen
        log.info("%s", _told(action), extra={"action": type(action).__name__})
        if isinstance(action, act.ObjectAction):
            return await self._write(key, seen, action)
        if isinstance(action, act.Shutdown):
            self._asked[key] = asyncio.get_running_loop().time()
        self._failed.pop(key, None)
        work = asyncio.create_task(self._act(key, action), name=f"{type(action).__name__}-{key[1]}")
        return None if await self._lasts(work, meanwhile) else seen

    async def _lasts(self, work: asyncio.Task[None], meanwhile: Callable[[], Awaitable[object]]) -> bool:
        """Wait for the end of `work`, whatever happens; whether it took so long that `meanwhile` was called."""
        try:
            await asyncio.wait({work}, timeout=self._settings.settle_seconds)
            if lasts := not work.done():
                with contextlib.suppress(Retry):  # nothing was written: the next pass reports
                    await meanwhile()
        except asyncio.CancelledError:
            work.cancel()
            raise
        finally:
            await work  # the key is not given back before: two calls for it could be under way at once
        return lasts

    async def _write(self, key: Key, seen: Object, action: act.ObjectAction) -> Object:
        try:
            with retried(type(action).__name__):
                written = await self._changed(seen, action)
        except Exception:
            self._fleet.drop_assumption(key)
            raise
        vm = self._note_written(key, written)
        if isinstance(action, act.RecordCandidates) and len(vm.status.candidates) > len(action.candidates):
            raise Retry("status.candidates has a row that another field manager owns too")
        return written

    async def _changed(self, seen: Object, action: act.ObjectAction) -> Object:
        match action:
            case act.RecordCandidates(candidates):
                rows = [{"hypervisor": c.hypervisor, "uid": c.uid, "hostUUID": c.host_uuid} for c in candidates]
                return await self._client.apply_status(VirtualMachine, seen, {"candidates": rows}, CANDIDATES_MANAGER)
            case act.AddFinalizer():
                return await self._client.add_finalizer(VirtualMachine, seen, FINALIZER)
            case act.RemoveFinalizer():
                return await self._client.remove_finalizer(VirtualMachine, seen, FINALIZER)

    async def _act(self, key: Key, action: act.HostAction) -> None:
        connection = self._fleet.connected(action.host)
        try:
            await perform(action, connection, self._fleet.answer(action.host).facts)
        except HostUnreachable as error:
            log.info("%s: not known whether it was carried out: %s", type(action).__name__, error.message)
        except NotBegun as error:
            log.info("%s has to wait: %s", type(action).__name__, error.message)
            self._asked.pop(key, None)  # a guest that was not asked to power off is asked by the next pass
        except HostError as error:
            log.info("%s was refused: %s", type(action).__name__, error.message)
            self._failed[key] = Failure(action, error.message)

    async def _report(
        self, key: Key, vm: VirtualMachine, seen: Object, view: VMView, decision: Decision
    ) -> tuple[Object | None, float | None]:
        """Write the status if there is something to be said.

        Returns the object if it was written, and when to look again, in seconds.
        """
        after, status = self._unsaid(key, vm, view, decision)
        if status is None:
            return None, after
        with retried("the status could not be written"):
            said = status.wire(exclude={"candidates"})
            written = await self._client.apply_status(VirtualMachine, seen, said, STATUS_MANAGER)
        self._note_written(key, written)
        self._unwritten.pop(key, None)
        if decision.failed is not None:
            self._failed.pop(key, None)
        self._tell(vm, seen, status.reason or "", decision)
        return written, 0.0 if decision.failed is not None else after

    def _unsaid(
        self, key: Key, vm: VirtualMachine, view: VMView, decision: Decision
    ) -> tuple[float | None, VirtualMachineStatus | None]:
        """When to look again, and the status if it is to be written: a passing state only once it has lasted."""
        status = report.status(vm, view, decision, self._now())
        if status.wire(exclude={"candidates"}) == vm.status.wire(exclude={"candidates"}):
            self._unwritten.pop(key, None)
            return decision.requeue_after, None
        if report.passing(vm, decision) and (left := self._left_to_settle(key)) > 0:
            # A little more: what is left of it then may be less than the clock can tell apart.
            return min(left + 0.05, decision.requeue_after or math.inf), None
        return decision.requeue_after, status

    def _left_to_settle(self, key: Key) -> float:
        now = asyncio.get_running_loop().time()
        return self._unwritten.setdefault(key, now) + self._settings.settle_seconds - now

    def _tell(self, vm: VirtualMachine, seen: Object, reason: str, decision: Decision) -> None:
        """An Event for each transition of the reason."""
        if reason == vm.status.reason:
            return
        row = reasons.VM[reason]
        log.info("is %s: %s", row.state, report.sentence(decision))
        self._recorder.record(
            "VirtualMachine", seen, reason, report.sentence(decision), warning=row.ready != "True" and not row.passing
        )


def _under_way(decision: Decision) -> bool:
    """Whether the outcome of the last action may not be seen yet: a start that fails shows as running for a while."""
    row = reasons.VM[decision.say.reason]
    return row.passing or row.ready == "Unknown"


def _told(action: act.Action) -> str:
    where = "" if isinstance(action, act.ObjectAction) else f" on {action.host}"
    what = f" {action.name}" if isinstance(action, act.CreateVolume | act.DeleteVolume) else ""
    return f"{type(action).__name__}{what}{where}"
