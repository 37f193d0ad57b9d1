# SPDX-License-Identifier: Apache-2.0
"""Whether an API server is ready for our kinds: an established CRD is refused with 429 for a moment (measured)."""

import time

from tests.api.server import PATHS, Refused, Server

TOO_MANY, SECONDS = 429, 30.0


def await_storage(server: Server) -> None:
    """Wait until every kind can be listed; raises Refused when that takes too long."""
    deadline = time.monotonic() + SECONDS
    for path in PATHS.values():
        while not _is_served(server, path, time.monotonic() > deadline):
            time.sleep(0.1)


def _is_served(server: Server, path: str, late: bool) -> bool:
    try:
        server.request("GET", path)
    except Refused as refusal:
        if late or refusal.code != TOO_MANY:
            raise
        return False
    return True
