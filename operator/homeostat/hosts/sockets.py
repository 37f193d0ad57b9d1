# SPDX-License-Identifier: Apache-2.0
"""Finding the socket under a libvirt connection, so that it can really be closed.

`virConnectClose` only drops a reference: while a call is stuck in a connection it stays open, and a request that still
waits in its buffers may be carried out later. Shutting the socket down ends every call on it at once. libvirt does not
say which socket is its own; it is recognized as the one that appeared while the connection was opened and that leads to
the right peer. Where more than one does, none is taken, and the connection is left to libvirt's keep-alive.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket

_FDS = "/proc/self/fd"
Peer = tuple[str, int] | str
_claimed: set[int] = set()  # sockets that open connections are known to use


def inodes() -> dict[int, int]:
    """Inode and file descriptor of every socket this process has open."""
    found = {}
    for fd in os.listdir(_FDS):
        with contextlib.suppress(OSError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"{_FDS}/{fd}")):
                found[int(match[1])] = int(fd)
    return found


def claim(before: dict[int, int], peers: set[Peer]) -> int | None:
    """The one socket to one of `peers` that was not there before and is nobody's; None when there are none or several.

    It belongs to the caller until `release`.
    """
    new = _unclaimed(before, peers)
    if len(new) != 1:
        return None
    _claimed.add(new[0])
    return new[0]


def release(inode: int) -> None:
    """Shut a claimed socket down, in both directions, and give it up."""
    _shut(inode)
    _claimed.discard(inode)


def shut_unclaimed(before: dict[int, int], peers: set[Peer]) -> None:
    """Shut down the sockets of attempts to connect that were given up on."""
    for inode in _unclaimed(before, peers):
        _shut(inode)


def _unclaimed(before: dict[int, int], peers: set[Peer]) -> list[int]:
    return [
        inode
        for inode, fd in inodes().items()
        if inode not in before and inode not in _claimed and _leads_to(fd, peers)
    ]


def _shut(inode: int) -> None:
    fd = inodes().get(inode)
    if fd is None:
        return
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as copy:
        if os.fstat(copy.fileno()).st_ino == inode:  # the number may have been given to another file meanwhile
            copy.shutdown(socket.SHUT_RDWR)


def _leads_to(fd: int, peers: set[Peer]) -> bool:
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            peer = copy.getpeername()
    except OSError:
        return False
    return (peer if isinstance(peer, str) else tuple(peer[:2])) in peers
