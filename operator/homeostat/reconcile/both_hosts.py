# SPDX-License-Identifier: Apache-2.0
"""Looking at both hosts of a migration: what its decision reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from homeostat.api import actions as act
from homeostat.api.migration import IntentStatus, MarksStatus, ObservationStatus, VirtualMachineMigration
from homeostat.api.migration_policy import EffectivePolicy
from homeostat.api.observed import Answer, Present, Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import migration_report as report
from homeostat.decide import wanted
from homeostat.decide.migratable import off_limits
from homeostat.decide.migration import first_seen
from homeostat.decide.migration_case import MigrationView, asked_lately
from homeostat.decide.migration_copy import Names
from homeostat.decide.migration_plan import policy_anew, request
from homeostat.decide.migration_policy import WAIT, Progress, advise
from homeostat.decide.migration_table import WITHOUT_PROCESS, Seen, Side, kind
from homeostat.decide.vm import stopping
from homeostat.decide.whereabouts import abandoned, claim
from homeostat.hosts.migration import Job, Out
from homeostat.reconcile import observe
from homeostat.reconcile.calls import Calls
from homeostat.reconcile.fleet import Fleet
from homeostat.reconcile.settings import Settings
from homeostat.runtime.controller import Key

Object = dict[str, Any]


@dataclass(slots=True)
class Memory:
    """What this process remembers of a migration between passes: losing it costs a repetition."""

    lowest: tuple[int, float] | None = None
    """The least that was left to copy, and since when."""
    untold: str = ""
    """What a host said first that does not tell its job."""
    refused: tuple[str, str] = ("", "")
    """The row of the last step, when it was refused, and why."""
    volume_error: str = ""
    """What libvirt said to the last request for a volume."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A migration that has an intent: the object and its VM as read, what it says, and what is remembered of it."""

    key: Key
    seen: Object
    migration: VirtualMachineMigration
    intent: IntentStatus
    vm: VirtualMachine | None
    memory: Memory

    @property
    def acknowledged(self) -> bool:
        """Whether the VM's controller knows of this migration, keeps its hands off, and has recorded the target."""
        if self.vm is None or self.vm.status.migration is None:
            return False
        known = self.vm.status.migration.uid == self.migration.metadata.uid
        return known and any(each.host_uuid == self.intent.target_uuid for each in self.vm.status.candidates)


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of an attempt, and when the hosts had answered, by the loop's clock."""

    view: MigrationView
    progress: Progress | None
    looked: float


@dataclass(frozen=True, slots=True)
class BothHosts:
    """The two hosts of each migration, asked now."""

    fleet: Fleet
    settings: Settings
    now: Callable[[], datetime]
    calls: Calls

    def with_policy(self, migration: VirtualMachineMigration, intent: IntentStatus) -> VirtualMachineMigration:
        """The migration with the policy that it lacks when an operator of another version did not write it."""
        source = self.fleet.speaking_for(intent.source, intent.source_uuid)
        target = self.fleet.speaking_for(intent.target, intent.target_uuid)
        if migration.status.policy is not None or source is None or target is None:
            return migration
        policy = policy_anew(migration, intent, source.spec, target.spec, self.settings.migration_policy)
        return migration.model_copy(update={"status": migration.status.model_copy(update={"policy": policy})})

    async def look(self, attempt: Attempt, volumes: Mapping[tuple[str, str], Names] | None = None) -> Sight:
        """Ask the source, then the target: one that has nothing after the other was seen without a job gets nothing."""
        key, migration, intent, memory = attempt.key, attempt.migration, attempt.intent, attempt.memory
        told, now = migration.status.decision, self.now()
        source, job = await self._look(attempt, intent.source, intent.source_uuid, told.source if told else None)
        target, other = await self._look(attempt, intent.target, intent.target_uuid, told.target if told else None)
        progress = self._progress(attempt, job) if isinstance(job, Out) else None
        policy = migration.status.policy or EffectivePolicy()
        memory.untold = _untold(memory, (intent.source, source, job), (intent.target, target, other))
        view = MigrationView(
            source,
            target,
            since=first_seen(migration, source, target, now),
            now=now,
            grace=self.settings.migration_grace_seconds + 1,  # times on record are whole seconds: one may be that early
            request=self._request(attempt, policy),
            calling=self.calls.calling(key),
            called=self.calls.age(key),
            resume=self.settings.migration_resume_seconds,
            ended=self.calls.ended(key),
            listed=attempt.acknowledged,
            hands_off=_hands_off(attempt.vm),
            abandoned=_abandoned(attempt.vm, (intent.source, source), (intent.target, target)),
            vm_stops=stopping(attempt.vm),
            advice=advise(policy, progress) if progress else WAIT,
            untold=memory.untold,
            refused=memory.refused,
            volumes=volumes,
            volume_error=memory.volume_error,
        )
        return Sight(view, progress, asyncio.get_running_loop().time())

    async def _look(
        self, attempt: Attempt, name: str, host_uuid: str, old: ObservationStatus | None
    ) -> tuple[Side, Job | Unknown | None]:
        hypervisor = self.fleet.speaking_for(name, host_uuid)
        if hypervisor is None:
            return Unknown("HypervisorMissing", f"no Hypervisor speaks for the host of {name}"), None
        name = hypervisor.metadata.name
        informer = self.fleet.informers.get(name)
        if informer is None:
            return Unknown("HostNotAsked", f"Hypervisor {name} is not connected"), None
        found = await informer.look(attempt.intent.domain_uuid, "", job=True)
        released = self.fleet.released(hypervisor)
        word = None if found.job is None else type(found.job).__name__
        answer = self._of_the_vm(attempt, found.answer, name)
        return report.side_of(answer, word, old, released=released), found.job

    def _of_the_vm(self, attempt: Attempt, answer: Answer, name: str) -> Answer:
        """The answer; unknown when the domain is not the VM's: nothing is done to it, and nothing follows from it."""
        mine = attempt.vm is not None and wanted.domain_uuid(attempt.vm) == attempt.intent.domain_uuid
        if attempt.vm is None or not mine or not isinstance(answer, Present):
            return answer
        whose = claim(attempt.vm, answer.domain.owner, self.fleet.cluster)
        return answer if whose == "ours" else Unknown("ForeignDomain", f"{name} has a domain of that UUID: {whose}")

    def _request(self, attempt: Attempt, policy: EffectivePolicy) -> act.Migrate:
        intent = attempt.intent
        target = self.fleet.speaking_for(intent.target, intent.target_uuid)
        if target is None:  # then the target is unknown, and nothing is asked for
            return act.Migrate(intent.source, intent.domain_uuid, "")
        return request(attempt.migration, intent, policy, target.spec)

    def _progress(self, attempt: Attempt, job: Out) -> Progress:
        marks, now = attempt.migration.status.marks or MarksStatus(), asyncio.get_running_loop().time()
        lowest = attempt.memory.lowest
        if lowest is None or job.remaining < lowest[0]:
            attempt.memory.lowest = lowest = (job.remaining, now)
        return Progress(
            elapsed=job.elapsed / 1000,
            iteration=job.iteration,
            remaining=job.remaining,
            size=job.total,
            dirty_rate=job.dirty_rate * job.page_size,
            bandwidth=job.bytes_per_second,
            downtime_limit_ms=job.max_downtime,
            stalled=now - lowest[1],
            post_copy=attempt.intent.post_copy == "Enabled",
            suspended=asked_lately(marks.force_completed, self.now()),
            switched=asked_lately(marks.post_copy, self.now()),
            transferred=job.processed,
        )

    async def volumes(self, intent: IntentStatus) -> dict[tuple[str, str], Names]:
        """What is in the pools of disks that are copied: first on the source, whose marks no target may show."""
        sources = [(intent.source, intent.source_uuid, copy.source_pool) for copy in intent.copies]
        targets = [(intent.target, intent.target_uuid, copy.target_pool) for copy in intent.copies]
        names: dict[tuple[str, str], Names] = {}
        for host, host_uuid, pool in dict.fromkeys([*sources, *targets]):
            hypervisor = self.fleet.speaking_for(host, host_uuid)
            name = hypervisor.metadata.name if hypervisor else ""
            names[host, pool] = await observe.everything(self.fleet, name, pool)
        return names


def _abandoned(vm: VirtualMachine | None, *sides: tuple[str, Side]) -> str:
    """The first host that cannot be asked and that the owner of a VM that is being deleted gave up; "" if none is."""
    given_up = (name for name, side in sides if isinstance(side, Unknown) and vm is not None and abandoned(vm, name))
    return next(given_up, "")


def _hands_off(vm: VirtualMachine | None) -> str:
    say = off_limits(vm) if vm is not None else None
    return f"{say.reason}: {say.detail}" if say is not None else ""


def _untold(memory: Memory, *sides: tuple[str, Side, Job | Unknown | None]) -> str:
    """What the first of these hosts says that has the domain and does not tell its job, in its first words."""
    words = [
        f"asked for the job, {name} said: {job.message}"
        for name, side, job in sides
        if isinstance(job, Unknown) and _there(side)
    ]
    return (memory.untold or words[0]) if words else ""


def _there(side: Side) -> bool:
    return isinstance(side, Seen) and kind(side) not in WITHOUT_PROCESS
