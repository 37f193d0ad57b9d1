# SPDX-License-Identifier: Apache-2.0
"""How an operator reaches the API server: requests in phases, and watches with gaps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from homeostat.kube.transport import APPLY, JSON, ApiError, ApiUnreachable
from tests.simulation.apiserver import ApiServer, Object
from tests.simulation.connection import Delivery
from tests.simulation.effects import Call, Effects, Life, done_with, forever, read, write
from tests.simulation.paths import Target, parse
from tests.simulation.schema import clone

REQUEST_SECONDS = 30.0
"""After how long the client gives up on an answer."""


@dataclass(slots=True)
class Front:
    """What stands between operators and the API server: whether it answers, how slowly, and how its watches fare."""

    seconds: float = 0.003
    up: asyncio.Event = field(default_factory=asyncio.Event)
    hangs: bool = False
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    delivery: Delivery = field(default_factory=Delivery)
    lists: dict[str, float] = field(default_factory=dict)
    """Seconds that it takes to list objects of a kind, or to make one, by its plural."""

    def __post_init__(self) -> None:
        self.up.set()
        self.connected.set()


class SimulatedTransport:
    """The port to the API server in memory. One for each life of an operator."""

    def __init__(self, server: ApiServer, front: Front, life: Life, effects: Effects) -> None:
        self._server, self._front, self._life, self._effects = server, front, life, effects
        self.requests = 0

    async def request(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None, content_type: str = JSON
    ) -> dict[str, Any]:
        """See Transport.request."""
        if not self._life.alive:
            await forever()
        target, query = parse(path), query or {}
        body = clone(body)  # as it was sent: the caller may go on changing its own
        self.requests += 1

        async def execute() -> Object:
            return _answer(self._server, method, target, query, body, content_type)

        call = Call(
            self._life,
            execute,
            lambda why: ApiUnreachable(why),
            ApiError(504, "Timeout", "Timeout: request did not complete within requested timeout"),
            self._front.seconds + (0 if target.name else self._front.lists.get(target.resource, 0)),
            self._link,
        )
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                if not self._front.up.is_set():
                    raise ApiUnreachable("connection refused")
                if method == "GET":
                    result: Object = await read(self._effects, call, reply)
                else:
                    name = f"{method} {_what(target, query, method)}"
                    result = await write(self._effects, call, reply, _object(target, body), name)
        except TimeoutError:
            raise ApiUnreachable(f"no answer within {REQUEST_SECONDS:.0f} s") from None
        finally:
            done_with(reply)
        return result

    async def _link(self) -> bool:
        if self._front.hangs:
            await forever()
        return self._front.up.is_set()


def _what(target: Target, query: dict[str, str], method: str) -> str:
    name = f"status {target.short}" if target.subresource == "status" else target.short
    manager = query.get("fieldManager", "")
    return f"{name} by {manager}" if manager and method == "PATCH" else name


def _object(target: Target, body: Any) -> str:
    name = target.name or (body or {}).get("metadata", {}).get("name", "")
    return f"{target.namespace}/{name}" if target.namespace else name


def _answer(
    server: ApiServer, method: str, target: Target, query: dict[str, str], body: Any, content_type: str
) -> Object:
    if content_type == APPLY and "fieldManager" not in query:
        raise ApiError(422, "Invalid", "PatchOptions.meta.k8s.io is invalid: fieldManager: is required for apply patch")
    manager = query.get("fieldManager", "homeostat")
    match method:
        case "GET" if target.name:
            return server.get(target)
        case "GET":
            return server.list(target, int(query.get("limit", 0)), int(query.get("continue") or 0))
        case "POST":
            return server.create(target, body, manager)
        case "PUT":
            return server.update(target, body, manager)
        case "PATCH":
            return server.patch(target, body, content_type, manager, force=query.get("force") == "true")
        case "DELETE":
            return server.delete(target, body)
    raise ApiError(405, "MethodNotAllowed", f"{method} is not allowed")


class SimulatedSource:
    """Watches as kopf does: a list, whose objects come without a type, then the stream.

    After a gap that was compacted it lists again, and whatever was deleted meanwhile is never mentioned.
    """

    def __init__(self, server: ApiServer, front: Front, life: Life, effects: Effects) -> None:
        self._server, self._front, self._life, self._effects = server, front, life, effects
        self._chance = random.Random(life.number)

    async def run(self, plurals: tuple[str, ...], seen: Callable[[str, str, Object], None]) -> None:
        """Tells of every object of these kinds, with (plural, type, object), until cancelled."""
        async with asyncio.TaskGroup() as group:
            for plural in plurals:
                group.create_task(self._follow(plural, seen))

    async def watch(self, kind: str, seen: Callable[[str, Object], None]) -> None:
        """Tells of every object of one kind, with (type, object), until cancelled."""
        await self._follow(kind, lambda _, type_, shown: seen(type_, shown))

    async def _follow(self, plural: str, seen: Callable[[str, str, Object], None]) -> None:
        while True:
            await self._front.connected.wait()
            if plural in self._front.lists:
                await asyncio.sleep(self._front.lists[plural])
            restored, version = self._server.restored, self._server.version
            for (resource, _, _), each in list(self._server.objects.items()):
                if resource == plural:
                    self._deliver(plural, "", clone(each), seen)
            while self._server.restored == restored and self._server.compacted <= version:
                version = await self._stream(plural, version, seen)

    async def _stream(self, plural: str, version: int, seen: Callable[[str, str, Object], None]) -> int:
        """Delivers what is new and returns the version it has come to."""
        await asyncio.sleep(self._front.delivery.delay)
        await self._front.connected.wait()
        fresh = []
        for entry in reversed(self._server.log):
            if entry.version <= version:
                break
            fresh.append(entry)
        if not fresh:
            await self._news(version)
            return version
        if version < self._server.compacted:
            return version
        for entry in reversed(fresh):
            if entry.resource == plural:
                for delay in self._front.delivery.delays(self._chance):
                    shown = clone(entry.object)
                    self._effects_later(delay, plural, entry.type, shown, seen)
        return fresh[0].version

    async def _news(self, version: int) -> None:
        """Waits until the server has something newer."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake(*_: object) -> None:
            if not future.done():
                future.set_result(None)

        self._server.changed.append(wake)
        try:
            await future
        finally:
            self._server.changed.remove(wake)

    def _effects_later(
        self, delay: float, plural: str, type_: str, shown: Object, seen: Callable[[str, str, Object], None]
    ) -> None:
        asyncio.get_running_loop().call_later(delay, self._deliver, plural, type_, shown, seen)

    def _deliver(self, plural: str, type_: str, shown: Object, seen: Callable[[str, str, Object], None]) -> None:
        if self._life.alive:
            seen(plural, type_, shown)
