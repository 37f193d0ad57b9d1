# SPDX-License-Identifier: Apache-2.0
"""A world to try the product in: hosts, storage, an API server, people, and operators that can be killed.

async with World(hosts=2) as world:
    world.vm("web")
    world.start()
    await world.run_until(lambda: world.ready("web"))
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import traceback
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from types import TracebackType
from typing import Any, Self

from homeostat.reconcile.settings import Settings
from tests.simulation.apiserver import ApiServer, Object
from tests.simulation.clients import Front, SimulatedSource, SimulatedTransport
from tests.simulation.clock import now
from tests.simulation.connection import Delivery, SimulatedDriver
from tests.simulation.effects import Effect, Effects, Fault, Life, current
from tests.simulation.invariants import Invariants
from tests.simulation.jsonpatch import merge_patched
from tests.simulation.machine import Machine
from tests.simulation.paths import SHORT, target
from tests.simulation.qemu import Ledger, Process
from tests.simulation.storage import Storage

PLURALS = {short: plural for plural, short in SHORT.items()} | {"secret": "secrets", "namespace": "namespaces"}
POLL_SECONDS = 0.25
REST_SECONDS = 90.0
"""Longer than between two bulk lists of a host, two writes of figures, and until a start counts as a success."""


class World:
    """Hosts h1, h2, … with pools `shared` (one storage, if `shared`) and `local`, and the Hypervisors for them."""

    def __init__(
        self,
        hosts: int = 2,
        *,
        locks: bool = False,
        seed: int = 1,
        settings: Settings | None = None,
        shared: bool = True,
    ) -> None:
        self.effects = Effects()
        self.effects.kill = self._kill
        self.ledger = Ledger(self.effects)
        self.api = ApiServer(now)
        self.front = Front()
        self.events = Delivery()
        self.settings = settings or Settings()
        self.hosts: dict[str, Machine] = {}
        self.addresses: dict[str, Machine] = {}
        self.storages: dict[str, Storage] = {}
        self.lives: list[Life] = []
        self.transports: list[SimulatedTransport] = []
        self._seed = seed
        self._errors = _Errors(self.effects)
        common = self._storage("shared", locks=locks) if shared else None
        for number in range(1, hosts + 1):
            self._add_host(number, common, locks=locks)
        self.invariants = Invariants(self)

    def _storage(self, name: str, *, locks: bool) -> Storage:
        self.storages[name] = Storage(name, locks)
        return self.storages[name]

    def _add_host(self, number: int, common: Storage | None, *, locks: bool) -> None:
        name = f"h{number}"
        host = Machine(name, number, self.effects, self.ledger)
        host.peers = self.addresses
        self.hosts[name] = self.addresses[f"qemu+tcp://{name}/system"] = host
        host.add_pool("local", self._storage(f"{name}-local", locks=locks))
        host.add_pool("shared", common or self._storage(f"{name}-shared", locks=locks))
        pools = [{"name": each, "pool": each, "allowedNamespaces": ["*"]} for each in ("local", "shared")]
        if common is not None:
            pools[1] |= {"storageID": "nfs", "locks": "Effective" if locks else "None"}
        lan = {"name": "lan", "type": "Bridge", "bridge": {"name": "br0"}, "allowedNamespaces": ["*"]}
        self.apply("hv", name, {"uri": f"qemu+tcp://{name}/system", "pools": pools, "networks": [lan]})

    async def __aenter__(self) -> Self:
        random.seed(self._seed)
        asyncio.get_running_loop().set_task_factory(_task_of_its_life)
        logging.getLogger("homeostat").addHandler(self._errors)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("homeostat").removeHandler(self._errors)
        for life in self.lives:
            if life.alive:
                self._kill(life)
        if kind is None:
            self.check()
            missed = [str(fault) for fault in self.effects.faults if not fault.reached]
            assert not missed, f"these faults never happened: {'; '.join(missed)}"

    # The operator -----------------------------------------------------------------------------------------------------

    def start(self, settings: Settings | None = None) -> Life:
        """Starts an operator. Several may be at work at once."""
        life = Life(len(self.lives) + 1)
        self.lives.append(life)
        context = Context()
        context.run(current.set, life)
        task = asyncio.get_running_loop().create_task(self._operate(life, settings or self.settings), context=context)
        task.add_done_callback(lambda ended: self._operator_ended(life, ended))
        return life

    async def _operate(self, life: Life, settings: Settings) -> None:
        from homeostat.reconcile.operator import Operator

        transport = SimulatedTransport(self.api, self.front, life, self.effects)
        self.transports.append(transport)
        await Operator(
            transport=transport,
            driver=SimulatedDriver(self.addresses, life, self.effects, self.events),
            source=SimulatedSource(self.api, self.front, life, self.effects),
            now=now,
            settings=settings,
        ).run()

    def _operator_ended(self, life: Life, task: asyncio.Task[None]) -> None:
        if life.alive:
            why = "it was cancelled" if task.cancelled() else repr(task.exception())
            self.effects.violated(f"operator {life.number} ended by itself: {why}")

    def kill(self) -> None:
        """Kills the operator started last: its tasks end at once, and no call of its ever returns."""
        self._kill(self.lives[-1])

    @staticmethod
    def _kill(life: Life) -> None:
        life.alive = False
        for hang_up in life.hang_ups:
            hang_up()
        for task in list(life.tasks):
            task.cancel()

    # People -----------------------------------------------------------------------------------------------------------

    def apply(self, kind: str, name: str, spec: Object, *, namespace: str = "default", **metadata: Any) -> Object:
        """Create an object, as kubectl does."""
        where = target(PLURALS[kind], "", "" if kind in ("hv", "namespace") else namespace)
        return self.api.create(where, {"metadata": {"name": name, **metadata}, "spec": spec})

    def vm(self, name: str, *, namespace: str = "default", **spec: Any) -> Object:
        """Create a VM with 64 MiB and one disk of 1 GiB on the shared pool, changed by `spec`."""
        disk = {"name": "root", "pool": "shared", "size": "1Gi"}
        return self.apply("vm", name, {"memory": {"size": "64Mi"}, "disks": [disk]} | spec, namespace=namespace)

    def edit(self, kind: str, name: str, *, namespace: str = "default", **changes: Any) -> Object:
        """Merge changes into an object: into its spec, unless `spec` or `metadata` is named."""
        where = self._target(kind, name, namespace)
        patch = changes if {"spec", "metadata"} & changes.keys() else {"spec": changes}
        return self.api.update(where, merge_patched(self.api.get(where), patch))

    def delete(self, kind: str, name: str, *, namespace: str = "default") -> None:
        """Delete an object, without waiting."""
        self.api.delete(self._target(kind, name, namespace))

    def get(self, kind: str, name: str, *, namespace: str = "default") -> Object | None:
        """Look at an object; None when there is none."""
        return self.api.objects.get(self._target(kind, name, namespace).key)

    @staticmethod
    def _target(kind: str, name: str, namespace: str) -> Any:
        return target(PLURALS[kind], name, "" if kind in ("hv", "namespace") else namespace)

    # Looking ----------------------------------------------------------------------------------------------------------

    def uuid(self, name: str, *, namespace: str = "default") -> str:
        """UUID of a VM's domain."""
        found = self.get("vm", name, namespace=namespace)
        assert found is not None, f"there is no VM {name}"
        return str(found["spec"].get("domainUUID") or found["metadata"]["uid"])

    def process(self, name: str, *, namespace: str = "default") -> Process | None:
        """The VM's process, None when it has none."""
        there = self.ledger.running(self.uuid(name, namespace=namespace))
        return there[0] if there else None

    def host_of(self, name: str) -> Machine:
        """The host the VM's process is on."""
        process = self.process(name)
        assert process is not None, f"{name} has no process"
        return self.hosts[process.host]

    def condition(self, kind: str, name: str, type_: str = "Ready", *, namespace: str = "default") -> Object:
        """A condition of an object; an empty one when it has none of that type."""
        found = self.get(kind, name, namespace=namespace) or {}
        conditions: list[Object] = found.get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == type_), {})

    def ready(self, name: str, *, namespace: str = "default") -> bool:
        """Whether the VM is Ready, decided on the generation it has now."""
        found = self.get("vm", name, namespace=namespace)
        ready = self.condition("vm", name, namespace=namespace)
        generation = found["metadata"]["generation"] if found else None
        return bool(ready.get("status") == "True" and ready.get("observedGeneration") == generation)

    # Time -------------------------------------------------------------------------------------------------------------

    @property
    def time(self) -> float:
        """Virtual seconds since the world began."""
        return asyncio.get_running_loop().time()

    async def run_until(self, true: Callable[[], Any], deadline: float = 60.0, what: str = "") -> float:
        """Lets time pass until something holds, and returns how long it took; fails when it does not in time."""
        began = self.time
        while not true():
            self.check()
            assert self.time - began < deadline, (
                f"not within {deadline} s: {what or 'what was waited for'}\n{self.tell()}"
            )
            await asyncio.sleep(POLL_SECONDS)
        return self.time - began

    async def settle(self, seconds: float) -> None:
        """Lets time pass."""
        await asyncio.sleep(seconds)
        self.check()

    async def rest(self, quiet: float = 0.0) -> None:
        """Lets the world come to rest, and checks that it is what the specs name and, for so long, that it is quiet."""
        await self.settle(REST_SECONDS)
        self.invariants.at_rest()
        if quiet:
            await self.invariants.quiet(quiet)

    async def running(self, name: str, deadline: float = 60.0) -> None:
        """Lets time pass until a VM is Ready and has a process."""
        await self.run_until(lambda: self.ready(name) and self.process(name), deadline, f"{name} running")

    async def gone(self, name: str, deadline: float = 300.0) -> None:
        """Lets time pass until a VM's object is gone."""
        await self.run_until(lambda: self.get("vm", name) is None, deadline, f"{name} gone")

    def status(self, name: str, kind: str = "vm") -> Object:
        """The status of an object."""
        found: Object = (self.get(kind, name) or {}).get("status", {})
        return found

    # Faults and what must hold ----------------------------------------------------------------------------------------

    def fault(
        self, at: Effect | tuple[str, int], do: str, *, on: str = ".*", meanwhile: Callable[[], object] | None = None
    ) -> Fault:
        """Has something go wrong at an effect; see Effects.fault. A world whose fault was never reached fails."""
        return self.effects.fault(at, do, on=on, meanwhile=meanwhile)

    def check(self) -> None:
        """Fails if an invariant was violated."""
        assert not self.effects.violations, "\n".join([*self.effects.violations, self.tell()])

    def tell(self) -> str:
        """What there is and what was done: for the message of a failure."""
        lines = [f"at {self.time:.3f} s"]
        for (resource, namespace, name), each in sorted(self.api.objects.items()):
            if resource in ("virtualmachines", "hypervisors"):
                status = {
                    k: v for k, v in each.get("status", {}).items() if k in ("state", "reason", "host", "candidates")
                }
                lines.append(f"  {resource} {namespace}/{name} {status}")
        for host in self.hosts.values():
            lines += [f"  {host.name}: {record.row()}" for record in host.records.values()]
        lines += [f"  {process}" for process in sorted(self.ledger.alive, key=str)]
        lines += [f"  {storage.name}: {sorted(storage.files)}" for storage in self.storages.values() if storage.files]
        return "\n".join([*lines, *(f"  effect {effect}" for effect in self.effects.log[-30:])])

    def requests(self) -> int:
        """How many requests the API server has had from operators, reads included."""
        return sum(transport.requests for transport in self.transports)

    def writes(self) -> list[Effect]:
        """All effects so far but those on Leases and Events."""
        return [effect for effect in self.effects.log if effect.name.split()[1] not in ("leases", "events")]


class _Errors(logging.Handler):
    """What the product logs as an error is a violation: a traceback, or an error nobody foresaw."""

    def __init__(self, effects: Effects) -> None:
        super().__init__(logging.ERROR)
        self._effects = effects

    def emit(self, record: logging.LogRecord) -> None:
        life = current.get()
        if life is None or life.alive:
            where = traceback.format_exc(limit=-3) if sys.exc_info()[0] is not None else ""
            self._effects.violated(f"logged as an error: {record.getMessage()}\n{where}")


def _task_of_its_life(
    loop: asyncio.AbstractEventLoop,
    coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    /,
    **options: Any,
) -> asyncio.Task[Any]:
    """Makes a task that is known to the operator it belongs to, so that it can end with it."""
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
    context: Context | None = options.get("context")
    life = context.get(current) if context is not None else current.get()
    if life is not None:
        life.tasks.add(task)
        task.add_done_callback(life.tasks.discard)
        if not life.alive:
            task.cancel()
    return task
