# SPDX-License-Identifier: Apache-2.0
"""One operator at work at a time, by a Lease. Nothing that must be safe depends on it.

The official client's leader election trusts the wall clock, does not give the lease back on exit, and ends on a
connection error; this one measures with the loop's clock and releases.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from homeostat.kube.transport import ApiError, ApiUnreachable, Transport

log = logging.getLogger(__name__)
MICROTIME = "%Y-%m-%dT%H:%M:%S.%fZ"


class LeaseLost(Exception):
    """The lease could not be renewed in time: another operator may be at work."""


class Lease:
    """A Lease of `seconds` held under an identity."""

    def __init__(
        self, transport: Transport, namespace: str, identity: str, now: Callable[[], datetime], *, seconds: int = 15
    ) -> None:
        self._transport, self._identity, self._now, self._seconds = transport, identity, now, seconds
        self._list = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._list}/homeostat"
        self._seen: tuple[str, str, float] = ("", "", 0.0)  # holder, renewTime, when this was first seen
        self._renewed = 0.0  # when the request began by which it is ours

    async def acquire(self) -> None:
        """Return once the lease is ours."""
        said = ""
        while not await self._try():
            holder = self._seen[0]
            if holder != said:
                log.info("waiting for the lease, which %s holds", holder or "nobody could be asked about")
                said = holder
            await asyncio.sleep(2)

    async def keep(self) -> None:
        """Renew until cancelled; raises LeaseLost when it could not be renewed for two thirds of its time.

        Its time began when it was asked for: when it was granted is not known, and could have been as early.
        """
        time = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(self._seconds / 6, self._end() - time()))
            if await self._in_time():
                continue
            if time() >= self._end() or self._seen[0] not in ("", self._identity):
                raise LeaseLost(f"the lease could not be renewed; it is held by {self._seen[0] or 'nobody'}")

    async def _in_time(self) -> bool:
        """Whether it was renewed, which is tried for as long as it is ours."""
        try:
            async with asyncio.timeout_at(self._end()):
                return await self._try()
        except TimeoutError:
            return False

    def _end(self) -> float:
        return self._renewed + self._seconds * 2 / 3

    async def release(self) -> None:
        """Give the lease back, so that the next operator need not wait."""
        try:
            lease = await self._transport.request("GET", self._path)
            if lease["spec"].get("holderIdentity") == self._identity:
                await self._put({**lease, "spec": {**self._spec(lease["spec"]), "holderIdentity": ""}})
        except (ApiError, ApiUnreachable) as error:
            log.info("the lease was not given back: %s", error)

    async def _try(self) -> bool:
        try:
            return await self._once()
        except ApiUnreachable as error:
            log.info("the lease could not be asked for: %s", error)
        except ApiError as error:
            if error.status not in (404, 409):
                log.warning("the lease could not be written: %s", error)
        return False

    async def _once(self) -> bool:
        try:
            lease = await self._transport.request("GET", self._path)
        except ApiError as error:
            if error.status != 404:
                raise
            begun = asyncio.get_running_loop().time()
            await self._transport.request("POST", self._list, body=self._new())
            return self._ours(begun)
        spec, now = lease.get("spec") or {}, asyncio.get_running_loop().time()
        holder, renewed = spec.get("holderIdentity") or "", spec.get("renewTime") or ""
        if (holder, renewed) != self._seen[:2]:
            self._seen = (holder, renewed, now)
        held = int(spec.get("leaseDurationSeconds") or self._seconds)
        if holder not in ("", self._identity) and now - self._seen[2] < held:
            return False
        await self._put({**lease, "spec": self._spec(spec)})
        return self._ours(now)

    def _ours(self, begun: float) -> bool:
        self._seen, self._renewed = (self._identity, "", begun), begun
        return True

    async def _put(self, lease: dict[str, Any]) -> None:
        await self._transport.request("PUT", self._path, body=lease)

    def _new(self) -> dict[str, Any]:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "homeostat"},
            "spec": self._spec({}),
        }

    def _spec(self, old: dict[str, Any]) -> dict[str, Any]:
        now = self._now().strftime(MICROTIME)
        ours = old.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._seconds,
            "acquireTime": old.get("acquireTime", now) if ours else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if ours else 1),
        }
