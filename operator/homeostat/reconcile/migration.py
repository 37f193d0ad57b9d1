# SPDX-License-Identifier: Apache-2.0
"""One pass over one VirtualMachineMigration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from homeostat.api import actions as act
from homeostat.api import reasons
from homeostat.api.meta import FINALIZER, Resource, condition
from homeostat.api.migration import (
    IntentStatus,
    MarksStatus,
    ObservationStatus,
    VirtualMachineMigration,
    VirtualMachineMigrationStatus,
)
from homeostat.api.migration_policy import EffectivePolicy
from homeostat.api.observed import Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import hypervisor as verdicts
from homeostat.decide import migration_report as report
from homeostat.decide.migration import MigrationDecision, MigrationView, asked_lately, decide, ended, first_seen
from homeostat.decide.migration_copy import Names
from homeostat.decide.migration_peers import Reach
from homeostat.decide.migration_plan import Fleet as PlanFleet
from homeostat.decide.migration_plan import Plan, request
from homeostat.decide.migration_plan import plan as decide_plan
from homeostat.decide.migration_policy import WAIT, Progress, advise
from homeostat.decide.migration_table import WITHOUT_PROCESS, Seen, Side, kind
from homeostat.decide.view import Say, VMView
from homeostat.decide.vm import stopping
from homeostat.hosts.driver import STORAGE_VOL_EXIST, HostError, HostUnreachable
from homeostat.hosts.migration import Cost, Job, Out
from homeostat.hosts.perform import perform, perform_migration
from homeostat.kube.client import Client
from homeostat.kube.events import Recorder
from homeostat.reconcile import observe
from homeostat.reconcile.calls import Calls
from homeostat.reconcile.fleet import Fleet
from homeostat.reconcile.peers import PeerBook
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


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over a migration that has an intent: the object as read, what it says, and what was seen."""

    key: Key
    seen: Object
    migration: VirtualMachineMigration
    intent: IntentStatus
    view: MigrationView
    progress: Progress | None
    looked: float
    """When the hosts had answered, by the loop's clock."""


class MigrationReconciler:
    """Reconciles VirtualMachineMigrations. What it keeps between passes only paces it: losing it costs a repetition."""

    def __init__(
        self,
        client: Client,
        fleet: Fleet,
        recorder: Recorder,
        settings: Settings,
        now: Callable[[], datetime],
        cluster: str,
        wake: Callable[[Key], None],
    ) -> None:
        self._client, self._fleet, self._recorder, self._settings = client, fleet, recorder, settings
        self._now, self._cluster = now, cluster
        self._calls, self._planning = Calls(wake), asyncio.Lock()
        self._peers = PeerBook(
            settings.call_deadline_seconds, wake, lambda: (each.metadata.uid for each in fleet.migrations.values())
        )
        self._lowest: dict[Key, tuple[int, float]] = {}  # the least that was left to copy, and since when
        self._untold: dict[Key, str] = {}  # what a host said first that does not tell its job
        self._refused: dict[Key, tuple[str, str]] = {}  # the row of the last step, when it was refused, and why
        self._volume_errors: dict[Key, str] = {}  # what libvirt said to the last request for a volume

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
        if self._early(migration, migration.status.intent, vm):
            return Result(ANSWER_SECONDS)
        current = await self._observe(key, seen, migration, migration.status.intent, vm)
        decision = decide(migration, current.intent, current.view)
        if decision.look_at_volumes:  # the hosts are asked again: that can take long
            volumes = await self._volumes(current.intent)
            current = await self._observe(key, seen, migration, current.intent, vm, volumes)
            decision = decide(migration, current.intent, current.view)
        return await self._carry_out(current, decision)

    # Reading

    async def _read(self, key: Key) -> Object | None:
        seen = await self._get(VirtualMachineMigration, *key)
        if seen is None:
            self._fleet.note_migration(key, None)
            self._forget(key)
        return seen

    async def _get(self, kind: type[Resource], namespace: str, name: str) -> Object | None:
        with retried(f"{kind.__name__} {name} could not be read"):
            return await self._client.get(kind, namespace, name)

    async def _vm(self, migration: VirtualMachineMigration) -> VirtualMachine | None:
        seen = await self._get(VirtualMachine, migration.metadata.namespace, migration.spec.vm_ref.name)
        return None if seen is None else VirtualMachine.model_validate(seen)

    def _early(self, migration: VirtualMachineMigration, intent: IntentStatus, vm: VirtualMachine | None) -> bool:
        """Whether the VM's controller has not had the time yet to acknowledge it; when it does, that is an event."""
        waited = (self._now() - intent.time).total_seconds()
        return waited < ANSWER_SECONDS and vm is not None and not _acknowledged(vm, migration, intent)

    def _forget(self, key: Key) -> None:
        self._calls.forget(key)
        self._lowest.pop(key, None)
        self._untold.pop(key, None)
        self._volume_errors.pop(key, None)
        self._refused.pop(key, None)

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
        if plan.action is not None:
            return await self._prepare(migration, seen, plan.action)
        if plan.reach is not None:
            self._try(_key(migration), plan.reach)
        if ended(VirtualMachineMigration.model_validate(seen)):
            return await self._let_go(_key(migration), seen)
        return Result(plan.requeue_after)

    async def _surveyed(self, migration: VirtualMachineMigration, vm: VirtualMachine | None) -> VMView:
        """What the caches say, and what the hosts that a plan asks for say now."""
        if vm is None:
            return VMView(self._cluster, {})
        view = observe.from_caches(self._fleet, (vm.metadata.namespace, vm.metadata.name), vm, self._cluster)
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

    async def _prepare(
        self, migration: VirtualMachineMigration, seen: Object, action: act.AddFinalizer | act.CreateVolume
    ) -> Result:
        """Hold the object, or leave a mark in a pool: the next pass sees what came of it. A refused mark ends it."""
        if isinstance(action, act.AddFinalizer):
            await self._finalizers(self._client.add_finalizer, seen)
            return Result(0.0)
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

    # Looking

    async def _observe(
        self,
        key: Key,
        seen: Object,
        migration: VirtualMachineMigration,
        intent: IntentStatus,
        vm: VirtualMachine | None,
        volumes: Mapping[tuple[str, str], Names] | None = None,
    ) -> Pass:
        """Ask the source, then the target: one that has nothing after the other was seen without a job gets nothing."""
        told, now = migration.status.decision, self._now()
        source, job = await self._look(intent.source, intent.source_uuid, intent, told.source if told else None)
        target, other = await self._look(intent.target, intent.target_uuid, intent, told.target if told else None)
        progress = self._progress(key, migration, intent, job) if isinstance(job, Out) else None
        policy = migration.status.policy or EffectivePolicy()
        view = MigrationView(
            source,
            target,
            since=first_seen(migration, source, target, now),
            now=now,
            grace=self._settings.migration_grace_seconds,
            request=self._request(migration, intent, policy),
            calling=self._calls.calling(key),
            called=self._calls.age(key),
            resume=self._settings.migration_resume_seconds,
            ended=self._calls.ended(key),
            listed=vm is not None and _acknowledged(vm, migration, intent),
            vm_stops=stopping(vm),
            advice=advise(policy, progress) if progress else WAIT,
            untold=self._untold_of(key, (intent.source, source, job), (intent.target, target, other)),
            refused=self._refused.get(key, ("", "")),
            volumes=volumes,
            volume_error=self._volume_errors.get(key, ""),
        )
        return Pass(key, seen, migration, intent, view, progress, asyncio.get_running_loop().time())

    def _untold_of(self, key: Key, *sides: tuple[str, Side, Job | Unknown | None]) -> str:
        """What the first of these hosts says that has the domain and does not tell its job, in its first words."""
        words = [f"{name}: {job.message}" for name, side, job in sides if isinstance(job, Unknown) and _there(side)]
        if not words:
            self._untold.pop(key, None)
            return ""
        return self._untold.setdefault(key, words[0])

    async def _volumes(self, intent: IntentStatus) -> dict[tuple[str, str], Names]:
        """What is in the pools of disks that are copied: first on the source, whose marks no target may show."""
        sources = [(intent.source, intent.source_uuid, copy.source_pool) for copy in intent.copies]
        targets = [(intent.target, intent.target_uuid, copy.target_pool) for copy in intent.copies]
        names: dict[tuple[str, str], Names] = {}
        for host, host_uuid, pool in dict.fromkeys([*sources, *targets]):
            hypervisor = self._fleet.speaking_for(host, host_uuid)
            name = hypervisor.metadata.name if hypervisor else ""
            names[host, pool] = await observe.everything(self._fleet, name, pool)
        return names

    def _request(
        self, migration: VirtualMachineMigration, intent: IntentStatus, policy: EffectivePolicy
    ) -> act.Migrate:
        target = self._fleet.speaking_for(intent.target, intent.target_uuid)
        if target is None:  # then the target is unknown, and nothing is asked for
            return act.Migrate(intent.source, intent.domain_uuid, "")
        return request(migration, intent, policy, target.spec)

    async def _look(
        self, name: str, host_uuid: str, intent: IntentStatus, old: ObservationStatus | None
    ) -> tuple[Side, Job | Unknown | None]:
        hypervisor = self._fleet.speaking_for(name, host_uuid)
        if hypervisor is None:
            return Unknown("HypervisorMissing", f"no Hypervisor speaks for the host of {name}"), None
        name = hypervisor.metadata.name
        informer = self._fleet.informers.get(name)
        if informer is None:
            return Unknown("HostNotAsked", f"Hypervisor {name} is not connected"), None
        found = await informer.look(intent.domain_uuid, "", job=True)
        released = verdicts.released(hypervisor, self._fleet.answer(name))
        return report.side_of(found.answer, _word(found.job), old, released=released), found.job

    def _progress(self, key: Key, migration: VirtualMachineMigration, intent: IntentStatus, job: Out) -> Progress:
        marks, now = migration.status.marks or MarksStatus(), asyncio.get_running_loop().time()
        lowest, since = self._lowest.get(key, (job.remaining, now))
        if job.remaining < lowest or key not in self._lowest:
            lowest, since = min(job.remaining, lowest), now
        self._lowest[key] = (lowest, since)
        return Progress(
            elapsed=job.elapsed / 1000,
            iteration=job.iteration,
            remaining=job.remaining,
            size=job.total,
            dirty_rate=job.dirty_rate * job.page_size,
            bandwidth=job.bytes_per_second,
            downtime_limit_ms=job.max_downtime,
            stalled=now - since,
            post_copy=intent.post_copy == "Enabled",
            suspended=asked_lately(marks.force_completed, self._now()),
            switched=asked_lately(marks.post_copy, self._now()),
            transferred=job.processed,
        )

    # Acting

    async def _carry_out(self, current: Pass, decision: MigrationDecision) -> Result:
        """Write down what cannot be read back, then act; a source that runs beside its target is stopped at once."""
        urgent = isinstance(decision.action, act.Suspend) and decision.ambiguous
        if urgent:
            await self._perform(current, decision)
        seen = await self._report(current, decision)
        if decision.action is not None and asyncio.get_running_loop().time() - current.looked > OLD_SECONDS:
            return Result(0.0)  # the write took long: what was seen may not be so any more
        if not urgent:
            await self._perform(current, decision)
        if decision.finished:
            return await self._let_go(current.key, seen)
        return Result(decision.requeue_after)

    async def _perform(self, current: Pass, decision: MigrationDecision) -> None:
        """Carry out the action, if any. What it returned proves nothing: both hosts are looked at."""
        action = decision.action
        if action is None:
            return
        host = action.request.host if isinstance(action, act.ResumePostCopy) else action.host
        hypervisor = self._fleet.speaking_for(host, _identity(current.intent, host))
        if hypervisor is None:
            raise Retry(f"no Hypervisor speaks for the host of {host}")
        name = hypervisor.metadata.name
        connection, facts = self._fleet.connected(name), self._fleet.answer(name).facts
        log.info("%s on %s", type(action).__name__, host, extra={"action": type(action).__name__})
        call = perform_migration(action, connection, facts)
        if isinstance(action, LONG):
            self._calls.begin(current.key, call)
            return
        self._volume_errors.pop(current.key, None)
        try:
            await call
            self._refused.pop(current.key, None)
        except HostError as error:
            self._refused[current.key] = decision.row.number, error.message
            log.info("%s was refused, or not answered: %s", type(action).__name__, error.message)
            if isinstance(action, act.CreateVolume) and _final(error):
                self._volume_errors[current.key] = error.message

    # Reporting

    async def _report(self, current: Pass, decision: MigrationDecision) -> Object:
        """Write the status: a change of the decision at once, mere progress ever more seldom."""
        old = current.migration.status
        status = report.status(current.migration, current.view, decision)
        if current.progress is not None:
            cost = report.cost_so_far(old.cost, current.progress)
            status = status.model_copy(update={"progress": report.progress(current.progress), "cost": cost})
        if decision.say.reason == "Migrated" and (told := await self._cost(current.intent)) is not None:
            cost = report.cost_at_end(status.cost, told.transferred, told.downtime)
            status = status.model_copy(update={"cost": cost})
        if not report.due(old, status, current.progress, self._settings.migration_write_seconds):
            return current.seen
        return await self._write(current.migration, current.seen, status)

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
        with retried("the status could not be written"):
            written = await self._client.apply_status(VirtualMachineMigration, seen, status.wire(), STATUS_MANAGER)
        self._fleet.note_migration(_key(migration), VirtualMachineMigration.model_validate(written))
        await self._tell(migration, seen, status)
        return written

    async def _tell(
        self, migration: VirtualMachineMigration, seen: Object, status: VirtualMachineMigrationStatus
    ) -> None:
        """An Event for each transition of the reason."""
        if status.reason is None or status.reason == migration.status.reason:
            return
        row = reasons.MIGRATION[status.reason]
        found = condition(status.conditions, "Succeeded")
        text = found.message if found else row.sentence()
        log.info("is %s: %s", row.state, text)
        warning = row.ready == "False" or row.state == "Ambiguous"
        await self._recorder.record("VirtualMachineMigration", seen, status.reason, text, warning=warning)

    # The end

    async def _let_go(self, key: Key, seen: Object) -> Result:
        """The attempt has ended: nothing holds the object any more."""
        self._forget(key)
        if FINALIZER in seen["metadata"].get("finalizers", []):
            await self._finalizers(self._client.remove_finalizer, seen)
        return Result(0.0)

    async def _expire(self, key: Key, migration: VirtualMachineMigration, seen: Object) -> Result:
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
        with retried("the finalizer could not be changed"):
            return await change(VirtualMachineMigration, seen, FINALIZER)


def _final(error: HostError) -> bool:
    """Whether a volume was refused: not when it may have been made."""
    return not isinstance(error, HostUnreachable) and error.code != STORAGE_VOL_EXIST


def _key(migration: VirtualMachineMigration) -> Key:
    return migration.metadata.namespace, migration.metadata.name


def _there(side: Side) -> bool:
    return isinstance(side, Seen) and kind(side) not in WITHOUT_PROCESS


def _word(job: Job | Unknown | None) -> str | None:
    return None if job is None else type(job).__name__


def _identity(intent: IntentStatus, host: str) -> str:
    return intent.source_uuid if host == intent.source else intent.target_uuid


def _acknowledged(vm: VirtualMachine, migration: VirtualMachineMigration, intent: IntentStatus) -> bool:
    """Whether the VM's controller knows of this migration, keeps its hands off, and has recorded the target."""
    known = vm.status.migration is not None and vm.status.migration.uid == migration.metadata.uid
    return known and any(candidate.host_uuid == intent.target_uuid for candidate in vm.status.candidates)
