# SPDX-License-Identifier: Apache-2.0
"""/healthz, /readyz and /metrics."""

from __future__ import annotations

import asyncio

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from homeostat.reconcile.operator import Operator

STUCK_SECONDS = 120.0


class Endpoints:
    """Serves on an address like 127.0.0.1:8080."""

    def __init__(self, operator: Operator, listen: str) -> None:
        self._operator = operator
        self._host, _, port = listen.rpartition(":")
        self._port = int(port)

    async def run(self) -> None:
        """Serve until cancelled."""
        app = web.Application()
        app.add_routes(
            [web.get("/healthz", self._healthz), web.get("/readyz", self._readyz), web.get("/metrics", self._metrics)]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, self._host or "0.0.0.0", self._port).start()
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        """200 while the event loop turns and workers get on with the keys that wait, however many there are."""
        controllers = (self._operator.hypervisors, self._operator.vms, self._operator.migrations)
        seconds, name = max((each.queue.stuck(), each.name) for each in controllers)
        if seconds > STUCK_SECONDS:
            return web.Response(status=500, text=f"no {name} has been taken or done with for {seconds:.0f} s\n")
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        """200 once this operator holds the lease and has listed everything."""
        if not self._operator.synced:
            return web.Response(status=503, text="waiting for the lease or the first list\n")
        return web.Response(text="ok\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
