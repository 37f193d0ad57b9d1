# SPDX-License-Identifier: Apache-2.0
"""Objects as they were read or written a moment ago: while nothing newer is known they need no reading again."""

from __future__ import annotations

import asyncio
from typing import Any

from homeostat.runtime.controller import Key

Object = dict[str, Any]
RECENT_SECONDS = 2.0
"""An event that was lost is made good by a read after this."""


class Recent:
    """What was read or written last of each key."""

    def __init__(self) -> None:
        self._seen: dict[Key, tuple[float, Object]] = {}

    def put(self, key: Key, seen: Object) -> None:
        """Take note of an object as it was read or written now; nothing is kept of what was put long ago."""
        now = asyncio.get_running_loop().time()
        self._seen.pop(key, None)
        self._seen[key] = now, seen
        while now - next(iter(self._seen.values()))[0] >= RECENT_SECONDS:
            del self._seen[next(iter(self._seen))]

    def get(self, key: Key, version: str | None) -> Object | None:
        """The object, if it was put not long ago, and `version`, the newest that is known, is its resourceVersion."""
        when, seen = self._seen.get(key, (0.0, {}))
        recent = seen and asyncio.get_running_loop().time() - when < RECENT_SECONDS
        return seen if recent and seen["metadata"]["resourceVersion"] == version else None

    def forget(self, key: Key) -> None:
        """It is to be read."""
        self._seen.pop(key, None)
