# SPDX-License-Identifier: Apache-2.0
"""Kubernetes Events: nobody waits for them, and an API server that does not take them is no reason to end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from homeostat.kube.events import MOST_WAITING, Recorder
from homeostat.kube.transport import ApiError
from tests.simulation.clock import now, run_virtual

pytestmark = pytest.mark.unit

WEB = {"metadata": {"name": "web", "namespace": "shop", "uid": "1"}}


class Api:
    """An API server that answers no request before `up`, refuses the first one, and breaks at the second."""

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.notes: list[str] = []

    async def request(self, method: str, path: str, **given: Any) -> dict[str, Any]:
        """A POST of an Event."""
        await self.up.wait()
        self.notes.append(f"{method} {path} {given['body']['message']}")
        if len(self.notes) == 1:
            raise ApiError(403, "Forbidden", "not you")
        if len(self.notes) == 2:
            raise RuntimeError("nobody foresaw this")
        return {}


def test_events_are_written_in_their_order_and_what_finds_too_many_waiting_is_left_out() -> None:
    async def drill() -> list[str]:
        api = Api()
        recorder = Recorder(api, now)
        writing = asyncio.create_task(recorder.run())
        for number in range(MOST_WAITING + 10):
            recorder.record("VirtualMachine", WEB, "Running", f"note {number}", warning=False)
        api.up.set()
        await asyncio.sleep(1)
        recorder.record("VirtualMachine", WEB, "Running", "the last", warning=False)
        await asyncio.sleep(1)
        writing.cancel()
        return api.notes

    notes = run_virtual(drill())
    where = "POST /api/v1/namespaces/shop/events"
    assert notes == [*(f"{where} note {number}" for number in range(MOST_WAITING)), f"{where} the last"]
