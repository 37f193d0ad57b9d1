# SPDX-License-Identifier: Apache-2.0
"""The half of the fault proxy that stands before the API server."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import yaml
from aiohttp import web

HOP = ("host", "authorization", "content-length", "transfer-encoding", "connection")
UNCOUNTED = {"events", "leases", "selfsubjectaccessreviews", "selfsubjectrulesreviews", "tokenreviews"}
PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/[^/]+(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<resource>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<part>.+))?)?"
)


class Faults(Protocol):
    """What decides about effects."""

    def effect(self, where: str, what: str, target: str) -> str | None:
        """Count an effect; returns the fault that is to happen to it."""

    def kill(self) -> None:
        """End the operator."""


@dataclass(frozen=True)
class Server:
    """An API server and how to speak to it."""

    url: str
    tls: ssl.SSLContext | None
    headers: dict[str, str]


def server(kubeconfig: Path) -> Server:
    """The server of a kubeconfig's current context, with its credentials: a client certificate or a token."""
    config = yaml.safe_load(kubeconfig.read_text())
    context = _named(config["contexts"], config.get("current-context") or config["contexts"][0]["name"])["context"]
    cluster = _named(config["clusters"], context["cluster"])["cluster"]
    user = _named(config["users"], context["user"])["user"]
    token = user.get("token")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = str(cluster["server"]).rstrip("/")
    return Server(url, _tls(kubeconfig.parent, cluster, user) if url.startswith("https") else None, headers)


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def _tls(folder: Path, cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
    authority = _content(folder, cluster, "certificate-authority")
    context = ssl.create_default_context(cadata=authority.decode() if authority else None)
    certificate, key = (_content(folder, user, name) for name in ("client-certificate", "client-key"))
    if certificate and key:
        with tempfile.NamedTemporaryFile() as pair:  # OpenSSL takes these from a file only
            pair.write(certificate + b"\n" + key)
            pair.flush()
            context.load_cert_chain(pair.name)
    return context


def _content(folder: Path, entry: dict[str, Any], name: str) -> bytes | None:
    if data := entry.get(f"{name}-data"):
        return base64.b64decode(data)
    return (folder / entry[name]).read_bytes() if name in entry else None


def api_target(path: str, body: bytes) -> tuple[str, str]:
    """(resource, what a request is for as RESOURCE/[NAMESPACE/]NAME); a POST has the name in its body."""
    found = PATH.fullmatch(path)
    if not found:
        return "", ""
    name = found["name"] or _name_in(body)
    return found["resource"], "/".join(part for part in (found["resource"], found["namespace"], name) if part)


def _name_in(body: bytes) -> str:
    try:
        metadata = json.loads(body)["metadata"]
        return str(metadata.get("name") or metadata.get("generateName") or "")
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        return ""


class ApiProxy:
    """Carries requests to an API server with credentials of its own."""

    def __init__(self, faults: Faults, upstream: Server) -> None:
        connector = aiohttp.TCPConnector(ssl=upstream.tls or False, limit=0)
        self.faults, self.upstream = faults, upstream
        self.session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )

    async def close(self, _app: web.Application) -> None:
        """Close the connections to the server."""
        await self.session.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Carry one request, or do to it what its fault says."""
        body = await request.read()
        resource, target = api_target(request.path, body)
        if request.method in ("GET", "HEAD", "OPTIONS") or resource in UNCOUNTED:
            return await self._forward(request, body, None)
        fault = self.faults.effect("api", f"{request.method} {request.path}", target)
        if fault == "kill-before":
            self.faults.kill()
            raise ConnectionResetError
        if fault == "hang":
            await asyncio.Event().wait()
        # Shielded: what the operator has sent is carried out, whether or not it lives to hear of it.
        return await asyncio.shield(self._late(request, body, fault))

    async def _late(self, request: web.Request, body: bytes, fault: str | None) -> web.StreamResponse:
        kind, _, seconds = (fault or "").partition("=")
        if kind == "late":
            self.faults.kill()
        if kind in ("delay", "late"):
            await asyncio.sleep(float(seconds))
        return await self._forward(request, body, fault)

    async def _forward(self, request: web.Request, body: bytes, fault: str | None) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        url = self.upstream.url + request.path_qs
        async with self.session.request(
            request.method, url, data=body or None, headers=headers | self.upstream.headers
        ) as answer:
            if fault in ("kill-after", "drop-reply"):
                await answer.read()
                if fault == "kill-after":
                    self.faults.kill()
                if request.transport:
                    request.transport.abort()
                raise ConnectionResetError
            return await _relay(request, answer)


async def _relay(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    headers = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    async for chunk in answer.content.iter_any():
        await response.write(chunk)
    await response.write_eof()
    return response


async def api_proxy(faults: Faults, kubeconfig: Path, port: int) -> web.AppRunner:
    """Listen on loopback for requests to the server of a kubeconfig."""
    app, proxy = web.Application(client_max_size=64 << 20), ApiProxy(faults, server(kubeconfig))
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    app.on_cleanup.append(proxy.close)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner
