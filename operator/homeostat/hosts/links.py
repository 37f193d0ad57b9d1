# SPDX-License-Identifier: Apache-2.0
"""The connections to one host, by what they are for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from homeostat.hosts.driver import NO_CONNECT, OPERATION_TIMEOUT, RPC, Credentials, HostUnreachable, NotBegun
from homeostat.hosts.sessions import Session, Virt, discard, open_in_thread

T = TypeVar("T")

IDLE_SECONDS = 60.0
"""After so long without a call a connection is closed."""


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """Times in seconds."""

    keepalive_interval: int = 5
    keepalive_count: int = 3
    connect_timeout: float = 10.0  # of connections but the first, which is its caller's; and of a turn at storage
    effect_threads: int = 8
    deadline: float = 60.0
    long_deadline: float = 180.0  # create and destroy: QEMU may have much memory to set up, or be slow to let go
    agent_deadline: float = 20.0


class Endpoint:
    """A host as it is reached: connections to it are opened one after the other, which tells their sockets apart."""

    def __init__(self, uri: str, credentials: Credentials | None, settings: DriverSettings) -> None:
        self.settings = settings
        self._uri, self._credentials = uri, credentials
        self._one_at_a_time = asyncio.Lock()

    async def connect(self, name: str, on_end: Callable[[str], None]) -> Session:
        """A new session. May take for ever; cancel it."""
        keepalive = self.settings.keepalive_interval, self.settings.keepalive_count
        async with self._one_at_a_time:
            opened = await open_in_thread(self._uri, self._credentials, keepalive)
        try:
            session = Session(f"libvirt-{name}", opened, on_end)
        except RuntimeError as error:
            discard(opened)  # here and now, there is no thread for it; what is cut does not block
            raise HostUnreachable(NO_CONNECT, f"this process cannot connect: {error}") from None
        try:
            await session.run(session.watch, self.settings.deadline)
        except BaseException:
            session.end("it was given up on while it was being opened")
            raise
        return session


class Links:
    """Connections for one purpose: up to `most`, opened when they are needed, each used by one call at a time."""

    def __init__(self, name: str, endpoint: Endpoint, most: int) -> None:
        self._name, self._endpoint = name, endpoint
        self._free = asyncio.Semaphore(most)
        self._sessions: set[Session] = set()
        self._idle: dict[Session, asyncio.TimerHandle] = {}  # with the end of its idling
        self._opening: set[asyncio.Task[Session]] = set()
        self._closed = ""

    async def call(
        self, work: Callable[[Virt], T], deadline: float, *, effect: bool = False, patience: float | None = None
    ) -> T:
        """Run `work` on one of the connections: see Session.run. NotBegun when its turn has not come in `patience`."""
        try:
            async with asyncio.timeout(patience):
                await self._free.acquire()
        except TimeoutError:
            why = f"no connection for {self._name} was free within {patience:g} s"
            raise NotBegun(OPERATION_TIMEOUT, why) from None
        try:
            session = await self._session()
        except BaseException:
            self._free.release()
            raise
        return await session.run(work, deadline, effect=effect, after=lambda: self._give_back(session))

    def close(self, why: str) -> None:
        """End the calls under way with HostUnreachable, and refuse new ones."""
        self._closed = self._closed or why
        for attempt in self._opening:
            attempt.cancel()
        for session in list(self._sessions):
            session.end(why)

    async def _session(self) -> Session:
        if self._idle:
            session, idling = self._idle.popitem()  # the last one given back: the others come to be idle too long
            idling.cancel()
            return session
        self._refuse_when_closed()
        session = await self._opened()
        self._sessions.add(session)
        return session

    async def _opened(self) -> Session:
        """A new session; HostUnreachable when that takes too long, or is ended by close()."""
        opening = asyncio.create_task(self._endpoint.connect(self._name, self._forget))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        try:
            done, _ = await asyncio.wait({opening}, timeout=self._endpoint.settings.connect_timeout)
            self._refuse_when_closed()
            if not done:
                raise HostUnreachable(NO_CONNECT, f"a connection for {self._name} was not answered in time")
            return opening.result()
        except BaseException:
            opening.cancel()
            opening.add_done_callback(_end_late)
            raise

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise HostUnreachable(RPC, self._closed)

    def _forget(self, _why: str) -> None:
        self._sessions = {session for session in self._sessions if not session.ended}
        for session in [session for session in self._idle if session.ended]:
            self._idle.pop(session).cancel()

    def _give_back(self, session: Session) -> None:
        if not session.ended:
            self._idle[session] = session.loop.call_later(IDLE_SECONDS, session.end, "it was not needed any more")
        self._free.release()


def _end_late(opening: asyncio.Task[Session]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().end("it was opened too late")
