# SPDX-License-Identifier: Apache-2.0
"""Calls that last as long as what they do: no pass waits for one, and what it said in the end decides nothing."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any

from homeostat.decide.migration_case import CallEnded
from homeostat.hosts.driver import HostError
from homeostat.hosts.migration import MigrationRefused, PostCopyRefused
from homeostat.runtime.controller import Key

log = logging.getLogger(__name__)


class Calls:
    """At most one call for each key; `done` is called with the key when one has ended."""

    def __init__(self, done: Callable[[Key], None]) -> None:
        self._done = done
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._ended: dict[Key, CallEnded] = {}
        self._begun: dict[Key, float] = {}

    def begin(self, key: Key, call: Coroutine[Any, Any, None]) -> None:
        """Have `call` run beside everything else."""
        self._ended.pop(key, None)
        self._begun[key] = asyncio.get_running_loop().time()
        self._tasks[key] = asyncio.create_task(self._run(key, call), name=f"migrate-{'/'.join(key)}")

    def calling(self, key: Key) -> bool:
        """Whether the call of a key has not returned yet."""
        return key in self._tasks

    def age(self, key: Key) -> float:
        """Seconds since the last call of a key was made; infinite when this process made none."""
        return asyncio.get_running_loop().time() - self._begun.get(key, -math.inf)

    def ended(self, key: Key) -> CallEnded | None:
        """What the last call of a key said, None while it lasts, or when this process made none."""
        return self._ended.get(key)

    def forget(self, key: Key) -> None:
        """Stop waiting for the call of a key, which goes on, and forget what it said."""
        self._ended.pop(key, None)
        self._begun.pop(key, None)
        if (task := self._tasks.pop(key, None)) is not None:
            task.cancel()

    async def _run(self, key: Key, call: Coroutine[Any, Any, None]) -> None:
        self._ended[key] = await _outcome(call)
        self._tasks.pop(key, None)
        self._done(key)


async def _outcome(call: Coroutine[Any, Any, None]) -> CallEnded:
    try:
        await call
    except HostError as error:
        refused, post_copy = isinstance(error, MigrationRefused), isinstance(error, PostCopyRefused)
        return CallEnded(error.message, refused=refused, no_post_copy=post_copy)
    except Exception as error:  # a fault of ours must not leave a call that never ends
        log.error("the call that migrates failed: %s: %s", type(error).__name__, error)
        return CallEnded(f"{type(error).__name__}: {error}")
    return CallEnded("")
