# SPDX-License-Identifier: Apache-2.0
"""The choke point of the simulation: every call of an operator travels here, in phases, and may fail in each.

A call is a request that travels, an execution, and a reply that travels back. The three do not share a fate: a request
can be lost, a reply can be lost after the call was executed, a call can be executed long after its caller is dead.
"""

from __future__ import annotations

import asyncio
import contextvars
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

FAULTS = ("kill-before", "kill-after", "drop-request", "drop-reply", "raise-after-success", "late=S", "stall=S")


@dataclass(slots=True)
class Life:
    """One operator process, from its start until it is killed. Its tasks end with it."""

    number: int
    alive: bool = True
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    hang_ups: list[Callable[[], None]] = field(default_factory=list)


current: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)


@dataclass(frozen=True, slots=True)
class Effect:
    """One mutating request: the `occurrence`-th one (from 1) of this name on this object."""

    object: str
    name: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.name} ({self.object}, {self.occurrence})"


@dataclass(slots=True)
class Fault:
    """What goes wrong at one effect.

    `exactly` that one; without it, the `occurrence`-th (from 1) from now on of those whose name and object match.
    """

    name: re.Pattern[str]
    target: re.Pattern[str]
    occurrence: int
    do: str
    meanwhile: Callable[[], object] | None = None
    exactly: Effect | None = None
    seen: int = 0
    reached: bool = False

    def hits(self, effect: Effect) -> bool:
        """Whether this effect is the one; counts those that match."""
        if self.exactly is not None:
            self.reached = self.reached or effect == self.exactly
            return effect == self.exactly
        if self.reached or not (self.name.fullmatch(effect.name) and self.target.fullmatch(effect.object)):
            return False
        self.seen += 1
        self.reached = self.seen == self.occurrence
        return self.reached

    @property
    def seconds(self) -> float:
        """How late the call is executed."""
        return float(self.do.partition("=")[2])


class Effects:
    """The log of all effects, the faults that wait for one of them, and the tasks that belong to the world."""

    def __init__(self) -> None:
        self.log: list[Effect] = []
        self.faults: list[Fault] = []
        self.violations: list[str] = []
        self.late: set[str] = set()
        """Objects of effects that are carried out when nobody waits for them any more."""
        self.on_executed: list[Callable[[Effect], None]] = []
        self.kill: Callable[[Life], None] = lambda life: None
        self._count: Counter[tuple[str, str]] = Counter()
        self._world = contextvars.Context()
        self._tasks: set[asyncio.Task[Any]] = set()

    def fault(
        self, at: Effect | tuple[str, int], do: str, *, on: str = ".*", meanwhile: Callable[[], object] | None = None
    ) -> Fault:
        """Has `do` (one of FAULTS) happen at an effect: exactly this one, or (regular expression of the name, k-th)."""
        if do not in FAULTS and not re.fullmatch(r"(late|stall)=\d+(\.\d+)?", do):
            raise ValueError(f"no such fault: {do}")
        if isinstance(at, Effect):
            made = Fault(re.compile(""), re.compile(""), at.occurrence, do, meanwhile, at)
        else:
            made = Fault(re.compile(at[0]), re.compile(on), at[1], do, meanwhile)
        self.faults.append(made)
        return made

    def violated(self, sentence: str) -> None:
        """Records that an invariant does not hold. Raising here would only feed the retries of what is under test."""
        if sentence not in self.violations:
            self.violations.append(sentence)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs work of the world itself: it outlives every operator."""
        task = asyncio.get_running_loop().create_task(work, context=self._world.copy())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.violated(f"the simulation itself broke: {error!r}")

    def later(self, seconds: float, call: Callable[..., object], *arguments: Any) -> asyncio.TimerHandle:
        """Calls something of the world in some seconds."""
        return asyncio.get_running_loop().call_later(seconds, call, *arguments, context=self._world.copy())

    def note(self, object_: str, name: str) -> tuple[Effect, Fault | None]:
        """Enters an effect into the log; the fault that waited for it, if one did."""
        self._count[object_, name] += 1
        effect = Effect(object_, name, self._count[object_, name])
        self.log.append(effect)
        hits = [fault for fault in self.faults if fault.hits(effect)]
        return effect, hits[0] if hits else None

    def executed(self, effect: Effect) -> None:
        """Runs what has to hold after every effect."""
        for check in self.on_executed:
            check(effect)


@dataclass(slots=True)
class Call:
    """One call on its way. `execute` runs on the far side; `lost` makes the error of a connection that is gone."""

    life: Life
    execute: Callable[[], Awaitable[Any]]
    lost: Callable[[str], Exception]
    raised: Exception
    seconds: float
    link: Callable[[], Awaitable[bool]]
    """Waits until the far side can be reached; False when this call never arrives."""


async def forever() -> NoReturn:
    """Never returns."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError


def done_with(reply: asyncio.Future[Any]) -> None:
    """Nobody waits for this reply any more; an error in it is nobody's."""
    if not reply.cancel() and not reply.cancelled():
        reply.exception()


async def read(effects: Effects, call: Call, reply: asyncio.Future[Any]) -> Any:
    """Carries a call that changes nothing."""
    return await _carry(effects, call, reply, None, None)


async def write(effects: Effects, call: Call, reply: asyncio.Future[Any], object_: str, name: str) -> Any:
    """Carries a call that changes something: an effect."""
    if not call.life.alive:
        await forever()
    effect, fault = effects.note(object_, name)
    return await _carry(effects, call, reply, effect, fault)


async def _carry(
    effects: Effects, call: Call, reply: asyncio.Future[Any], effect: Effect | None, fault: Fault | None
) -> Any:
    if not call.life.alive:
        await forever()
    do = fault.do.partition("=")[0] if fault else ""
    if do in ("kill-before", "drop-request"):
        _meanwhile(fault)
    elif do in ("late", "stall"):
        assert fault is not None and effect is not None
        effects.late.add(effect.object)
        effects.later(fault.seconds, lambda: effects.spawn(_serve(effects, call, reply, effect, None)))
        _meanwhile(fault)
    else:
        effects.spawn(_serve(effects, call, reply, effect, fault))
    if do in ("kill-before", "late"):
        effects.kill(call.life)
        await forever()
    if do in ("drop-request", "stall"):
        raise call.lost("the connection was lost")
    return await reply


async def _serve(
    effects: Effects, call: Call, reply: asyncio.Future[Any], effect: Effect | None, fault: Fault | None
) -> None:
    await asyncio.sleep(call.seconds / 2)
    if not await call.link():
        return
    result: Any = None
    error: Exception | None = None
    try:
        result = await call.execute()
    except Exception as raised:
        error = raised
    if effect is not None:
        effects.executed(effect)
    if fault is not None:
        _meanwhile(fault)
        if fault.do == "kill-after":
            effects.kill(call.life)
            return
        error = call.lost("the connection was lost") if fault.do == "drop-reply" else error or call.raised
    await asyncio.sleep(call.seconds / 2)
    await call.link()
    if reply.done() or not call.life.alive:
        return
    if error is None:
        reply.set_result(result)
    else:
        reply.set_exception(error)


def _meanwhile(fault: Fault | None) -> None:
    if fault is not None and fault.meanwhile is not None:
        fault.meanwhile()
