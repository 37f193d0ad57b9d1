# SPDX-License-Identifier: Apache-2.0
"""Watching goes on after an API server that refuses for a while, as one that was just started does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from homeostat.api.meta import GROUP, VERSION
from homeostat.kube.source import KopfSource

PLURAL = "gadgets"
KINDS = {
    ("", "v1"): {"namespaces": "Namespace"},
    ("apiextensions.k8s.io", "v1"): {"customresourcedefinitions": "CustomResourceDefinition"},
    (GROUP, VERSION): {PLURAL: "Gadget"},
}
"""Those of Kubernetes are only asked for: kopf does not begin without them."""
SECONDS = 60


def _group(name: str, version: str) -> dict[str, Any]:
    return {"name": name, "versions": [{"version": version}], "preferredVersion": {"version": version}}


def _resource(plural: str, kind: str) -> dict[str, Any]:
    return {"name": plural, "kind": kind, "singularName": "", "namespaced": False, "verbs": ["list", "watch", "patch"]}


def _says(body: object) -> Callable[[web.Request], Any]:
    async def handle(_: web.Request) -> web.Response:
        return web.json_response(body)

    return handle


class Server:
    """As much of an API server as watching needs: it has one object, and refuses watches when told to."""

    def __init__(self) -> None:
        self.refuses, self.name, self._watches = False, "one", asyncio.Event()
        self.app = web.Application()
        groups = [_group(*each) for each in KINDS if each[0]]
        self.app.router.add_get("/api", _says({"versions": ["v1"]}))
        self.app.router.add_get("/apis", _says({"groups": groups}))
        for (group, version), kinds in KINDS.items():
            path = f"/apis/{group}/{version}" if group else f"/api/{version}"
            self.app.router.add_get(path, _says({"resources": [_resource(*each) for each in kinds.items()]}))
        self.app.router.add_get(f"/apis/{GROUP}/{VERSION}/{PLURAL}", self._objects)

    def restart(self) -> None:
        """Refuse from now on, and drop who watches."""
        self.refuses = True
        self._watches.set()
        self._watches = asyncio.Event()

    async def _objects(self, request: web.Request) -> web.StreamResponse:
        if self.refuses:
            return web.json_response({"kind": "Status", "message": "please try again", "code": 503}, status=503)
        if "watch" in request.query:
            response = web.StreamResponse()
            await response.prepare(request)
            await self._watches.wait()
            return response
        item = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Gadget", "metadata": {"name": self.name, "uid": self.name}}
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": [item]})


def kubeconfig(folder: Path, port: int) -> Path:
    context = {"name": "here", "context": {"cluster": "here", "user": "nobody"}}
    clusters = [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}]
    config = {"apiVersion": "v1", "kind": "Config", "clusters": clusters, "users": [{"name": "nobody", "user": {}}]}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config | {"contexts": [context], "current-context": "here"}))
    return path


def test_a_watch_that_was_refused_until_it_failed_begins_anew(tmp_path: Path) -> None:
    seen: list[str] = []

    async def until(name: str) -> None:
        for _ in range(SECONDS * 20):
            if name in seen:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{name} was not seen in {SECONDS} s, but {seen}")

    async def main() -> None:
        server = Server()
        runner = web.AppRunner(server.app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        source = KopfSource(str(kubeconfig(tmp_path, port)), "default")
        watching = asyncio.create_task(source.run((PLURAL,), lambda _, __, item: seen.append(item["metadata"]["name"])))
        await until("one")
        server.restart()
        await asyncio.sleep(10)  # longer than it is tried again before it fails
        server.refuses, server.name = False, "two"
        await until("two")
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        server.restart()
        await runner.cleanup()

    asyncio.run(main())
