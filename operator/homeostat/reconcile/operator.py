# SPDX-License-Identifier: Apache-2.0
"""The operator: three controllers, their source of events, and what wakes whom."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from homeostat.api.hypervisor import Hypervisor
from homeostat.api.meta import Resource
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.reading import read
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import evacuation
from homeostat.decide.migration import ended
from homeostat.decide.migration_turn import next_in_turn
from homeostat.hosts.driver import Driver
from homeostat.kube.client import Client
from homeostat.kube.events import Recorder
from homeostat.kube.source import Source
from homeostat.kube.transport import Transport
from homeostat.reconcile.fleet import Fleet, outdated
from homeostat.reconcile.hypervisor import HypervisorReconciler
from homeostat.reconcile.migration import MigrationReconciler
from homeostat.reconcile.settings import Settings
from homeostat.reconcile.vm import VMReconciler
from homeostat.runtime.controller import Controller, Key

R = TypeVar("R", bound=Resource)
log = logging.getLogger(__name__)

FIGURES_SECONDS = 1.0
"""How long a host's own reconcile waits after a VM or a domain has changed: it sums up over all of them."""

TURN = 50
"""Objects of a list that are read before others have a turn."""
EVACUATION_SECONDS = 0.2
"""How long an evacuation waits after one of its VMs or migrations has changed, which several do at once."""


class Operator:
    """Everything of one operator process but its lease, its HTTP endpoints and its signals."""

    def __init__(
        self,
        *,
        transport: Transport,
        driver: Driver,
        source: Source,
        now: Callable[[], datetime],
        settings: Settings | None = None,
        namespace: str = "homeostat-system",
    ) -> None:
        self._source = source
        self.settings = settings = settings or Settings()
        self.client = Client(transport, namespace)
        self.fleet = Fleet(now, self._room_changed, settings.call_deadline_seconds)
        self._facts: dict[tuple[str, Key], object] = {}
        self._recorder = Recorder(transport, now)
        shared = (self.client, self.fleet, self._recorder, settings, now)
        self.hypervisors = Controller(
            "hypervisor",
            HypervisorReconciler(*shared, driver, self._host_changed).reconcile,
            keys=self._hypervisor_keys,
            workers=4,
            resync_seconds=settings.resync_seconds,
        )
        self._vm_reconciler = VMReconciler(*shared, self._wake_vm, self._vm_changed)
        self.vms = Controller(
            "virtualmachine",
            self._vm_reconciler.reconcile,
            keys=self._vm_keys,
            workers=settings.vm_workers,
            resync_seconds=settings.resync_seconds,
        )
        self.migrations = Controller(
            "virtualmachinemigration",
            MigrationReconciler(*shared, self._wake_migration, self._migration_changed).reconcile,
            keys=self._migration_keys,
            workers=settings.migration_workers,
            resync_seconds=settings.resync_seconds,
        )

    async def run(self) -> None:
        """Work until cancelled; raises when the API server does not answer at first."""
        self.fleet.cluster = await self.client.cluster_id()
        self.fleet.awaiting = True
        plurals = (Hypervisor.plural, VirtualMachine.plural, VirtualMachineMigration.plural)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._source.run(plurals, self._seen), name="source")
                group.create_task(self._recorder.run(), name="events")
                group.create_task(self.hypervisors.run(), name="hypervisors")
                group.create_task(self._migrations_after_hypervisors(), name="migrations")
                group.create_task(self._vms_after_the_others(), name="virtualmachines")
                group.create_task(self._first_answers(), name="first-answers")
        finally:
            await asyncio.gather(
                *(informer.close() for informer in self.fleet.informers.values()), return_exceptions=True
            )

    @property
    def synced(self) -> bool:
        """Whether all kinds were listed since the start."""
        return all(each.synced.is_set() for each in (self.hypervisors, self.vms, self.migrations))

    async def _migrations_after_hypervisors(self) -> None:
        await self.hypervisors.synced.wait()
        await self.migrations.run()

    async def _vms_after_the_others(self) -> None:
        # A VM decided on before any Hypervisor is known would be told that there is no host, and one decided on before
        # its migration is known could be taken for one that runs twice.
        await self.migrations.synced.wait()
        await self.vms.run()

    async def _first_answers(self) -> None:
        """From when VMs are known, wait for hosts that were not asked yet as long as an attempt to connect may take.

        Until then a VM is not believed to be off because the host that it is said to be on says so: a person may have
        moved it while no operator looked.
        """
        await self.vms.synced.wait()
        await asyncio.sleep(self.settings.connect_timeout_seconds)
        late = [name for name, each in self.fleet.hypervisors.items() if self.fleet.awaited(each)]
        self.fleet.awaiting = False
        for name in late:
            self._host_changed(name, None)

    async def _hypervisor_keys(self) -> Iterable[Key]:
        items = [_parsed(Hypervisor, item) for item in await self.client.list_all(Hypervisor)]
        there = {item.metadata.name: item for item in items if item is not None}
        for name, item in there.items():
            self.fleet.note_hypervisor(name, item)
        # What was known and is not listed any more is looked at too: its deletion may have been missed.
        return [("", name) for name in self.fleet.hypervisors.keys() | there.keys()]

    async def _vm_keys(self) -> Iterable[Key]:
        keys, doubted = await self._listed(VirtualMachine, self.fleet.vms, self.fleet.note_vm)
        self.fleet.doubted |= doubted
        if not self.fleet.listed:
            self.fleet.listed = True
            for name in self.fleet.hypervisors:
                self.hypervisors.queue.add(("", name))
        return keys

    async def _migration_keys(self) -> Iterable[Key]:
        keys, _ = await self._listed(VirtualMachineMigration, self.fleet.migrations, self.fleet.note_migration)
        return keys

    async def _listed(
        self, kind: type[R], known: Mapping[Key, R], note: Callable[[Key, R | None], None]
    ) -> tuple[Iterable[Key], set[Key]]:
        """Note all objects of a kind; keys of these and of those that were known, and which of them the list doubts.

        What is known and not listed may be newer than the list: it is forgotten when it is looked at, and not there.
        """
        there = await _read_all(kind, await self.client.list_all(kind), known)
        doubted = known.keys() - there.keys()
        for key, each in there.items():
            if outdated(known.get(key), {"resourceVersion": each.metadata.resource_version}):
                doubted.add(key)
            elif known.get(key) is not each:
                note(key, each)
        keys = dict.fromkeys([*there, *known])
        gone = [about for about in self._facts if about[0] == kind.plural and about[1] not in keys]
        for about in gone:
            del self._facts[about]
        return keys, doubted

    def _seen(self, plural: str, kind: str, item: dict[str, Any]) -> None:
        """An event: note the object, and look at what it may matter to."""
        key, there = (item["metadata"].get("namespace", ""), item["metadata"]["name"]), kind != "DELETED"
        if plural == Hypervisor.plural:
            self.hypervisors.queue.add(key)
        elif plural == VirtualMachine.plural:
            self._seen_vm(key, item, there=there)
        else:
            self._seen_migration(key, item, there=there)

    def _seen_vm(self, key: Key, item: dict[str, Any], *, there: bool) -> None:
        vm, version = _parsed(VirtualMachine, item) if there else None, item["metadata"]["resourceVersion"]
        if there and self._vm_reconciler.has_written(key, version):
            return
        if outdated(self.fleet.vms.get(key), item["metadata"]):
            self.fleet.doubted.add(key)
        else:
            self.fleet.note_vm(key, vm)
        if not (there and self._vm_reconciler.has_read(key, version)):
            self.vms.queue.add(key)
        self._vm_changed(key, vm)

    def _vm_changed(self, key: Key, vm: VirtualMachine | None) -> None:
        """Look at what a VM may matter to. Told by a watch, or by its own reconcile when it has written it."""
        self._wake_migrations(key)
        if self._news((VirtualMachine.plural, key), evacuation.read_of_vm(vm) if vm else None):
            self._look_at_evacuations()

    def _seen_migration(self, key: Key, item: dict[str, Any], *, there: bool) -> None:
        migration, known = _parsed(VirtualMachineMigration, item), self.fleet.migrations.get(key)
        if not outdated(known, item["metadata"]):
            self.fleet.note_migration(key, migration if there else None)
        if known is None or not there or known.metadata.resource_version != item["metadata"]["resourceVersion"]:
            self.migrations.queue.add(key)  # else it is a change that its own reconcile has made, or read
        if migration is not None:
            self._migration_changed(key, migration, there=there)

    def _migration_changed(self, key: Key, migration: VirtualMachineMigration, *, there: bool = True) -> None:
        """Look at what a migration may matter to, but for its progress. Told as of a VM."""
        facts = (migration.metadata.uid, evacuation.read_of_migration(migration)) if there else None
        if not self._news((VirtualMachineMigration.plural, key), facts):
            return
        if ended(migration) or not there:
            self._give_turn(migration)
        self.vms.queue.add((key[0], migration.spec.vm_ref.name))
        self._look_at_evacuations()

    def _news(self, about: tuple[str, Key], facts: object) -> bool:
        """Whether what others read of an object is something else than at its last event; None when it is gone."""
        old = self._facts.pop(about, None)
        if facts is not None:
            self._facts[about] = facts
        return facts is None or facts != old

    def _look_at_evacuations(self) -> None:
        for name, hypervisor in self.fleet.hypervisors.items():
            if hypervisor.spec.maintenance == "Evacuate":
                self.hypervisors.queue.add_after(("", name), EVACUATION_SECONDS)

    def _give_turn(self, done: VirtualMachineMigration) -> None:
        """A migration has ended: look at those that may have waited for its place."""
        for each in next_in_turn(done, self.fleet.migrations.values()):
            self._wake_migration((each.metadata.namespace, each.metadata.name))

    def _room_changed(self, hypervisors: frozenset[str]) -> None:
        """Hosts' figures change, and what waits for room may fit now."""
        for name in hypervisors:
            self.hypervisors.queue.add_after(("", name), FIGURES_SECONDS)
        for key in self.fleet.waiting():
            self.vms.queue.add(key)

    def _wake_vm(self, key: Key, *, resync: bool = False) -> None:
        """Look at a VM, and at its migrations."""
        self.vms.queue.add(key, resync=resync)
        self._wake_migrations(key, resync=resync)

    def _wake_migrations(self, key: Key, *, resync: bool = False) -> None:
        for migration in self.fleet.migrations_of(key):
            if not ended(migration):
                self.migrations.queue.add((key[0], migration.metadata.name), resync=resync)

    def _wake_migration(self, key: Key) -> None:
        self.migrations.queue.add(key)

    def _host_changed(self, hypervisor: str, uuids: set[str] | None) -> None:
        """Something changed on a host: look at these domains' VMs, or at all VMs."""
        self.hypervisors.queue.add_after(("", hypervisor), FIGURES_SECONDS if uuids else 0.0)
        if uuids is None:
            for key in list(self.fleet.vms):
                self._wake_vm(key, resync=True)
            return
        for uuid in uuids:
            known = self.fleet.key_of(uuid)
            for key in [known] if known else self.fleet.waiting():  # what a stranger left may be room for a VM
                self._wake_vm(key)


async def _read_all(kind: type[R], items: list[dict[str, Any]], known: Mapping[Key, R]) -> dict[Key, R]:
    """The objects of a list, those that can be read; what is known in the same version is not read again."""
    there: dict[Key, R] = {}
    for number, item in enumerate(items, 1):
        meta = item["metadata"]
        key = meta.get("namespace", ""), meta["name"]
        old = known.get(key)
        same = old is not None and (old.metadata.uid, old.metadata.resource_version) == (
            meta["uid"],
            meta["resourceVersion"],
        )
        each = old if same else _parsed(kind, item)
        if each is not None:
            there[key] = each
        if number % TURN == 0:
            await asyncio.sleep(0)  # thousands take seconds, and the lease has to be renewed
    return there


def _parsed(kind: type[Any], item: dict[str, Any]) -> Any:
    try:
        return read(kind, item)
    except ValidationError as error:
        meta = item.get("metadata", {})
        log.warning(
            "%s %s cannot be read: %s", kind.__name__, meta.get("name"), "; ".join(e["msg"] for e in error.errors())
        )
        return None
