# SPDX-License-Identifier: Apache-2.0
"""A relay in front of a host, for what a cable cannot do: count requests, swallow replies, hang up."""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Listens on loopback and forwards to one address. Used as a context manager."""

    def __init__(self, address: str, port: int = 16509) -> None:
        self._target = (address, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.requests = 0
        self.muted = threading.Event()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._listener.getsockname()[1])

    @property
    def uri(self) -> str:
        """The URI of the host behind it, unencrypted."""
        return f"qemu+tcp://127.0.0.1:{self.port}/system"

    @property
    def open(self) -> int:
        """How many connections a client holds open through it."""
        return sum(client.fileno() >= 0 for client, _ in self._pairs)

    def hang_up(self) -> None:
        """Close all connections."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._listener.close()
        self.hang_up()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                host = socket.create_connection(self._target)
                self._pairs.append((client, host))
                for pump in (self._requests, self._replies):
                    threading.Thread(target=pump, args=(client, host), daemon=True).start()

    def _requests(self, client: socket.socket, host: socket.socket) -> None:
        with client.makefile("rb") as stream, contextlib.suppress(OSError):
            while head := stream.read(4):
                body = stream.read(int.from_bytes(head) - 4)
                if body[:4] != b"keep":
                    self.requests += 1
                host.sendall(head + body)
        self._end(client, host)

    def _replies(self, client: socket.socket, host: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := host.recv(65536):
                if not self.muted.is_set():
                    client.sendall(data)
        self._end(client, host)

    def _end(self, client: socket.socket, host: socket.socket) -> None:
        for end in (client, host):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        client.close()
