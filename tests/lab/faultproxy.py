# SPDX-License-Identifier: Apache-2.0
r"""Counts every effect an operator has on libvirt hosts and on the API server, and breaks the one you name.

It stands between a real, unchanged operator process and real servers, so that no switch for faults has to exist in the
product. An effect is one mutating request: a libvirt RPC call that changes a host, or an HTTP POST, PUT, PATCH or
DELETE (Events, Leases and reviews apart). Effects are numbered over all listeners in the order they pass, and logged
as JSON lines {n, t, where, what, object, fault}.

    python -m tests.lab.faultproxy --libvirt 17001=198.51.100.11:16509 --libvirt 0=198.51.100.12:16509 \
        --api 18001=KUBECONFIG --log effects.jsonl --pid-file operator.pid --at createWithFlags:1 --do kill-after

Hypervisors are then declared as qemu+tcp://127.0.0.1:17001/system, and the operator's kubeconfig points to
http://127.0.0.1:18001. Port 0 takes a free one. Once it listens it prints a line `ready`, and after it, as JSON, the
port of each target: {"198.51.100.11:16509": 17001, ..., "KUBECONFIG": 18001}.

A fault is placed by what and which: WHAT:K is the K-th effect where the regular expression WHAT is found in `what
object` (a bare number counts all effects, which is not stable where work is concurrent). It exits with 3 when the fault
was never reached: such a run covers nothing.

    kill-before  the request never arrives, the operator is dead
    kill-after   it is done, the operator dies before it hears
    drop-reply   it is done, the operator hears an error
    delay=S      it is carried out S seconds late, even if its caller is gone by then
    late=S       the operator is dead at once, and S seconds later it is carried out all the same
    hang         it never arrives and is never answered
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import rpc
from tests.lab.faultproxy_api import api_proxy
from tests.lab.processes import Process, end

NOT_REACHED = 3
SIMPLE = ("kill-before", "kill-after", "drop-reply", "hang")


@dataclass
class Faults:
    """Numbers and logs effects, and says what is to happen to each. `at` and `do` are those of the command line."""

    log: Path
    pid_file: Path | None = None
    at: str | None = None
    do: str | None = None
    count: int = field(default=0, init=False)
    matched: int = field(default=0, init=False)
    reached: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        what, _, nth = (self.at or "").rpartition(":")
        self._what, self._nth = re.compile(what), int(nth or 0)
        self._lines = self.log.open("a", buffering=1)

    def effect(self, where: str, what: str, target: str) -> str | None:
        """Count an effect; returns the fault that is to happen to it."""
        self.count += 1
        self.matched += bool(self._what.search(f"{what} {target}"))
        fault = self.do if not self.reached and self.matched == self._nth else None
        self.reached = self.reached or fault is not None
        line = {"n": self.count, "t": time.time(), "where": where, "what": what, "object": target, "fault": fault}
        self._lines.write(json.dumps(line) + "\n")
        return fault

    def kill(self) -> None:
        """End the operator with SIGKILL; returns when it is gone."""
        assert self.pid_file
        try:
            end([Process.of(int(self.pid_file.read_text()))])
        except ProcessLookupError:  # it had ended by itself
            pass

    @property
    def status(self) -> int:
        """The exit status: whether the fault, if there was to be one, happened."""
        return 0 if self.reached or self.do is None else NOT_REACHED


def delay_of(fault: str | None) -> float:
    """By how many seconds a fault delays its effect."""
    kind, _, seconds = (fault or "").partition("=")
    return float(seconds) if kind in ("delay", "late") else 0


def is_late(fault: str | None) -> bool:
    """Whether the operator is to die before its effect is carried out all the same."""
    return (fault or "").startswith("late=")


class LibvirtConnection:
    """One connection of the operator to a libvirtd, carried on to `server`."""

    def __init__(self, faults: Faults, server: str) -> None:
        self.faults, self.server = faults, server
        self.unanswered: dict[int, str | None] = {}  # serial of a mutating call -> the fault of its reply
        self.late: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry calls and replies until either side ends."""
        host, _, port = self.server.rpartition(":")
        try:
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        calls = asyncio.create_task(self._calls(reader, up_writer))
        replies = asyncio.create_task(self._replies(up_reader, writer))
        await asyncio.wait({calls, replies}, return_when=asyncio.FIRST_COMPLETED)
        if calls.done():
            await self._finish(replies)
        for task in (calls, replies, *self.late):
            task.cancel()
        await asyncio.gather(calls, replies, *self.late, return_exceptions=True)
        writer.close()
        up_writer.close()

    async def _finish(self, replies: asyncio.Task[None]) -> None:
        """The caller is gone; what it had asked for is still carried out."""
        await asyncio.gather(*self.late)
        deadline = time.monotonic() + 60
        while self.unanswered and not replies.done() and time.monotonic() < deadline:
            await asyncio.wait({replies}, timeout=0.05)

    async def _calls(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while True:
            try:
                frame = await rpc.read_frame(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            call = rpc.call(frame)
            fault = self.faults.effect(self.server, call.name, call.target) if call.name else None
            if fault == "kill-before":
                self.faults.kill()
                return
            if fault == "hang":
                continue
            if is_late(fault):
                self.faults.kill()
            if call.name:
                self.unanswered[call.serial] = fault
            if delay := delay_of(fault):
                self.late.add(asyncio.create_task(self._send_late(delay, frame, server)))
            else:
                await self._send(frame, server)

    async def _send_late(self, delay: float, frame: bytes, server: asyncio.StreamWriter) -> None:
        # Beside the other calls of the connection: were they held up too, keep-alive would end it first.
        await asyncio.sleep(delay)
        await self._send(frame, server)

    async def _replies(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while True:
            try:
                frame = await rpc.read_frame(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            serial = rpc.reply_serial(frame)
            fault = self.unanswered.pop(serial, None) if serial is not None else None
            if fault == "kill-after":
                self.faults.kill()
            if fault in ("kill-after", "drop-reply"):
                return
            await self._send(frame, client)

    @staticmethod
    async def _send(frame: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(frame)
            await writer.drain()
        except ConnectionError:
            pass


async def libvirt_proxy(faults: Faults, server: str, port: int) -> int:
    """Listen on loopback for calls to a libvirtd; returns the port."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await LibvirtConnection(faults, server).serve(reader, writer)

    listener = await asyncio.start_server(connected, "127.0.0.1", port)
    return int(listener.sockets[0].getsockname()[1])


def _listener(text: str) -> tuple[int, str]:
    port, equals, target = text.partition("=")
    if not equals or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not PORT=TARGET")
    return int(port), target


def _fault(text: str) -> str:
    if text not in SIMPLE and not re.fullmatch(r"(delay|late)=\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(SIMPLE)}, delay=S, late=S")
    return text


def _place(text: str) -> str:
    if not re.fullmatch(r"(.*:)?[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither WHAT:K nor K")
    return text


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, metavar in (("--libvirt", "PORT=HOST:PORT"), ("--api", "PORT=KUBECONFIG")):
        parser.add_argument(option, metavar=metavar, action="append", default=[], type=_listener)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--pid-file", type=Path, help="where the operator's pid is when it is to be killed")
    parser.add_argument("--at", metavar="WHAT:K", type=_place)
    parser.add_argument("--do", metavar="FAULT", type=_fault)
    arguments = parser.parse_args()
    if (arguments.at is None) != (arguments.do is None):
        parser.error("--at and --do go together")
    if (arguments.do or "").startswith(("kill-", "late=")) and arguments.pid_file is None:
        parser.error(f"--do {arguments.do} needs --pid-file")
    return arguments


async def serve(arguments: argparse.Namespace) -> int:
    """Proxy until SIGTERM or SIGINT; returns the exit status."""
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # operators that are killed hang up in mid-answer
    faults = Faults(arguments.log, arguments.pid_file, arguments.at, arguments.do)
    ports = {target: await libvirt_proxy(faults, target, port) for port, target in arguments.libvirt}
    runners = {target: await api_proxy(faults, Path(target), port) for port, target in arguments.api}
    ports |= {target: int(runner.addresses[0][1]) for target, runner in runners.items()}
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print("ready", json.dumps(ports), sep="\n", flush=True)
    await stop.wait()
    for runner in runners.values():
        await asyncio.wait({asyncio.create_task(runner.cleanup())}, timeout=1)
    return faults.status


if __name__ == "__main__":
    sys.exit(asyncio.run(serve(_arguments())))
