# SPDX-License-Identifier: Apache-2.0
"""Virtual time: an event loop that jumps to its next timer instead of sleeping."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
SPIN_LIMIT = 500_000


class Stuck(BaseException):
    """Time cannot go on: nothing is ready and no timer is left, or something runs without ever waiting.

    A BaseException, so that no retry of what is under test can swallow it.
    """


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time() is virtual seconds since its start."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._spins = 0

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def _run_once(self) -> None:
        self._drop_cancelled_timers()
        if not self._ready:
            self._jump()
        self._spins += 1
        if self._spins > SPIN_LIMIT:
            self._spins = 0
            raise Stuck(f"{SPIN_LIMIT} turns of the loop at {self._now:.3f} s and time does not move: {_tasks(self)}")
        super()._run_once()  # type: ignore[misc]

    def _drop_cancelled_timers(self) -> None:
        # The stock loop does this too, but only after it has looked at the head: a cancelled head would be jumped to.
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
            self._timer_cancelled_count -= 1

    def _jump(self) -> None:
        if not self._scheduled:
            if self._stopping:
                return
            raise Stuck(f"nothing is ready and no timer is left at {self._now:.3f} s: {_tasks(self)}")
        if self._scheduled[0]._when > self._now:
            self._now, self._spins = self._scheduled[0]._when, 0

    # Private parts of asyncio's base loop that are used above; they are the same in 3.11 to 3.14.
    _ready: Any
    _scheduled: list[Any]
    _stopping: bool
    _timer_cancelled_count: int


def run_virtual(coro: Coroutine[Any, Any, T]) -> T:
    """What `coro` returns when run to its end in virtual time. Raises Stuck instead of hanging."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coro)


def now() -> datetime:
    """The virtual time of the running loop as a date."""
    return EPOCH + timedelta(seconds=asyncio.get_running_loop().time())


def _tasks(loop: asyncio.AbstractEventLoop) -> str:
    waiting = sorted(
        f"{task.get_name()} in {getattr(task.get_coro(), '__qualname__', '?')}" for task in asyncio.all_tasks(loop)
    )
    return f"{len(waiting)} tasks wait: " + ", ".join(waiting[:20])
