# SPDX-License-Identifier: Apache-2.0
"""Passes over one Hypervisor, at an API server of a few lines and a host of a few lines."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from homeostat.api.meta import FINALIZER
from homeostat.hosts.driver import SYSTEM_ERROR, HostUnreachable
from homeostat.kube.client import Client
from homeostat.kube.events import Recorder
from homeostat.kube.transport import JSON, JSON_PATCH, ApiError
from homeostat.reconcile.fleet import Fleet
from homeostat.reconcile.hypervisor import HypervisorReconciler
from homeostat.reconcile.settings import Settings
from homeostat.runtime.controller import Retry
from tests.simulation.clock import now, run_virtual
from tests.unit.informed import Host
from tests.unit.test_fleet import WEB, item, vm

pytestmark = pytest.mark.unit

KEY = ("", "h1")
FORBIDDEN = ApiError(403, "Forbidden", 'secrets "h1" is forbidden: the operator cannot get it')


class Api:
    """One Hypervisor and its Secret."""

    def __init__(self) -> None:
        meta = {"name": "h1", "uid": "h1", "resourceVersion": "1", "generation": 1, "finalizers": [FINALIZER]}
        spec = {
            "uri": "qemu+tls://h1/system",
            "credentials": {"secretRef": {"name": "h1"}},
            "acceleration": "Emulation",
        }
        self.item: dict[str, Any] | None = {"metadata": meta, "spec": spec}
        self.refusal: ApiError | None = None
        self.vms: list[dict[str, Any]] = []
        self.listing: Callable[[], None] = lambda: None

    async def request(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None, content_type: str = JSON
    ) -> dict[str, Any]:
        """See Transport."""
        if "/secrets/" in path:
            if self.refusal is not None:
                raise self.refusal
            return {"data": {key: base64.b64encode(b"x").decode() for key in ("ca.crt", "tls.crt", "tls.key")}}
        if path.endswith("/virtualmachines"):
            self.listing()
            return {"items": self.vms}
        if method == "POST":
            return {}
        if self.item is None:
            raise ApiError(404, "NotFound", "")
        if method == "PATCH" and content_type == JSON_PATCH:
            self.item = {**self.item, "metadata": {**self.item["metadata"], "finalizers": body[-1]["value"]}}
        elif method == "PATCH":
            self.item = {**self.item, "status": body["status"]}
        return self.item

    def condition(self, kind: str) -> tuple[str, str]:
        """(status, message) of one that was written."""
        assert self.item is not None
        rows = self.item.get("status", {}).get("conditions", [])
        return next(((row["status"], row["message"]) for row in rows if row["type"] == kind), ("", ""))


class Bed:
    """A reconciler, what it asks, and the host."""

    def __init__(self) -> None:
        self.api, self.host = Api(), Host(uuid="00000000-0000-4000-8000-000000000001")
        self.fleet = Fleet(now, lambda names: None, listed=True)
        client, recorder = Client(self.api, "homeostat-system"), Recorder(self.api, now)
        self.hypervisors = HypervisorReconciler(
            client, self.fleet, recorder, Settings(), now, self.host, lambda name, uuids: None
        )

    async def passes(self, number: int = 3) -> None:
        """So many, with time between them for the host to answer."""
        for _ in range(number):
            await self.hypervisors.reconcile(KEY)
            await asyncio.sleep(15)


async def deleted() -> Bed:
    """One whose Hypervisor is held by its finalizer and being deleted."""
    bed = Bed()
    await bed.passes()
    assert bed.api.item is not None
    bed.api.item["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    return bed


def test_a_secret_that_may_not_be_read_is_told() -> None:
    async def drill() -> tuple[str, str]:
        bed = Bed()
        bed.api.refusal = FORBIDDEN
        await bed.passes()
        assert not bed.host.attempts
        return bed.api.condition("Ready")

    status, message = run_virtual(drill())
    assert status == "False"
    assert "Secret homeostat-system/h1 could not be read" in message
    assert FORBIDDEN.message in message


def test_a_host_that_dies_is_not_ready_though_its_secret_may_not_be_read_any_more() -> None:
    async def drill() -> None:
        bed = Bed()
        await bed.passes()
        assert bed.api.condition("Ready")[0] == "True"
        bed.api.refusal = FORBIDDEN
        await bed.passes()
        assert bed.api.condition("Ready")[0] == "True", "it is connected: no credentials are needed"
        bed.host.opening = HostUnreachable(SYSTEM_ERROR, "No route to host")
        bed.host.hang_up()
        await bed.passes()
        assert bed.api.condition("Ready")[0] == "False"
        bed.host.opening = None
        await bed.passes()
        assert bed.api.condition("Ready")[0] == "True", "what it was connected with is still known"
        await bed.fleet.informers["h1"].close()

    run_virtual(drill())


@pytest.mark.parametrize("status", [429, 500, 503])
def test_trouble_of_the_api_server_says_nothing_of_a_secret(status: int) -> None:
    async def drill() -> tuple[str, str]:
        bed = Bed()
        bed.api.refusal = ApiError(status, "", "try again")
        with pytest.raises(Retry, match="could not be read: try again"):
            await bed.passes()
        return bed.api.condition("Ready")

    assert run_virtual(drill()) == ("", "")


def test_the_metric_of_a_hypervisor_that_is_gone_goes_with_it() -> None:
    def reachable() -> float | None:
        return REGISTRY.get_sample_value("homeostat_hypervisor_reachable", {"hypervisor": "h1"})

    async def drill() -> None:
        bed = Bed()
        await bed.passes()
        assert reachable() == 1
        bed.api.item = None
        await bed.passes()
        assert reachable() is None

    run_virtual(drill())


def test_a_hypervisor_is_not_let_go_while_a_vm_is_being_given_its_host() -> None:
    async def drill() -> None:
        bed = await deleted()
        assert bed.api.item is not None
        bed.api.vms = [item(2)]
        bed.fleet.note_vm(WEB, vm(2))
        bed.fleet.assume(WEB, vm(2), frozenset({bed.host.uuid}))  # decided on, and on its way to the API server
        await bed.passes()
        assert bed.api.item["metadata"]["finalizers"] == [FINALIZER]
        bed.fleet.drop_assumption(WEB)
        await bed.passes()
        assert bed.api.item["metadata"]["finalizers"] == []
        await bed.fleet.informers["h1"].close()

    run_virtual(drill())


def test_a_hypervisor_is_not_let_go_by_a_list_that_does_not_show_the_vm_that_came_meanwhile() -> None:
    async def drill() -> None:
        bed = await deleted()
        assert bed.api.item is not None
        here = {"hypervisor": "h1", "uid": "h1", "hostUUID": bed.host.uuid}
        bed.api.vms = [item(2)]
        bed.api.listing = lambda: bed.fleet.note_vm(WEB, vm(5, candidates=[here]))
        with pytest.raises(Retry, match="VM shop/web is listed as it was before"):
            await bed.passes()
        assert bed.api.item["metadata"]["finalizers"] == [FINALIZER]
        await bed.fleet.informers["h1"].close()

    run_virtual(drill())
