# SPDX-License-Identifier: Apache-2.0
"""What has to be cut is cut, and nothing else: real sockets to a server on this machine, opened by a few lines.

Nothing tells whose a socket is but when it appeared and where it leads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
import pytest

from homeostat.hosts import lanes, sessions
from homeostat.hosts.driver import HostUnreachable
from homeostat.hosts.sessions import Opened, open_in_thread

pytestmark = pytest.mark.unit


class Virt:
    """A connection: one socket."""

    def __init__(self, plain: socket.socket) -> None:
        self.socket = plain

    def setKeepAlive(self, *_: int) -> None:  # noqa: N802 - libvirt's name
        """Nothing to do."""

    def unregisterCloseCallback(self) -> None:  # noqa: N802 - libvirt's name
        """Nothing to do."""

    def close(self) -> None:
        """Close it."""
        self.socket.close()

    @property
    def lost(self) -> bool:
        """Whether it was cut."""
        self.socket.settimeout(0.05)
        try:
            return self.socket.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True


class Server:
    """A server that accepts, or leaves requests to connect unanswered once `deaf`."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.port = self.listener.getsockname()[1]
        self.uri = f"qemu+tcp://127.0.0.1:{self.port}/system"
        self._crowd: list[socket.socket] = []
        self.opened: list[Virt] = []
        self.next: Callable[[], Virt] = self.connect

    def deaf(self) -> None:
        """Fill the queue of the listener: it drops what comes now."""
        self.listener.listen(0)
        for _ in range(3):
            one = socket.socket()
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(("127.0.0.1", self.port))
            self._crowd.append(one)

    def hear(self) -> None:
        """Answer again, also to what comes later."""
        self.listener.listen(64)
        for one in self._crowd:
            one.close()
        self._crowd.clear()

    def connect(self) -> Virt:
        """What libvirt does."""
        plain = socket.socket()
        try:
            plain.connect(("127.0.0.1", self.port))
        except OSError as error:
            plain.close()
            raise libvirt.libvirtError(str(error)) from error
        self.opened.append(Virt(plain))
        return self.opened[-1]

    def talk(self) -> Virt:
        """Connect to a host that then says nothing: libvirt waits for its first answer."""
        virt = self.connect()
        if virt.socket.recv(1) == b"":
            virt.close()
            raise libvirt.libvirtError("the connection was cut")
        return virt


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    one = Server()
    one.hear()
    monkeypatch.setattr(libvirt, "open", lambda uri: one.next())
    yield one
    one.hear()
    for virt in one.opened:
        virt.close()
    one.listener.close()


def attempt(server: Server) -> asyncio.Task[Opened]:
    return asyncio.create_task(open_in_thread(server.uri, None, (5, 3)))


async def given_up(server: Server) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(attempt(server), 0.3)


async def until(what: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


def outstanding(server: Server) -> int:
    return len(sessions._outstanding[server.uri])


def test_an_attempt_that_is_given_up_on_cuts_no_later_one(server: Server) -> None:
    """The first has no socket yet, as while its host's name is looked up; the second takes its time."""
    hold, begun = threading.Event(), threading.Event()

    def looking_up() -> Virt:
        begun.set()
        hold.wait(60)
        raise libvirt.libvirtError("no such name")

    async def drill() -> None:
        server.next = looking_up
        first = attempt(server)
        assert await asyncio.to_thread(begun.wait, 30)
        first.cancel()
        server.next = server.talk
        second = attempt(server)
        await asyncio.sleep(2.5)
        assert not second.done()
        accepted, _ = server.listener.accept()
        accepted.sendall(b"!")
        opened = await asyncio.wait_for(second, 30)
        await asyncio.sleep(1.5)
        assert not opened.virt.lost
        opened.cut()
        assert opened.virt.lost
        hold.set()
        accepted.close()

    asyncio.run(drill())


def test_an_attempt_is_cut_before_its_host_has_answered_at_all(server: Server) -> None:
    async def drill() -> None:
        server.deaf()
        await given_up(server)
        assert outstanding(server) == 1
        await until(lambda: outstanding(server) == 0)
        server.hear()
        opened = await asyncio.wait_for(attempt(server), 30)
        assert not opened.virt.lost
        opened.cut()

    asyncio.run(drill())


def test_of_two_connections_only_the_one_given_up_on_is_cut(server: Server) -> None:
    async def drill() -> None:
        server.next = server.talk
        await given_up(server)
        server.next = server.connect
        opened = await asyncio.wait_for(attempt(server), 30)
        await until(lambda: outstanding(server) == 0)
        assert not opened.virt.lost
        opened.cut()
        assert opened.virt.lost

    asyncio.run(drill())


def test_where_it_is_not_known_whose_a_socket_is_none_is_cut_that_may_be_in_use(server: Server) -> None:
    """Two attempts at once, as of two Hypervisors that name one host."""

    async def drill() -> None:
        both = threading.Barrier(2)

        def together() -> Virt:
            virt = server.connect()
            both.wait(5)
            return virt

        server.next = together
        first, second = await asyncio.wait_for(asyncio.gather(attempt(server), attempt(server)), 30)
        first.cut()
        assert not second.virt.lost
        second.cut()
        assert first.virt.lost
        assert second.virt.lost

    asyncio.run(drill())


def test_a_connection_can_be_cut_by_a_process_that_can_open_no_more_files(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    async def drill() -> None:
        opened = await asyncio.wait_for(attempt(server), 30)
        with monkeypatch.context() as short:
            short.setattr(os, "listdir", none)
            short.setattr(os, "dup", none)
            opened.cut()
            for _ in range(6):
                with pytest.raises(HostUnreachable, match="Too many open files"):
                    await attempt(server)
        assert opened.virt.lost

    asyncio.run(drill())


def test_a_process_without_threads_to_spare_connects_again_when_it_has_some(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    async def drill() -> None:
        with monkeypatch.context() as short:
            short.setattr(lanes, "start", none)
            for _ in range(6):
                with pytest.raises(HostUnreachable, match="can't start new thread"):
                    await attempt(server)
        opened = await asyncio.wait_for(attempt(server), 30)
        assert not opened.virt.lost
        opened.cut()

    asyncio.run(drill())
