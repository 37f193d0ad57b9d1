# SPDX-License-Identifier: Apache-2.0
"""Worlds of simulated hosts and real objects: the operator between them can be killed at any of its API writes.

Any number of worlds share an API server: each has a namespace and Hypervisors of its own, and its operator is shown no
others. Time is real.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from homeostat.kube.http import HttpTransport
from homeostat.kube.transport import JSON, MERGE_PATCH, ApiError, ApiUnreachable
from homeostat.reconcile.operator import Operator
from homeostat.reconcile.settings import Settings
from tests.simulation.connection import Delivery, SimulatedDriver
from tests.simulation.effects import Call, Effects, Life, done_with, forever, read, write
from tests.simulation.machine import Machine
from tests.simulation.paths import Target, parse
from tests.simulation.qemu import Guest, Ledger
from tests.simulation.schema import clone
from tests.simulation.storage import Storage

Object = dict[str, Any]
Seen = Callable[[str, str, Object], None]
ROOT = "/apis/homeostat.dev/v1alpha1"
VMS, HYPERVISORS = "virtualmachines", "hypervisors"
POLL_SECONDS = 0.1
DEADLINE_SECONDS = 60.0
SETTLE_SECONDS = 0.5
SETTINGS = Settings(
    resync_seconds=5.0,
    host_resync_seconds=1.0,
    reconnect_seconds=1.0,
    settle_seconds=0.0,
    hypervisor_write_seconds=1.0,
    lease_seconds=0,
)
QUICK_GUEST = Guest(boots=0.0, obeys=0.1)
_numbers = itertools.count(1)


class Lists:
    """All objects of both kinds as they were last listed, and who wants to hear of changes."""

    def __init__(self, http: HttpTransport) -> None:
        self.http = http
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.listeners: list[Seen] = []

    async def run(self) -> None:
        """List and tell, until cancelled."""
        while True:
            for plural in (HYPERVISORS, VMS):
                items = (await self.http.request("GET", f"{ROOT}/{plural}"))["items"]
                self._note(plural, {_key(plural, each): each for each in items})
            await asyncio.sleep(POLL_SECONDS)

    def _note(self, plural: str, there: dict[tuple[str, str, str], Object]) -> None:
        known = {key: each for key, each in self.objects.items() if key[0] == plural}
        for key in known.keys() - there.keys():
            self._tell(plural, "DELETED", self.objects.pop(key))
        for key, each in there.items():
            before, self.objects[key] = known.get(key), each
            if before is None or _version(before) != _version(each):
                self._tell(plural, "MODIFIED" if before else "ADDED", each)

    def _tell(self, plural: str, kind: str, item: Object) -> None:
        for listener in list(self.listeners):
            listener(plural, kind, item)


def _key(plural: str, item: Object) -> tuple[str, str, str]:
    return plural, item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _version(item: Object) -> Any:
    return item["metadata"]["resourceVersion"]


class World:
    """Two hosts with a shared pool, their Hypervisors, a namespace, and operators one after another."""

    def __init__(self, lists: Lists) -> None:
        self.name = f"w-{uuid4().hex[:8]}"
        self.lists, self.http = lists, lists.http
        self.effects = Effects()
        self.effects.kill = self._kill
        self.ledger = Ledger(self.effects)
        self.storage = Storage("shared")
        self.hosts = {f"{self.name}-h{number}": self._host(f"{self.name}-h{number}") for number in (1, 2)}
        self.vm_name = ""
        self._vms = itertools.count(1)
        self._retained: set[str] = set()
        self._operators: list[tuple[Life, asyncio.Task[None]]] = []

    def _host(self, name: str) -> Machine:
        host = Machine(name, next(_numbers), self.effects, self.ledger)
        host.add_pool("shared", self.storage)
        host.default_guest = QUICK_GUEST
        return host

    def owns(self, item: Object) -> bool:
        """Whether an object is of this world."""
        meta = item["metadata"]
        return self.name == meta["namespace"] if "namespace" in meta else meta["name"] in self.hosts

    # Objects ----------------------------------------------------------------------------------------------------------

    async def make(self) -> None:
        """Create the namespace and the Hypervisors."""
        await self.http.request("POST", "/api/v1/namespaces", body={"metadata": {"name": self.name}})
        pool = {"name": "shared", "pool": "shared", "storageID": "nfs", "allowedNamespaces": ["*"]}
        for name in self.hosts:
            spec = {"uri": f"qemu+tcp://{name}/system", "pools": [pool]}
            await self.http.request("POST", f"{ROOT}/{HYPERVISORS}", body=_item("Hypervisor", name, spec))

    async def remove(self) -> None:
        """Kill the operator and remove every object."""
        for life, task in self._operators:
            self._kill(life)
            await asyncio.wait({task}, timeout=DEADLINE_SECONDS)
            assert task.cancelled(), f"operator {life.number} of {self.name} did not end as it should: {task}"
        loose = {"metadata": {"finalizers": None}}
        vms = [self._vm_path] if self.vm_name else []
        for path in (*(f"{ROOT}/{HYPERVISORS}/{name}" for name in self.hosts), *vms):
            try:
                await self.http.request("PATCH", path, body=loose, content_type=MERGE_PATCH)
                await self.http.request("DELETE", path)
            except ApiError as error:
                if error.status != 404:
                    raise
        await self.http.request("DELETE", f"/api/v1/namespaces/{self.name}")

    @property
    def _vm_path(self) -> str:
        return f"{ROOT}/namespaces/{self.name}/{VMS}/{self.vm_name}"

    async def create_vm(self) -> None:
        """Create a VM of a new name with a disk to be retained and one to be deleted."""
        self._retained = set(self.storage.files)
        self.ledger.processes.clear()
        self.vm_name = f"web-{next(self._vms)}"
        disk = {"pool": "shared", "size": "1Gi"}
        disks = [disk | {"name": "root"}, disk | {"name": "data", "deletionPolicy": "Delete"}]
        spec = {"memory": {"size": "64Mi"}, "disks": disks}
        where, name = self._vm_path.rsplit("/", 1)
        await self.http.request("POST", where, body=_item("VirtualMachine", name, spec))

    async def delete_vm(self) -> None:
        """Delete the VM."""
        await self.http.request("DELETE", self._vm_path)

    async def vm(self) -> Object | None:
        """The VM, read now; None when there is none."""
        try:
            return await self.http.request("GET", self._vm_path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    # Operators --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start an operator."""
        life = Life(len(self._operators) + 1)
        operator = Operator(
            transport=WorldTransport(self, life),
            driver=SimulatedDriver(
                {f"qemu+tcp://{name}/system": host for name, host in self.hosts.items()},
                life,
                self.effects,
                Delivery(),
            ),
            source=ListSource(self),
            now=lambda: datetime.now(UTC),
            settings=SETTINGS,
        )
        self._operators.append((life, asyncio.get_running_loop().create_task(operator.run())))

    def _kill(self, life: Life) -> None:
        """The operator is gone: its tasks end, and nothing that they still try gets through."""
        life.alive = False
        for hang_up in life.hang_ups:
            hang_up()
        for each, task in self._operators:
            if each is life:
                task.cancel()

    # Waiting and looking ----------------------------------------------------------------------------------------------

    async def until(self, true: Callable[[], object], what: str) -> None:
        """Wait until something holds; fails when it does not in time, or when an invariant is violated."""
        deadline = asyncio.get_running_loop().time() + DEADLINE_SECONDS
        while not true():
            self.check()
            assert asyncio.get_running_loop().time() < deadline, f"not in time: {what}\n{self.tell()}"
            await asyncio.sleep(POLL_SECONDS / 2)

    def writes(self) -> list[str]:
        """What was written to the API server about the VM, so far."""
        return [each.name for each in self.effects.log if each.object == self.vm_name]

    def check(self) -> None:
        """Fails if an invariant was violated, or if an operator ended by itself."""
        for life, task in self._operators:
            assert not (life.alive and task.done()), f"operator {life.number} ended: {task}\n{self.tell()}"
        assert not self.effects.violations, "\n".join([*self.effects.violations, self.tell()])

    def listed(self, plural: str, name: str) -> Object:
        """An object as it was last listed; an empty one when it was not."""
        return self.lists.objects.get((plural, self.name if plural == VMS else "", name), {})

    def hosts_ready(self) -> bool:
        """Whether every Hypervisor takes VMs."""
        return all(_ready(self.listed(HYPERVISORS, name)) for name in self.hosts)

    def running(self) -> bool:
        """Whether the VM is said to be as its spec says, and has a process."""
        return _ready(self.listed(VMS, self.vm_name)) and bool(self.ledger.alive)

    def gone(self) -> bool:
        """Whether there is no VM."""
        return not self.listed(VMS, self.vm_name)

    def found(self) -> dict[str, Any]:
        """What is on the hosts and, since the VM was created, on their storage."""
        return {
            "definitions": [
                (host.name, record.uuid, record.persistent is not None)
                for host in self.hosts.values()
                for record in host.records.values()
            ],
            "processes": [(each.host, each.uuid, each.cpus_since is not None) for each in self.ledger.alive],
            "files": sorted(self.storage.files.keys() - self._retained),
        }

    def tell(self) -> str:
        """What there is and what was done, for the message of a failure."""
        done = "\n".join(f"  {effect}" for effect in self.effects.log[-30:])
        return f"{self.name}: {self.found()}\n  {self.listed(VMS, self.vm_name)}\n{done}"


def _item(kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": "homeostat.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _ready(item: Object) -> bool:
    conditions = item.get("status", {}).get("conditions", [])
    return any(
        each["type"] == "Ready"
        and each["status"] == "True"
        and each.get("observedGeneration") == item["metadata"]["generation"]
        for each in conditions
    )


@asynccontextmanager
async def world(lists: Lists) -> AsyncIterator[World]:
    """A world with an operator at work and hosts that take VMs."""
    made = World(lists)
    await made.make()
    try:
        made.start()
        await made.until(made.hosts_ready, "hosts that take VMs")
        yield made
    finally:
        await made.remove()


class ListSource:
    """Tells an operator of the objects of its world."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def run(self, plurals: tuple[str, ...], seen: Seen) -> None:
        """See Source."""

        def relay(plural: str, kind: str, item: Object) -> None:
            if plural in plurals and self._world.owns(item):
                seen(plural, kind, clone(item))

        for (plural, _, _), item in list(self._world.lists.objects.items()):
            relay(plural, "", item)
        self._world.lists.listeners.append(relay)
        try:
            await forever()
        finally:
            self._world.lists.listeners.remove(relay)


class WorldTransport:
    """The way of one operator to the real API server, with the faults of the simulation on it."""

    def __init__(self, world: World, life: Life) -> None:
        self._world, self._life = world, life

    async def request(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None, content_type: str = JSON
    ) -> Object:
        """See Transport."""
        sent, target = clone(body), parse(path)

        async def execute() -> Object:
            answer = await self._world.http.request(method, path, query=query, body=sent, content_type=content_type)
            if "items" in answer:
                answer["items"] = [each for each in answer["items"] if self._world.owns(each)]
            return answer

        lost = ApiError(504, "Timeout", "Timeout: request did not complete within requested timeout")
        call = Call(self._life, execute, ApiUnreachable, lost, 0.0, _always)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            if method == "GET":
                answer: Object = await read(self._world.effects, call, reply)
            else:
                answer = await write(self._world.effects, call, reply, *_effect(method, target, query or {}, sent))
        finally:
            done_with(reply)
        return answer


async def _always() -> bool:
    return True


def _effect(method: str, target: Target, query: dict[str, str], body: Any) -> tuple[str, str]:
    """The object and the name of an effect."""
    about = body["involvedObject"]["name"] if target.resource == "events" else target.name
    what = " ".join(filter(None, (method, target.subresource, target.short, query.get("fieldManager"))))
    return about, what
