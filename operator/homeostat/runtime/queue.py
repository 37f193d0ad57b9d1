# SPDX-License-Identifier: Apache-2.0
"""Keys waiting to be reconciled; each key at most once, never twice at the same time."""

from __future__ import annotations

import asyncio
import math
import random
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """A queue of keys with two priorities, delays and per-key retry delays.

    A key added while it is being worked on is queued again when that work is done. Keys of a resync wait behind keys
    that something happened to; a key that is in both is taken once, at the better place.
    """

    def __init__(self, *, base_seconds: float = 0.5, cap_seconds: float = 300.0) -> None:
        self._base, self._cap = base_seconds, cap_seconds
        self._fresh: OrderedDict[K, float] = OrderedDict()  # key -> when it was added
        self._resync: OrderedDict[K, float] = OrderedDict()
        self._running: set[K] = set()
        self._again: dict[K, bool] = {}  # added while running -> fresh?
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._moved = math.inf  # when a worker last asked for a key, or gave one back

    def add(self, key: K, *, resync: bool = False) -> None:
        """Queue a key now."""
        if key in self._running:
            self._again[key] = self._again.get(key, False) or not resync
        elif not resync:
            self._resync.pop(key, None)
            self._push(self._fresh, key)
        elif key not in self._fresh:
            self._push(self._resync, key)

    def add_after(self, key: K, delay: float) -> None:
        """Queue a key in `delay` seconds; of several delays the earliest counts."""
        when = self._loop.time() + delay
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= when:
                return
            timer.cancel()
        self._timers[key] = self._loop.call_at(when, self._fire, key)

    def retry(self, key: K) -> float:
        """Queue a key after its next retry delay, which doubles up to a cap; returns that delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(self._cap, self._base * 2.0 ** min(failures, 32)) * random.uniform(0.8, 1.2)
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """The key's work succeeded: its next failure is its first."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Take the next key; `done` has to be called with it."""
        self._moved = self._loop.time()
        while not self._fresh and not self._resync:
            await self._wait()
        self._moved = self._loop.time()
        key, _ = (self._fresh or self._resync).popitem(last=False)
        self._running.add(key)
        return key

    def done(self, key: K) -> None:
        """Give a key back; it is queued at once if it was added meanwhile."""
        self._moved = self._loop.time()
        self._running.discard(key)
        fresh = self._again.pop(key, None)
        if fresh is not None:
            self.add(key, resync=not fresh)

    def __len__(self) -> int:
        """Keys that wait for a worker."""
        return len(self._fresh) + len(self._resync)

    def stuck(self) -> float:
        """Seconds for which keys have waited, and no worker has taken or given back any; 0 before there are workers."""
        waiting = [next(iter(line.values())) for line in (self._fresh, self._resync) if line]
        return max(self._loop.time() - max(min(waiting), self._moved), 0.0) if waiting else 0.0

    async def _wait(self) -> None:
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            # A wake-up given to a worker that is cancelled meanwhile belongs to another worker.
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif len(self):
                self._wake()
            raise

    def _push(self, line: OrderedDict[K, float], key: K) -> None:
        if key not in line:
            line[key] = self._loop.time()
            self._wake()

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _fire(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)
