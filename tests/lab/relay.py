# SPDX-License-Identifier: Apache-2.0
"""A relay in front of a host, for what a cable cannot do: count requests, swallow replies, hang up."""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Listens on loopback and forwards to one port of an address. Used as a context manager."""

    def __init__(self, address: str, port: int = 16509) -> None:
        self._target = (address, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
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
        return len(self._pairs)

    def hang_up(self) -> None:
        """Close all connections."""
        for pair in list(self._pairs):
            _shut(*pair)

    def reply(self, data: bytes) -> bytes:
        """What a client gets for what the host sends."""
        return data

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        _shut(self._listener)
        self._listener.close()
        self.hang_up()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                host = socket.create_connection(self._target)
                self._pairs.add((client, host))
                threading.Thread(target=self._serve, args=(client, host), daemon=True).start()

    def _serve(self, client: socket.socket, host: socket.socket) -> None:
        requests = threading.Thread(target=self._forward, args=(client, host), daemon=True)
        requests.start()
        with contextlib.suppress(OSError):
            while data := host.recv(65536):
                if not self.muted.is_set():
                    client.sendall(self.reply(data))
        _shut(client, host)
        requests.join()
        self._pairs.discard((client, host))
        client.close()
        host.close()

    def _forward(self, client: socket.socket, host: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                self.requests += b"keep" not in data  # libvirt sends each message of these drills in one piece
                host.sendall(data)
        _shut(client, host)


def _shut(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
