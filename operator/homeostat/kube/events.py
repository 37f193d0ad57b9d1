# SPDX-License-Identifier: Apache-2.0
"""Kubernetes Events on transitions. Nothing waits for one, and one that cannot be written is only logged."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from homeostat.api.meta import API_VERSION, rfc3339
from homeostat.kube.transport import Transport

log = logging.getLogger(__name__)
MAX_NOTE = 1024
MOST_WAITING = 1000


class Recorder:
    """Writes Events, one after the other, while run() does."""

    def __init__(self, transport: Transport, now: Callable[[], datetime]) -> None:
        self._transport, self._now = transport, now
        self._waiting: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue(MOST_WAITING)

    async def run(self) -> None:
        """Write what was recorded, until cancelled."""
        while True:
            await self._write(*await self._waiting.get())

    def record(self, kind: str, seen: dict[str, Any], reason: str, note: str, *, warning: bool) -> None:
        """Have one Event about an object written. Never raises; one that finds too many waiting is left out."""
        meta, now = seen["metadata"], self._now()
        namespace = meta.get("namespace") or "default"
        digest = hashlib.sha256(f"{meta['uid']}{reason}{note}{now.isoformat()}".encode()).hexdigest()[:10]
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name'][:200]}.{digest}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": kind,
                "name": meta["name"],
                "namespace": meta.get("namespace", ""),
                "uid": meta["uid"],
            },
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": note[:MAX_NOTE],
            "firstTimestamp": rfc3339(now),
            "lastTimestamp": rfc3339(now),
            "count": 1,
            "source": {"component": "homeostat"},
            "reportingComponent": "homeostat.dev/operator",
        }
        try:
            self._waiting.put_nowait((namespace, event))
        except asyncio.QueueFull:
            log.info("an event is not written, as %d wait: %s of %s", MOST_WAITING, reason, meta["name"])

    async def _write(self, namespace: str, event: dict[str, Any]) -> None:
        try:
            await self._transport.request("POST", f"/api/v1/namespaces/{namespace}/events", body=event)
        except Exception as error:  # whatever it is: the operator would end with this task
            log.info("an event could not be written: %s", error)
