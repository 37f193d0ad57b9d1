# SPDX-License-Identifier: Apache-2.0
"""One pass over one VirtualMachineMigration: planned, then carried on until both hosts show its end."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from homeostat.api import actions as act
from homeostat.api import reasons
from homeostat.api.meta import FINALIZER, Resource, condition
from homeostat.api.migration import IntentStatus, VirtualMachineMigration, VirtualMachineMigrationStatus
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import migration_report as report
from homeostat.decide.migration import decide, ended
from homeostat.decide.migration_case import MigrationDecision
from homeostat.decide.migration_peers import Reach
from homeostat.decide.migration_plan import plan as decide_plan
from homeostat.decide.migration_planning import Fleet as PlanFleet
from homeostat.decide.migration_planning import Plan
from homeostat.decide.view import Say, VMView
from homeostat.hosts.driver import STORAGE_VOL_EXIST, HostError, HostUnreachable
from homeostat.hosts.migration import Cost
from homeostat.hosts.perform import perform, perform_migration
from homeostat.kube.client import Client
from homeostat.kube.events import Recorder
from homeostat.reconcile import observe
from homeostat.reconcile.both_hosts import Attempt, BothHosts, Memory, Sight
from homeostat.reconcile.calls import Calls
from homeostat.reconcile.fleet import Fleet
from homeostat.reconcile.peers import PeerBook
from homeostat.reconcile.recent import Recent
from homeostat.reconcile.retried import parsed, retried
from homeostat.reconcile.settings import Settings
from homeostat.runtime.controller import Key, Result, Retry

log = logging.getLogger(__name__)
STATUS_MANAGER = "homeostat-migration"
MAX_LOOKS = 3
OLD_SECONDS = 10.0
"""Nothing is done on what was seen longer ago than this."""
ANSWER_SECONDS = 2.0
"""For so long it is not looked whether a migration that the VM's controller does not know of can begin."""
LONG = (act.Migrate, act.ResumePostCopy)
"""Actions whose call lasts as long as the migration."""
Object = dict[str, Any]


class MigrationReconciler:
    """Reconciles VirtualMachineMigrations. What it keeps between passes only paces it: losing it costs a repetition."""

    def __init__(
        self,
        client: Client,
        fleet: Fleet,
        recorder: Recorder,
        settings: Settings,
        now: Callable[[], datetime],
        wake: Callable[[Key], None],
        written: Callable[[Key, VirtualMachineMigration], None],
    ) -> None:
        self._client, self._fleet, self._recorder, self._settings = client, fleet, recorder, settings
        self._now, self._written = now, written
        self._calls, self._planning = Calls(wake), asyncio.Lock()
        self._peers = PeerBook(wake, lambda: (each.metadata.uid for each in fleet.migrations.values()))
        self._hosts = BothHosts(fleet, settings, now, self._calls)
        self._memory: defaultdict[Key, Memory] = defaultdict(Memory)
        self._recent, self._recent_vms = Recent(), Recent()

    async def reconcile(self, key: Key) -> Result:
        """Read, plan or go on: look at both hosts, decide, report, perform one action."""
        seen = await self._read(key)
        if seen is None:
            return Result()
        migration = parsed(VirtualMachineMigration, seen)
        self._fleet.note_migration(key, migration)
        if ended(migration):
            return await self._expire(key, migration, seen)
        vm = await self._vm(migration)
        if migration.status.intent is None:
            return await self._plan(migration, seen, vm)
        intent = migration.status.intent
        migration = self._hosts.with_policy(migration, intent)
        return await self._go_on(Attempt(key, seen, migration, intent, vm, self._memory[key]))

    # Reading

    async def _read(self, key: Key) -> Object | None:
        known = self._fleet.migrations.get(key)
        if known is not None and (recent := self._recent.get(key, known.metadata.resource_version)) is not None:
            return recent
        seen = await self._get(VirtualMachineMigration, *key)
        if seen is None:
            self._fleet.note_migration(key, None)
            self._forget(key)
            self._recent.forget(key)
        else:
            self._recent.put(key, seen)
        return seen

    async def _get(self, kind: type[Resource], namespace: str, name: str) -> Object | None:
        with retried(f"{kind.__name__} {name} could not be read"):
            return await self._client.get(kind, namespace, name)

    async def _vm(self, migration: VirtualMachineMigration) -> VirtualMachine | None:
        key = migration.metadata.namespace, migration.spec.vm_ref.name
        known = self._fleet.vms.get(key)
        if known is not None and self._recent_vms.get(key, known.metadata.resource_version) is not None:
            return known
        seen = await self._get(VirtualMachine, *key)
        if seen is None:
            self._recent_vms.forget(key)
            return None
        self._recent_vms.put(key, seen)
        return parsed(VirtualMachine, seen)

    def _forget(self, key: Key) -> None:
        self._calls.forget(key)
        self._memory.pop(key, None)

    # Planning

    async def _plan(self, migration: VirtualMachineMigration, seen: Object, vm: VirtualMachine | None) -> Result:
        """Choose the target and write down what is about to be done; libvirt is asked in a later pass."""
        if migration.metadata.deleting:
            return await self._let_go(_key(migration), seen)
        view = await self._surveyed(migration, vm)
        if isinstance(decide_plan(migration, vm, self._known(migration, view)).action, act.AddFinalizer):
            seen = await self._finalizers(self._client.add_finalizer, seen)
            migration = parsed(VirtualMachineMigration, seen)
        async with self._planning:  # two plans at once would both take the last place; no host is asked meanwhile
            plan = decide_plan(migration, vm, self._known(migration, view))
            if plan.action is None:
                status = report.planned(migration, plan, self._now())
                seen = await self._write(migration, seen, status) if status.wire() != migration.status.wire() else seen
        if isinstance(plan.action, act.CreateVolume):
            return await self._mark(migration, seen, plan.action)
        if plan.reach is not None:
            self._try(_key(migration), plan.reach)
        if ended(parsed(VirtualMachineMigration, seen)):
            return await self._let_go(_key(migration), seen)
        return Result(plan.requeue_after)

    async def _surveyed(self, migration: VirtualMachineMigration, vm: VirtualMachine | None) -> VMView:
        """What the caches say, and what the hosts that a plan asks for say now."""
        if vm is None:
            return VMView(self._fleet.cluster, {})
        view = observe.from_caches(self._fleet, (vm.metadata.namespace, vm.metadata.name), vm)
        for _ in range(MAX_LOOKS):
            plan = decide_plan(migration, vm, self._known(migration, view))
            if plan.look is None:
                break
            view = await observe.look_at_pools(self._fleet, vm, view, plan.look)
        return view

    def _try(self, key: Key, reach: Reach) -> None:
        """Have the source's daemon connect to the target's; the outcome wakes the migration up."""
        connection = self._fleet.connected(reach.host)
        self._peers.ask(key, reach.peers, lambda: connection.reach(reach.uuid, reach.peers.uri))

    def _known(self, migration: VirtualMachineMigration, view: VMView) -> PlanFleet:
        migrations, settings = tuple(self._fleet.migrations.values()), self._settings
        reached = self._peers.known(migration.metadata.uid)
        return PlanFleet(view, migrations, settings.migrations, self._now(), settings.migration_policy, reached)

    async def _mark(self, migration: VirtualMachineMigration, seen: Object, action: act.CreateVolume) -> Result:
        """Leave a mark in a pool: the next pass sees what came of it. A refused one ends the attempt."""
        connection = self._fleet.connected(action.host)
        try:
            await perform(action, connection, self._fleet.answer(action.host).facts)
        except HostError as error:
            why = f"pool {action.pool} of {action.host} could not be marked: {error.message}"
            if not _final(error):
                raise Retry(why) from error
            plan = Plan(Say("NotMigratable", f"StorageNotProved: {why}"))
            await self._write(migration, seen, report.planned(migration, plan, self._now()))
        return Result(0.0)

    # Going on

    async def _go_on(self, attempt: Attempt) -> Result:
        """Look at both hosts, decide, report, perform one action."""
        if self._early(attempt):
            return Result(ANSWER_SECONDS)
        sight = await self._hosts.look(attempt)
        decision = decide(attempt.migration, attempt.intent, sight.view)
        if decision.look_at_volumes:  # the hosts are asked again: that can take long
            sight = await self._hosts.look(attempt, await self._hosts.volumes(attempt.intent))
            decision = decide(attempt.migration, attempt.intent, sight.view)
        return await self._carry_out(attempt, sight, decision)

    def _early(self, attempt: Attempt) -> bool:
        """Whether the VM's controller has not had the time yet to acknowledge it; when it does, that is an event."""
        waited = (self._now() - attempt.intent.time).total_seconds()
        return waited < ANSWER_SECONDS and attempt.vm is not None and not attempt.acknowledged

    async def _carry_out(self, attempt: Attempt, sight: Sight, decision: MigrationDecision) -> Result:
        """Write down what cannot be read back, then act; a source that runs beside its target is stopped at once."""
        urgent = isinstance(decision.action, act.Suspend) and decision.ambiguous
        if urgent:
            await self._perform(attempt, decision)
        seen = await self._report(attempt, sight, decision)
        if decision.action is not None and asyncio.get_running_loop().time() - sight.looked > OLD_SECONDS:
            return Result(0.0)  # the write took long: what was seen may not be so any more
        if not urgent:
            await self._perform(attempt, decision)
        if decision.finished:
            return await self._let_go(attempt.key, seen)
        return Result(decision.requeue_after)

    async def _perform(self, attempt: Attempt, decision: MigrationDecision) -> None:
        """Carry out the action, if any. What it returned proves nothing: both hosts are looked at."""
        action = decision.action
        if action is None:
            return
        host = action.request.host if isinstance(action, act.ResumePostCopy) else action.host
        hypervisor = self._fleet.speaking_for(host, _identity(attempt.intent, host))
        if hypervisor is None:
            raise Retry(f"no Hypervisor speaks for the host of {host}")
        name = hypervisor.metadata.name
        connection, facts = self._fleet.connected(name), self._fleet.answer(name).facts
        log.info("%s on %s", type(action).__name__, host, extra={"action": type(action).__name__})
        call = perform_migration(action, connection, facts)
        if isinstance(action, LONG):
            self._calls.begin(attempt.key, call)
            return
        attempt.memory.volume_error = ""
        try:
            await call
            attempt.memory.refused = ("", "")
        except HostError as error:
            attempt.memory.refused = decision.row.number, error.message
            log.info("%s was refused, or not answered: %s", type(action).__name__, error.message)
            if isinstance(action, act.CreateVolume) and _final(error):
                attempt.memory.volume_error = error.message

    # Reporting

    async def _report(self, attempt: Attempt, sight: Sight, decision: MigrationDecision) -> Object:
        """Write the status: a change of the decision at once, mere progress ever more seldom."""
        old = attempt.migration.status
        status = report.status(attempt.migration, sight.view, decision)
        if sight.progress is not None:
            status = report.with_progress(status, sight.progress)
        if decision.say.reason == "Migrated" and (told := await self._cost(attempt.intent)) is not None:
            cost = report.cost_at_end(status.cost, told.transferred, told.downtime)
            status = status.model_copy(update={"cost": cost})
        if not report.due(old, status, sight.progress, self._settings.migration_write_seconds):
            return attempt.seen
        return await self._write(attempt.migration, attempt.seen, status)

    async def _cost(self, intent: IntentStatus) -> Cost | None:
        """What libvirt on the target says that it cost; it forgets that with its next job, or when it restarts."""
        target = self._fleet.speaking_for(intent.target, intent.target_uuid)
        connection = self._fleet.connection(target.metadata.name) if target else None
        if connection is None:
            return None
        try:
            async with asyncio.timeout(self._settings.connect_timeout_seconds):
                return await connection.cost(intent.domain_uuid)
        except (HostError, TimeoutError) as error:
            log.info("what the migration cost is not known: %s", error)
            return None

    async def _write(
        self, migration: VirtualMachineMigration, seen: Object, status: VirtualMachineMigrationStatus
    ) -> Object:
        change = self._client.apply_status(VirtualMachineMigration, seen, status.wire(), STATUS_MANAGER)
        written = await self._changed(_key(migration), "the status could not be written", change)
        self._written(_key(migration), self._fleet.migrations[_key(migration)])
        self._tell(migration, seen, status)
        return written

    def _tell(self, migration: VirtualMachineMigration, seen: Object, status: VirtualMachineMigrationStatus) -> None:
        """An Event for each transition of the reason."""
        if status.reason is None or status.reason == migration.status.reason:
            return
        row = reasons.MIGRATION[status.reason]
        found = condition(status.conditions, "Succeeded")
        text = found.message if found else row.sentence()
        log.info("is %s: %s", row.state, text)
        warning = row.ready == "False" or row.state == "Ambiguous"
        self._recorder.record("VirtualMachineMigration", seen, status.reason, text, warning=warning)

    # The end

    async def _let_go(self, key: Key, seen: Object) -> Result:
        """The attempt has ended: nothing holds the object any more."""
        self._forget(key)
        if FINALIZER in seen["metadata"].get("finalizers", []):
            await self._finalizers(self._client.remove_finalizer, seen)
        return Result(0.0)

    async def _expire(self, key: Key, migration: VirtualMachineMigration, seen: Object) -> Result:
        """An attempt that has ended: the object goes when its time is over, and is held by nothing until then."""
        if FINALIZER in migration.metadata.finalizers:
            return await self._let_go(key, seen)
        expiry = report.expiry(migration)
        if expiry is None:
            return Result()
        left = (expiry - self._now()).total_seconds()
        if left > 0:
            return Result(left)
        with retried("the migration has expired and could not be deleted"):
            await self._client.delete(VirtualMachineMigration, seen)
        return Result()

    async def _finalizers(self, change: Callable[..., Awaitable[Object]], seen: Object) -> Object:
        key = seen["metadata"]["namespace"], seen["metadata"]["name"]
        return await self._changed(
            key, "the finalizer could not be changed", change(VirtualMachineMigration, seen, FINALIZER)
        )

    async def _changed(self, key: Key, refused: str, change: Awaitable[Object]) -> Object:
        """What was written, and is known from now on. What could not be, or may be gone with it, is read anew."""
        self._recent.forget(key)
        with retried(refused):
            written = await change
        migration = parsed(VirtualMachineMigration, written)
        if not migration.metadata.deleting:
            self._recent.put(key, written)
        self._fleet.note_migration(key, migration)
        return written


def _final(error: HostError) -> bool:
    """Whether a volume was refused: not when it may have been made."""
    return not isinstance(error, HostUnreachable) and error.code != STORAGE_VOL_EXIST


def _key(migration: VirtualMachineMigration) -> Key:
    return migration.metadata.namespace, migration.metadata.name


def _identity(intent: IntentStatus, host: str) -> str:
    return intent.source_uuid if host == intent.source else intent.target_uuid
