# SPDX-License-Identifier: Apache-2.0
"""An operator whose lease cannot be renewed stops before another one may begin, whatever hangs."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import web

from homeostat.cli.run import END_SECONDS, lease_timeout, together
from homeostat.kube.lease import Lease, LeaseLost
from homeostat.kube.transport import JSON, ApiError, ApiUnreachable
from homeostat.reconcile.settings import Settings
from tests.simulation.clock import now, run_virtual
from tests.unit.test_source import kubeconfig

pytestmark = pytest.mark.unit

BUSY = 12
"""Seconds that a busy machine may take beside what is waited for."""


class Leases:
    """As much of an API server as a lease needs. Requests take `slow` seconds; the answers of some never come."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] = {}
        self.hangs = self.hangs_once = False
        self.slow = 0.0
        self.granted = 0.0

    async def request(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None, content_type: str = JSON
    ) -> dict[str, Any]:
        """See Transport."""
        if self.hangs or self.hangs_once:
            self.hangs_once = False
            await asyncio.sleep(lease_timeout(Settings()))
            raise ApiUnreachable("no answer")
        await asyncio.sleep(self.slow)
        if method == "GET" and not self.lease:
            raise ApiError(404, "NotFound", "")
        if method != "GET":
            self.lease, self.granted = body, asyncio.get_running_loop().time()
        return self.lease


def test_a_lease_is_given_up_before_it_is_over_when_no_answer_comes() -> None:
    async def drill() -> float:
        leases = Leases()
        lease = Lease(leases, "ns", "me", now, seconds=15)
        await lease.acquire()
        keeping = asyncio.create_task(lease.keep())
        await asyncio.sleep(8)
        leases.hangs = True
        with pytest.raises(LeaseLost, match="held by me"):
            await keeping
        return asyncio.get_running_loop().time() - leases.granted

    assert 5 < run_virtual(drill()) <= 10


def test_one_request_that_hangs_loses_no_lease() -> None:
    async def drill() -> None:
        leases = Leases()
        lease = Lease(leases, "ns", "me", now, seconds=15)
        await lease.acquire()
        keeping = asyncio.create_task(lease.keep())
        for _ in range(20):
            leases.hangs_once = True
            await asyncio.sleep(30)
        assert not keeping.done()
        keeping.cancel()

    run_virtual(drill())


def test_a_lease_counts_from_when_it_was_asked_for() -> None:
    """A server may have granted it at once and answered late: others count from then."""

    async def drill() -> float:
        leases = Leases()
        leases.slow = 4
        lease = Lease(leases, "ns", "me", now, seconds=15)
        await lease.acquire()
        leases.hangs = True
        begun = leases.granted - 4
        with pytest.raises(LeaseLost):
            await lease.keep()
        return asyncio.get_running_loop().time() - begun

    assert run_virtual(drill()) == pytest.approx(10)


def test_an_end_with_an_error_waits_for_no_call_to_a_host() -> None:
    async def outlasting() -> None:
        end = asyncio.get_running_loop().time() + 180
        while (left := end - asyncio.get_running_loop().time()) > 0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(left)

    async def losing() -> None:
        await asyncio.sleep(1)
        raise LeaseLost("it is held by another")

    async def drill() -> float:
        with pytest.raises(LeaseLost):
            await together(outlasting(), losing())
        return asyncio.get_running_loop().time()

    assert run_virtual(drill()) <= 1 + END_SECONDS


class Ended(NamedTuple):
    """How an operator ended that held the Lease: its exit status, after how many seconds, its log and the Lease."""

    code: int | None
    seconds: float
    log: str
    lease: dict[str, Any]


def operate(
    tmp_path: Path, disturb: Callable[[asyncio.subprocess.Process, asyncio.Event], None], *, lease_seconds: int
) -> Ended:
    """Run the whole process at an API server that is silent once the event is set; disturbed once it has the Lease."""
    silent, leased, lease = asyncio.Event(), asyncio.Event(), dict[str, Any]()

    async def handle(request: web.Request) -> web.StreamResponse:
        if silent.is_set():
            await asyncio.sleep(60)
        if not request.path.startswith("/apis/coordination.k8s.io"):
            return web.json_response({"metadata": {"uid": "cluster"}, "items": []})
        if request.method == "GET" and not lease:
            return web.json_response({}, status=404)
        if request.method != "GET":
            if lease:  # it has renewed it, so it knows that it has it
                leased.set()
            lease.update(await request.json())
        return web.json_response(lease)

    async def drill() -> Ended:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        config = str(kubeconfig(tmp_path, runner.addresses[0][1]))
        options = [f"--lease-seconds={lease_seconds}", "--listen=", "--kubeconfig", config]
        command = [sys.executable, "-m", "homeostat", "run", *options]
        operator = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        await asyncio.wait_for(leased.wait(), 30)
        disturb(operator, silent)
        begun = time.monotonic()
        _, log = await asyncio.wait_for(operator.communicate(), 60)
        await runner.cleanup()
        return Ended(operator.returncode, time.monotonic() - begun, log.decode(), lease)

    return asyncio.run(drill())


def test_an_operator_says_that_its_lease_is_lost_and_ends_though_it_cannot_be_given_back(tmp_path: Path) -> None:
    ended = operate(tmp_path, lambda _, silent: silent.set(), lease_seconds=12)
    assert ended.code == 1
    assert "ending: the lease could not be renewed" in ended.log
    assert ended.seconds < 12 + 2 + END_SECONDS + BUSY


def test_an_operator_that_is_asked_to_end_gives_its_lease_back(tmp_path: Path) -> None:
    ended = operate(tmp_path, lambda operator, _: operator.terminate(), lease_seconds=30)
    assert ended.code == 0
    assert ended.lease["spec"]["holderIdentity"] == ""
    assert ended.seconds < END_SECONDS + BUSY
