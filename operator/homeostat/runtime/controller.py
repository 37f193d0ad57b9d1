# SPDX-License-Identifier: Apache-2.0
"""Workers that drain a queue, and the resync that fills it when every event was lost."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from homeostat.runtime import metrics
from homeostat.runtime.queue import WorkQueue

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""(namespace, name); namespace is "" for cluster-scoped kinds."""

current_key: contextvars.ContextVar[str] = contextvars.ContextVar("key", default="")
current_id: contextvars.ContextVar[int] = contextvars.ContextVar("reconcile", default=0)
_ids = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Result:
    """What a reconcile asks of its queue: `requeue_after` seconds, or nothing until something happens."""

    requeue_after: float | None = None


class Retry(Exception):
    """A reconcile could not go on for a reason that passes; its sentence is logged, no traceback."""


class Controller:
    """Runs `reconcile(key)` for each queued key, a number of keys at once, one reconcile of a key at a time.

    There is no time-out around a reconcile: giving a key back while one of its calls still runs would let two calls for
    one key run at once (measured). Calls are bounded where they are made.
    """

    def __init__(
        self,
        name: str,
        reconcile: Callable[[Key], Awaitable[Result]],
        *,
        keys: Callable[[], Awaitable[Iterable[Key]]],
        workers: int = 8,
        resync_seconds: float = 600.0,
    ) -> None:
        self.name, self._reconcile, self._keys = name, reconcile, keys
        self._workers, self._resync_seconds = workers, resync_seconds
        self.queue: WorkQueue[Key] = WorkQueue()
        self.synced = asyncio.Event()
        """Set once the first full list has been queued."""

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._resync_forever(), name=f"{self.name}-resync")
            for number in range(self._workers):
                group.create_task(self._work(), name=f"{self.name}-{number}")

    async def _resync_forever(self) -> None:
        delay = 1.0
        while True:
            try:
                for key in await self._keys():
                    self.queue.add(key, resync=True)
            except Exception as error:
                log.warning("could not list %s, the next resync will catch up: %s", self.name, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 30.0)
                continue
            self.synced.set()
            delay = 1.0
            await asyncio.sleep(self._resync_seconds * random.uniform(0.9, 1.1))

    async def _work(self) -> None:
        await self.synced.wait()  # what is decided on one object may rest on what is known of all
        while True:
            await asyncio.sleep(0)  # a pass that asks nobody for anything would give no other task a turn
            key = await self.queue.get()
            current_key.set("/".join(part for part in key if part))
            current_id.set(next(_ids))
            started = time.perf_counter()
            try:
                outcome = await self._once(key)
            finally:
                self.queue.done(key)
            metrics.reconciled(self.name, outcome, time.perf_counter() - started, len(self.queue))

    async def _once(self, key: Key) -> str:
        try:
            result = await self._reconcile(key)
        except Retry as reason:
            log.info("will look again in %.1f s: %s", self.queue.retry(key), reason)
            return "retry"
        except Exception as error:
            # The sentence for people, the traceback for whoever asks for it.
            log.error(
                "reconcile failed, will look again in %.1f s: %s: %s",
                self.queue.retry(key),
                type(error).__name__,
                error,
            )
            log.debug("reconcile failed", exc_info=True)
            return "error"
        self.queue.forget(key)
        if result.requeue_after is not None and result.requeue_after > 0:
            self.queue.add_after(key, result.requeue_after)
        elif result.requeue_after is not None:
            self.queue.add(key)  # with what happened to it meanwhile that is one look, not two
        return "requeue" if result.requeue_after is not None else "done"
