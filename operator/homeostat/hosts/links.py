# SPDX-License-Identifier: Apache-2.0
"""The connections to one host, by what they are for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from homeostat.hosts.driver import NO_CONNECT, RPC, Credentials, HostUnreachable
from homeostat.hosts.sessions import Session, Virt, open_in_thread

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """Times in seconds."""

    keepalive_interval: int = 5
    keepalive_count: int = 3
    connect_timeout: float = 10.0  # of connections opened later than the first; that one is its caller's
    effect_threads: int = 8
    deadline: float = 60.0
    long_deadline: float = 180.0  # create and destroy: QEMU may have much memory to set up, or be slow to let go
    agent_deadline: float = 20.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a host is and how it is spoken to."""

    uri: str
    credentials: Credentials | None
    settings: DriverSettings


class Link:
    """A libvirt connection for one purpose, opened when first used and again after it was lost."""

    def __init__(
        self, name: str, endpoint: Endpoint, threads: int, on_end: Callable[[str], None] = lambda why: None
    ) -> None:
        self._name, self._endpoint, self._threads, self._on_end = name, endpoint, threads, on_end
        self._session: Session | None = None
        self._opening = asyncio.Lock()
        self.closed = ""

    @property
    def busy(self) -> int:
        """How many calls are waiting or under way."""
        return len(self._session.calls) if self._session else 0

    async def call(self, work: Callable[[Virt], T], deadline: float, *, effect: bool = False) -> T:
        """Run `work` on the connection: see Session.run."""
        try:
            async with asyncio.timeout(self._endpoint.settings.connect_timeout):
                session = await self._ready()
        except TimeoutError:
            raise HostUnreachable(NO_CONNECT, f"a connection for {self._name} was not answered in time") from None
        return await session.run(work, deadline, effect=effect)

    async def open(self) -> Session:
        """Open the connection now, however long it takes."""
        settings = self._endpoint.settings
        keepalive = settings.keepalive_interval, settings.keepalive_count
        opened = await open_in_thread(self._endpoint.uri, self._endpoint.credentials, keepalive)
        self._session = Session(f"libvirt-{self._name}", opened, self._threads, self._on_end)
        if self.closed:
            self._session.end(self.closed)
        await self._session.run(self._session.watch, settings.deadline)
        return self._session

    def close(self, why: str) -> None:
        """End the calls under way with HostUnreachable, and refuse new ones."""
        self.closed = self.closed or why
        if self._session is not None:
            self._session.end(why)

    async def _ready(self) -> Session:
        async with self._opening:
            if self.closed:
                raise HostUnreachable(RPC, self.closed)
            if self._session is None or self._session.ended:
                await self.open()
            assert self._session is not None
            return self._session
