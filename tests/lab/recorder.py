# SPDX-License-Identifier: Apache-2.0
"""Records the life of every QEMU of a lab: its process, and when its CPUs ran. `python recorder.py DIRECTORY`.

Nothing is sampled. A QEMU announces itself before it becomes QEMU and waits for the answer, so none is missed; its end
comes from a pidfd; its CPUs from QMP events with QEMU's own time stamps (STOP is stamped after the CPUs stopped, RESUME
before they run, so an interval is never shorter than the truth). The request that turns events on lies in the monitor's
input before QEMU's first instruction, ahead of everything libvirt can ask.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

EVENTS = ("STOP", "RESUME", "SHUTDOWN")
SOCKET, LOG = "socket", "qemu.jsonl"
PEER = struct.Struct("3i")


@dataclass
class Qemu:
    """One QEMU process that announced itself."""

    host: str
    uuid: str
    pid: int
    monitor: socket.socket
    pidfd: int
    unread: bytes = field(default=b"")


class Recorder:
    """Writes one JSON line per start, end and CPU event of every QEMU to `log`."""

    def __init__(self, directory: Path, log: Path) -> None:
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.selector = selectors.EpollSelector()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(directory / SOCKET))
        os.chmod(directory / SOCKET, 0o666)  # QEMU may run as a user of its own
        self.listener.listen(128)
        self.watch(self.listener, self.accept)

    def watch(self, source: socket.socket | int, call: Callable[[], None]) -> None:
        """Call `call` whenever `source` is readable."""
        self.selector.register(source, selectors.EVENT_READ, call)

    def turn(self, timeout: float | None) -> bool:
        """Handle what is readable now, waiting for it at most `timeout` seconds; False when there was nothing."""
        ready = self.selector.select(timeout)
        for key, _ in ready:
            # Not dropped by an earlier one of the same turn, which may have closed it and opened another of its number.
            if self.selector.get_map().get(key.fd) is key:
                key.data()
        return bool(ready)

    def write(self, event: str, at: float, qemu: Qemu) -> None:
        """Append one line, in one write."""
        line = {"event": event, "t": at, "host": qemu.host, "uuid": qemu.uuid, "pid": qemu.pid}
        os.write(self.log, json.dumps(line).encode() + b"\n")

    def accept(self) -> None:
        """Take a connection; its first line says what it is."""
        connection, _ = self.listener.accept()
        self.watch(connection, lambda: self.greet(connection))

    def greet(self, connection: socket.socket) -> None:
        """Answer `start HOST UUID` of an emulator, or `sync` of a reader."""
        self.selector.unregister(connection)
        try:
            words = connection.recv(4096).decode(errors="replace").split()
        except ConnectionError:
            words = []
        match words:
            case ["start", host, uuid]:
                self.start(connection, host, uuid)
            case ["sync"]:
                self.sync(connection)
            case _:
                connection.close()

    def start(self, connection: socket.socket, host: str, uuid: str) -> None:
        """Record the start of a QEMU, then let it go on. One that was ended while it waited has not become QEMU."""
        pid = peer_pid(connection)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            connection.close()
            return
        qemu = Qemu(host, uuid, pid, connection, pidfd)
        connection.setblocking(False)
        self.watch(connection, lambda: self.read(qemu))
        self.watch(qemu.pidfd, lambda: self.end(qemu))
        self.write("start", time.time(), qemu)
        _answer(connection, b'ok\n{"execute": "qmp_capabilities"}\n')

    def read(self, qemu: Qemu) -> None:
        """Record the CPU events that QEMU has sent."""
        try:
            data = qemu.monitor.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.selector.unregister(qemu.monitor)
            qemu.monitor.close()
            return
        *lines, qemu.unread = (qemu.unread + data).split(b"\n")
        for line in lines:
            self.event(qemu, json.loads(line))

    def event(self, qemu: Qemu, message: dict[str, object]) -> None:
        """Record one QMP message if it says that CPUs started or stopped."""
        match message:
            case {"event": str(name), "timestamp": {"seconds": int(seconds), "microseconds": int(micros)}}:
                if name in EVENTS:
                    self.write(name, seconds + micros / 1e6, qemu)

    def end(self, qemu: Qemu) -> None:
        """Record the end of a process, after what it still had said."""
        at = time.time()
        while qemu.monitor.fileno() >= 0 and qemu.monitor in self.selector.get_map():
            self.read(qemu)
        self.selector.unregister(qemu.pidfd)
        os.close(qemu.pidfd)
        self.write("end", at, qemu)

    def sync(self, connection: socket.socket) -> None:
        """Answer once everything that had happened when the question came is on record."""
        while self.turn(0):
            pass
        _answer(connection, b"ok\n")
        connection.close()


def _answer(connection: socket.socket, words: bytes) -> None:
    """Send to a peer that may be gone: a process that was ended, a reader that gave up."""
    with contextlib.suppress(ConnectionError):
        connection.send(words)


def connect(directory: Path) -> socket.socket:
    """A connection to the recorder. OSError when it does not run."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    try:
        connection.connect(str(directory / SOCKET))
    except OSError:
        connection.close()
        raise
    return connection


def peer_pid(connection: socket.socket) -> int:
    """The pid of the process at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    return int(PEER.unpack(credentials)[0])


def sync(directory: Path) -> None:
    """Return when the recorder has written all that had happened at the call. OSError when it does not run."""
    with connect(directory) as connection:
        connection.send(b"sync\n")
        if not connection.recv(64):
            raise ConnectionResetError("the recorder ended")


def main() -> None:
    """Record until killed, or until the directory is gone."""
    directory = Path(sys.argv[1])
    os.nice(-10)  # the end of a process is stamped when it is seen here
    recorder = Recorder(directory, directory / LOG)
    mine = (directory / SOCKET).stat()
    while True:
        recorder.turn(1)
        try:
            if (directory / SOCKET).stat().st_ino != mine.st_ino:
                return
        except FileNotFoundError:
            return


if __name__ == "__main__":
    main()
