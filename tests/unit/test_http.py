# SPDX-License-Identifier: Apache-2.0
"""Each request is made once, ends in time, and ends in an answer or in none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from homeostat.kube.http import HttpTransport
from homeostat.kube.transport import ApiError, ApiUnreachable
from tests.unit.test_source import kubeconfig

pytestmark = pytest.mark.unit

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Drill = Callable[[HttpTransport], Awaitable[None]]


def served(tmp_path: Path, handler: Handler, drill: Drill, *, seconds: float = 5.0) -> list[str]:
    """Run a drill on a transport to a server; the methods of the requests that it got."""
    asked: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request.method)
        return await handler(request)

    async def main() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        transport = await HttpTransport.connect(str(kubeconfig(tmp_path, runner.addresses[0][1])), seconds)
        try:
            await asyncio.wait_for(drill(transport), 20)
        finally:
            await transport.close()
            await runner.cleanup()

    asyncio.run(main())
    return asked


def test_a_server_that_refuses_is_asked_once_whatever_is_asked(tmp_path: Path) -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response({"kind": "Status", "message": "etcdserver: request timed out"}, status=503)

    async def drill(transport: HttpTransport) -> None:
        for method in ("GET", "PUT", "POST", "PATCH", "DELETE"):
            with pytest.raises(ApiError, match="etcdserver: request timed out") as caught:
                await transport.request(method, "/apis/x", body=None if method == "GET" else {})
            assert caught.value.status == 503

    assert served(tmp_path, refuse, drill) == ["GET", "PUT", "POST", "PATCH", "DELETE"]


@pytest.mark.parametrize("text", ["<html>a proxy says that all is well</html>", '["text"]', '"text"', "7"])
def test_an_answer_that_is_no_object_is_no_answer(tmp_path: Path, text: str) -> None:
    async def proxy(_: web.Request) -> web.StreamResponse:
        return web.Response(text=text)

    async def drill(transport: HttpTransport) -> None:
        with pytest.raises(ApiUnreachable, match="GET /apis/x: "):
            await transport.request("GET", "/apis/x")

    served(tmp_path, proxy, drill)


async def answer(_: web.Request) -> web.StreamResponse:
    """Whatever is asked."""
    return web.json_response({})


def logging_in(transport: HttpTransport, login: Callable[[object], object]) -> None:
    """Have the token of each request come from `login`, as a kubeconfig with a program or a token file does."""
    settings = transport._api.configuration
    settings.api_key["BearerToken"], settings.refresh_api_key_hook = "old", login


def test_a_token_that_cannot_be_read_for_a_while_is_no_answer(tmp_path: Path) -> None:
    def unreadable(_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/var/run/secrets/token")

    async def drill(transport: HttpTransport) -> None:
        logging_in(transport, unreadable)
        with pytest.raises(ApiUnreachable, match="/var/run/secrets/token"):
            await transport.request("GET", "/apis/x")

    assert served(tmp_path, answer, drill) == []


def test_a_login_that_hangs_ends_in_time(tmp_path: Path) -> None:
    async def silent(_: object) -> None:
        await asyncio.Event().wait()

    async def drill(transport: HttpTransport) -> None:
        logging_in(transport, silent)
        with pytest.raises(ApiUnreachable):
            await asyncio.wait_for(transport.request("GET", "/apis/x"), 15)

    served(tmp_path, answer, drill, seconds=0.5)
