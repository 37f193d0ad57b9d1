# SPDX-License-Identifier: Apache-2.0
"""Finding the socket under a libvirt connection, so that it can really be closed.

`virConnectClose` only drops a reference: while a call is stuck in a connection it stays open, and a request that still
waits in its buffers may be carried out later. Shutting the socket down ends every call on it at once. libvirt does not
say which socket is its own; it is recognized as the one that appeared while the connection was opened, that leads to
the right peer, and that no other attempt to reach this peer can have opened. Where several are left, none is cut that
may be somebody else's, and the connection is left to libvirt's keep-alive.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
from pathlib import Path

_FDS = "/proc/self/fd"
Peer = tuple[str, int] | str

_lock = threading.Lock()
_under_way: set[SocketSearch] = set()
_open: set[SocketSearch] = set()


def inodes() -> dict[int, int]:
    """Inode and file descriptor of every socket this process has open. OSError when it can open no file."""
    found = {}
    for fd in os.listdir(_FDS):
        with contextlib.suppress(OSError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"{_FDS}/{fd}")):
                found[int(match[1])] = int(fd)
    return found


class SocketSearch:
    """The sockets of one attempt to connect to one of `peers`, and then of its connection; OSError as `inodes`.

    It is made before the attempt opens any. Exactly one of `over` and `claim` ends the attempt.
    """

    def __init__(self) -> None:
        self.peers: set[Peer] = set()
        self._before = frozenset(inodes())
        self._abandoned = False
        self._own: set[int] = set()  # of an abandoned attempt, beyond doubt
        self._held: dict[int, int] = {}  # of a connection: the one that is its own, or those that may be
        self._copy: socket.socket | None = None  # of the one that is its own: no number of it is given to another file
        with _lock:
            _under_way.add(self)

    def abandon(self) -> None:
        """The attempt is given up on: note what it has opened so far, before another one begins."""
        with _lock:
            self._abandoned = True
            self._note_own()

    def cut(self) -> None:
        """Shut down what an abandoned attempt has opened."""
        with _lock:
            for inode, fd in self._note_own().items():
                if inode in self._own:
                    _shut(inode, fd)

    def over(self) -> None:
        """The attempt has ended, and its sockets with it."""
        with _lock:
            _under_way.discard(self)

    def claim(self) -> None:
        """The attempt has succeeded: what it opened is kept from others until `release`."""
        with _lock:
            _under_way.discard(self)
            _open.add(self)
            with contextlib.suppress(OSError):
                found = self._unclaimed()
                self._held = {inode: found[inode] for inode in self._own & found.keys()} or found
                if len(self._held) == 1:
                    self._copy = socket.socket(fileno=os.dup(*self._held.values()))
            self._before, self._own = frozenset(), set()  # a connection lasts, and these are as many as all sockets

    def release(self) -> None:
        """Shut the connection's socket down, in both directions, and give it up."""
        with _lock:
            _open.discard(self)
            if self._copy is not None:
                with contextlib.suppress(OSError), self._copy:
                    self._copy.shutdown(socket.SHUT_RDWR)
                return
            for inode, fd in self._held.items():
                if not self._is_anothers(inode):
                    _shut(inode, fd)

    def _note_own(self) -> dict[int, int]:
        """Sockets that may be this attempt's; those that can be no other's are noted as its own."""
        if self not in _under_way:  # it has just ended, and what it opened is a connection's
            return {}
        try:
            found = self._unclaimed()
        except OSError:
            return {}
        self._own |= {inode for inode in found if not self._is_anothers(inode)}
        return found

    def _is_anothers(self, inode: int) -> bool:
        """Whether another connection may use it, or another attempt may have opened it that is not given up on."""
        attempts = (each for each in _under_way if each is not self and not each._abandoned)
        return any(inode in each._held for each in _open) or any(
            inode not in each._before and each.peers & self.peers for each in attempts
        )

    def _unclaimed(self) -> dict[int, int]:
        """New sockets to the peers that are not known to be another attempt's or connection's."""
        known = {inode for each in _open if each._copy is not None for inode in each._held}
        known.update(*(each._own for each in _under_way if each is not self))
        new = {inode: fd for inode, fd in inodes().items() if inode not in self._before and inode not in known}
        return {inode: fd for inode, fd in new.items() if _peer(inode, fd) in self.peers}


def _shut(inode: int, fd: int) -> None:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as copy:
        if os.fstat(copy.fileno()).st_ino == inode:  # the number may have been given to another file meanwhile
            copy.shutdown(socket.SHUT_RDWR)


def _peer(inode: int, fd: int) -> Peer | None:
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            peer = copy.getpeername()
    except OSError:
        return _sought(inode)
    return peer if isinstance(peer, str) else tuple(peer[:2])


def _sought(inode: int) -> Peer | None:
    """Where a TCP socket leads that is not connected yet: it has no peer, and the kernel knows all the same."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/thread-self/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[9] == str(inode):
                    return _address(*fields[2].split(":"))
    return None


def _address(address: str, port: str) -> Peer:
    """From the kernel's table: 32-bit words in hexadecimal, as they are in memory."""
    words = (int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8))
    family = socket.AF_INET if len(address) == 8 else socket.AF_INET6
    return socket.inet_ntop(family, b"".join(words)), int(port, 16)
