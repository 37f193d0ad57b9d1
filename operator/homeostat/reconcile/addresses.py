# SPDX-License-Identifier: Apache-2.0
"""Guests' addresses, asked of their agents in the background: an agent may take its time, and no VM waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from homeostat.hosts.driver import Connection, HostError
from homeostat.runtime.controller import Key

Rows = tuple[tuple[str, str, str], ...]


class AddressBook:
    """What agents said last; `on_news` is called with a VM's key when that changes."""

    def __init__(self, seconds: float, on_news: Callable[[Key], None]) -> None:
        self._seconds, self._on_news = seconds, on_news
        self._rows: dict[Key, Rows] = {}
        self._asked: dict[Key, tuple[float, Connection]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, key: Key) -> Rows:
        """(interface, MAC, IP address) of a VM's guest; empty when nothing was heard."""
        return self._rows.get(key, ())

    def ask(self, key: Key, uuid: str, connection: Connection) -> None:
        """Have a guest asked that has a connected agent, unless it was asked lately where it is now."""
        now = asyncio.get_running_loop().time()
        asked, where = self._asked.get(key, (-self._seconds, None))
        if where is connection and now - asked < self._seconds:
            return
        self._asked[key] = now, connection
        task = asyncio.create_task(self._ask(key, uuid, connection), name=f"addresses-{key[1]}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def forget(self, key: Key) -> None:
        """The VM is gone, or its process is another one."""
        self._rows.pop(key, None)
        self._asked.pop(key, None)

    async def _ask(self, key: Key, uuid: str, connection: Connection) -> None:
        try:
            rows = tuple(sorted(await connection.addresses(uuid)))
        except HostError:  # the agent does not answer: the next time is early enough
            return
        if rows != self._rows.get(key) and key in self._asked:
            self._rows[key] = rows
            self._on_news(key)
