# SPDX-License-Identifier: Apache-2.0
"""Ports of loopback that one instance keeps for as long as it exists."""

import json
import socket
import zlib
from pathlib import Path

from tests.controlplane.locks import locked

# Below the kernel's ephemeral range: no outgoing connection may take the port of a server that is down for a moment.
FIRST, LAST = 20000, 29999
FILE = "ports.json"


def is_free(port: int) -> bool:
    """Return whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _taken(root: Path) -> set[int]:
    return {port for directory in root.iterdir() for port in _recorded(directory / FILE)}


def _recorded(file: Path) -> list[int]:
    try:
        return list(json.loads(file.read_text()).values())
    except (FileNotFoundError, NotADirectoryError):  # it has none yet, or is being removed
        return []


def allocate(directory: Path, roles: tuple[str, ...]) -> dict[str, int]:
    """Return a port for each role: those recorded in the directory, or free ones that no sibling has recorded."""
    file = directory / FILE
    with locked(directory.parent):
        if not file.exists():
            start = zlib.crc32(directory.name.encode()) % (LAST - FIRST)
            order = (FIRST + (start + step) % (LAST - FIRST) for step in range(LAST - FIRST))
            taken = _taken(directory.parent)
            free = (port for port in order if port not in taken and is_free(port))
            file.write_text(json.dumps(dict(zip(roles, free, strict=False))))
    ports: dict[str, int] = json.loads(file.read_text())
    return ports
