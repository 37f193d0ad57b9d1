# SPDX-License-Identifier: Apache-2.0
"""One libvirt connection, the thread that calls into it, and its end.

A call that has been given up on still occupies libvirt: nothing but its return, or the end of the connection, makes it
certain that this process will not carry it out any more. Effects are therefore waited for until one of the two.

One thread for each connection, never more: libvirt's client before 10.3 crashes the process when the thread that reads
for all callers of a connection returns while another one takes over (CVE-2024-4418).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import libvirt

from homeostat.hosts import lanes, sockets
from homeostat.hosts.driver import (
    INTERNAL_ERROR,
    NO_CONNECT,
    OPERATION_TIMEOUT,
    RPC,
    Credentials,
    HostError,
    HostUnreachable,
)
from homeostat.hosts.uri import Address, certificate_fault, check, peers, with_pki

log = logging.getLogger(__name__)
T = TypeVar("T")
Virt = Any  # libvirt-python has no types: libvirt.virConnect
MOST_ATTEMPTS = 4
"""Attempts to open connections to one URI that may be under way: a host that takes them and is silent gets no more."""
CLOSE_AGAIN_SECONDS = 5.0
_outstanding: defaultdict[str, set[Attempt]] = defaultdict(set)  # by URI; its threads change it, so no numbers
LOST = {0: "an error", 1: "end of file", 2: "no answer to keep-alive messages", 3: "closed by this side"}


@dataclass(frozen=True, slots=True)
class Opened:
    """A libvirt connection that answers, and what cuts its socket: every call on it then ends at once."""

    virt: Virt
    cut: Callable[[], None]


def host_error(error: libvirt.libvirtError) -> HostError:
    """A libvirtError as HostError, in libvirt's own words."""
    message = " ".join((error.get_error_message() or str(error)).split())  # some end in a line of their own
    return HostError(error.get_error_code() or 0, message, error.get_error_domain() or 0)


class Attempt:
    """An attempt to open a connection, which may take for ever. OSError when this process can open no file."""

    def __init__(self, uri: str, credentials: Credentials | None, keepalive: tuple[int, int]) -> None:
        self._uri, self._credentials, self._keepalive = uri, credentials, keepalive
        self._sockets = sockets.SocketSearch()
        self._over = threading.Event()

    def run(self) -> Opened:
        """Open; blocks for as long as the host likes. HostUnreachable with libvirt's words."""
        try:
            self._sockets.peers = peers(self._uri)
            with with_pki(self._uri, self._credentials) as address:
                return self._open(address)
        except OSError as error:
            raise HostUnreachable(NO_CONNECT, f"cannot write the TLS credentials: {error.strerror}") from None
        finally:
            self.end()

    def end(self) -> None:
        """It has returned, or will never begin."""
        self._sockets.over()
        self._over.set()

    def abandon(self) -> None:
        """It is given up on: a thread cuts the connection that is being opened, until the attempt returns."""
        self._sockets.abandon()
        with contextlib.suppress(RuntimeError):  # no thread can be had: then it lasts as long as the host likes
            lanes.start("libvirt-abandon", self._cut)

    def _cut(self) -> None:
        while not self._over.wait(1.0):
            self._sockets.cut()

    def _open(self, address: Address) -> Opened:
        try:
            virt = libvirt.open(address.uri)
        except libvirt.libvirtError as error:
            cause = host_error(error)
            message = address.plain(cause.message)
            if address.directory and "verify peer's certificate" in message:
                message = ": ".join(filter(None, (message, certificate_fault(self._uri, address))))
            raise HostUnreachable(cause.code, message, cause.domain) from None
        self._sockets.claim()
        opened = Opened(virt, self._sockets.release)
        with contextlib.suppress(libvirt.libvirtError):  # a host that does not know keep-alive is used without
            virt.setKeepAlive(*self._keepalive)
        return opened


async def open_in_thread(uri: str, credentials: Credentials | None, keepalive: tuple[int, int]) -> Opened:
    """Open a connection in a daemon thread of its own. When cancelled, the attempt is cut off, or closed if it is late.

    HostUnreachable with libvirt's words, or when earlier attempts at this URI have still not returned.
    """
    check(uri)
    if len(_outstanding[uri]) >= MOST_ATTEMPTS:
        raise HostUnreachable(OPERATION_TIMEOUT, "earlier attempts to connect have not returned yet")
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Opened] = loop.create_future()

    def deliver(opened: Opened | None, error: HostError | None) -> None:
        if answer.done():
            if opened is not None:
                close_in_thread(loop, functools.partial(discard, opened))
        elif error is not None:
            answer.set_exception(error)
        elif opened is not None:
            answer.set_result(opened)

    def tell(opened: Opened | None, error: HostError | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: so will this process
            loop.call_soon_threadsafe(deliver, opened, error)

    attempt = _begin(uri, credentials, keepalive, tell)
    try:
        return await answer
    except asyncio.CancelledError:
        attempt.abandon()
        raise


def _begin(
    uri: str,
    credentials: Credentials | None,
    keepalive: tuple[int, int],
    tell: Callable[[Opened | None, HostError | None], None],
) -> Attempt:
    """An attempt in a thread, which calls `tell` in the end; HostUnreachable when this process has no means for it."""
    try:
        attempt = Attempt(uri, credentials, keepalive)
    except OSError as error:
        raise HostUnreachable(NO_CONNECT, f"this process cannot connect: {error.strerror}") from None

    def run() -> None:
        opened = failed = None
        try:
            opened = attempt.run()
        except HostError as error:
            failed = error
        except Exception as error:  # a fault of ours: who waits must not wait for ever
            failed = HostUnreachable(INTERNAL_ERROR, f"{type(error).__name__}: {error}")
        finally:
            _outstanding[uri].discard(attempt)
        tell(opened, failed)

    _outstanding[uri].add(attempt)
    try:
        lanes.start("libvirt-open", run)
    except RuntimeError as error:
        _outstanding[uri].discard(attempt)
        attempt.end()
        raise HostUnreachable(NO_CONNECT, f"this process cannot connect: {error}") from None
    return attempt


def close_in_thread(loop: asyncio.AbstractEventLoop, close: Callable[[], None]) -> None:
    """Have `close`, which may block, run in a thread, as soon as one can be had."""
    try:
        lanes.start("libvirt-close", close)
    except RuntimeError as error:
        log.warning("a connection is closed later: %s", error)
        loop.call_later(CLOSE_AGAIN_SECONDS, close_in_thread, loop, close)


def dispose(opened: Opened, callbacks: list[int]) -> None:
    """Close for good. Callbacks left registered would keep the connection and its file descriptors.

    No other thread may be in a call on it: libvirt frees it under that call.
    """
    for callback in callbacks:
        with contextlib.suppress(libvirt.libvirtError):
            opened.virt.domainEventDeregisterAny(callback)
    for last in (opened.virt.unregisterCloseCallback, opened.virt.close):
        with contextlib.suppress(libvirt.libvirtError):
            last()


def discard(opened: Opened) -> None:
    """Close a connection that nobody has used."""
    opened.cut()
    dispose(opened, [])


class Call(Generic[T]):
    """One piece of work for a session's thread. `after` is called once, on the loop, when the thread is free of it."""

    def __init__(self, session: Session, work: Callable[[Virt], T], deadline: float, after: Callable[[], None]) -> None:
        self._session, self._work, self._deadline, self._after = session, work, deadline, after
        self._timer: asyncio.TimerHandle | None = None
        self._over = False
        self.future: asyncio.Future[T] = session.loop.create_future()

    def execute(self) -> None:
        """In the thread: run the work; its result goes to the future, on the loop."""
        self._post(self._began)
        try:
            result = self._work(self._session.opened.virt)
        except HostError as error:
            self._post(self.settle, None, error)
        except libvirt.libvirtError as error:
            self._post(self.settle, None, self._session.translate(error))
        except Exception as error:  # ours, or of the binding: it must not end the thread that others wait for
            log.exception("a call to a host failed in a way nobody foresaw")
            self._post(self.settle, None, HostError(INTERNAL_ERROR, f"{type(error).__name__}: {error}"))
        else:
            self._post(self.settle, result, None)

    async def outlast(self) -> T:
        """The result. Cancelled: take the work back if it has not begun, else wait for its end and raise then."""
        cancelled = False
        while not self.future.done():
            try:
                await asyncio.wait([self.future])
            except asyncio.CancelledError:
                if self._withdrawn():
                    raise
                cancelled = True
        if cancelled:
            self.future.exception()  # looked at, so that asyncio does not report it as forgotten
            raise asyncio.CancelledError
        return self.future.result()

    async def abandonable(self) -> T:
        """The result. Cancelled: leave the work to its thread, until its deadline."""
        try:
            return await self.future
        except asyncio.CancelledError:
            self._withdrawn()
            raise

    def settle(self, result: Any, error: HostError | None) -> None:
        """The work is over, or its connection is; only the first time counts."""
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._session.calls.discard(self)
        if not self.future.done():
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(result)
        self._after()

    def _withdrawn(self) -> bool:
        if not self._session.lane.withdraw(self.execute):
            return False
        self.future.cancel()
        self.settle(None, None)
        return True

    def _began(self) -> None:
        if not self._over:
            self._timer = self._session.loop.call_later(self._deadline, self._overdue)

    def _overdue(self) -> None:
        self._session.end(f"a call was not answered within {self._deadline:g} s; its connection was closed")

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._session.loop.call_soon_threadsafe(function, *arguments)


class Session:
    """An open libvirt connection with its thread. `on_end` is called once, on the loop, with why it ended."""

    def __init__(self, name: str, opened: Opened, on_end: Callable[[str], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.opened, self.lane, self._on_end = opened, lanes.Lane(name), on_end
        self.calls: set[Call[Any]] = set()
        self.ended = ""
        self.callbacks: list[int] = []

    def watch(self, virt: Virt) -> None:
        """In the thread: have libvirt say when the connection is lost."""
        virt.registerCloseCallback(self._closed, None)

    async def run(
        self,
        work: Callable[[Virt], T],
        deadline: float,
        *,
        effect: bool = False,
        after: Callable[[], None] = lambda: None,
    ) -> T:
        """Run `work` in the thread, after what was asked before; HostError with libvirt's words.

        HostUnreachable when the session ends first, which it does when `deadline` (seconds, from the beginning of the
        work) passes. An `effect` is not let go of by a cancellation before that. `after`: see Call.
        """
        call = Call(self, work, deadline, after)
        if self.ended:
            call.settle(None, HostUnreachable(RPC, self.ended))
        else:
            self.calls.add(call)
            self.lane.submit(call.execute)
        return await (call.outlast() if effect else call.abandonable())

    def translate(self, error: libvirt.libvirtError) -> HostError:
        """The error, as HostUnreachable when the connection is gone: the call may have been carried out or not."""
        cause = host_error(error)
        if not self.ended and self._alive():
            return cause
        self._post_end(f"the connection was lost ({cause.message})")
        return HostUnreachable(cause.code, self.ended or cause.message, cause.domain)

    def end(self, why: str) -> None:
        """Cut the connection, end every call with HostUnreachable, and close it in a thread since that may block."""
        if self.ended:
            return
        self.ended = why
        self.lane.stop()
        try:
            self.opened.cut()
        except Exception as error:  # whoever waits is told all the same
            log.warning("a connection could not be cut: %s", error)
        for call in list(self.calls):
            call.settle(None, HostUnreachable(RPC, why))
        close_in_thread(self.loop, self._close)
        self._on_end(why)

    def _close(self) -> None:
        self.lane.drain()
        dispose(self.opened, self.callbacks)

    def _alive(self) -> bool:
        try:
            return bool(self.opened.virt.isAlive())
        except libvirt.libvirtError:
            return False

    def _closed(self, _virt: Virt, reason: int, _opaque: object) -> None:
        self._post_end(f"the connection was lost ({LOST.get(reason, 'for a reason libvirt does not name')})")

    def _post_end(self, why: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self.end, why)
