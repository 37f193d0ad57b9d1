# SPDX-License-Identifier: Apache-2.0
"""What is known of objects is never undone by what is older, and never lost by what a list did not show."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from unittest.mock import Mock

import pytest

from homeostat.api.reading import read
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.reconcile.fleet import Fleet
from homeostat.reconcile.operator import TURN, Operator
from homeostat.runtime.controller import Key
from tests.simulation.clock import now, run_virtual

pytestmark = pytest.mark.unit

WEB: Key = ("shop", "web")
HOST = {"hypervisor": "h1", "uid": "h1", "hostUUID": "00000000-0000-4000-8000-000000000001"}
SPEC = {"memory": {"size": "1Gi"}, "disks": []}


def item(version: int, name: str = "web", *, uid: str = "", **status: Any) -> dict[str, Any]:
    """A VM as the API server has it."""
    meta = {"namespace": "shop", "name": name, "uid": uid or name, "resourceVersion": str(version)}
    return {"metadata": meta, "spec": SPEC, "status": status}


def vm(version: int, name: str = "web", *, uid: str = "", **status: Any) -> VirtualMachine:
    return read(VirtualMachine, item(version, name, uid=uid, **status))


class Api:
    """An API server that has these objects, and does things while it is asked."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    async def request(self, method: str, path: str, **_: Any) -> dict[str, Any]:
        """A list, or a VM."""
        self.meanwhile()
        return {"items": self.items} if path.endswith("s") else self.items[0]


def drill(test: Callable[[Operator, Api], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test on an operator that knows the VM `web` in version 5, on host h1."""

    async def run() -> None:
        api = Api()
        operator = Operator(transport=api, driver=Mock(), source=Mock(), now=now)
        operator.fleet.note_vm(WEB, vm(5, candidates=[HOST]))
        await test(operator, api)

    def inner() -> None:
        run_virtual(run())

    inner.__name__ = test.__name__
    return inner


def hosts(operator: Operator, key: Key = WEB) -> list[str]:
    """Where a VM is known to be able to run."""
    return [each.hypervisor for each in operator.fleet.vms[key].status.candidates]


@drill
async def test_an_event_that_is_late_does_not_undo_what_was_written(operator: Operator, api: Api) -> None:
    operator._seen("virtualmachines", "MODIFIED", item(3))
    assert hosts(operator) == ["h1"]
    assert await operator.vms.queue.get() == WEB, "it is looked at: the store may have been rolled back"
    operator._seen("virtualmachines", "MODIFIED", item(6))
    assert hosts(operator) == []


@drill
async def test_the_end_of_an_earlier_object_of_that_name_is_not_that_of_this_one(operator: Operator, api: Api) -> None:
    operator._seen("virtualmachines", "DELETED", item(4, uid="earlier"))
    assert WEB in operator.fleet.vms
    operator._seen("virtualmachines", "DELETED", item(6))
    assert WEB not in operator.fleet.vms


@drill
async def test_a_list_that_was_begun_before_a_write_does_not_undo_it(operator: Operator, api: Api) -> None:
    operator.fleet.note_vm(WEB, vm(2))
    api.items = [item(2)]
    api.meanwhile = lambda: operator.fleet.note_vm(WEB, vm(5, candidates=[HOST]))
    await operator._vm_keys()
    assert hosts(operator) == ["h1"]


@drill
async def test_what_is_known_and_not_listed_is_looked_at_and_known_until_then(operator: Operator, api: Api) -> None:
    """It may have been made while the list was under way."""
    api.items = [item(4, "other")]
    assert set(await operator._vm_keys()) == {WEB, ("shop", "other")}
    assert hosts(operator) == ["h1"]


@drill
async def test_a_long_list_is_read_by_turns_and_what_is_known_in_that_version_not_again(
    operator: Operator, api: Api
) -> None:
    names = [f"vm-{number}" for number in range(10 * TURN)]
    api.items = [item(7, name) for name in names]
    listing, turns = asyncio.ensure_future(operator._vm_keys()), 0
    while not listing.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 10
    before = dict(operator.fleet.vms)
    api.items[0] = item(8, names[0])
    await operator._vm_keys()
    after = operator.fleet.vms
    assert [name for name in names if after["shop", name] is not before["shop", name]] == [names[0]]


@drill
async def test_a_read_of_a_store_that_was_rolled_back_counts(operator: Operator, api: Api) -> None:
    operator.fleet.note_vm(WEB, vm(3))
    assert hosts(operator) == []
    operator._seen("virtualmachines", "MODIFIED", item(4, candidates=[HOST]))
    assert hosts(operator) == ["h1"]


@drill
async def test_nothing_is_remembered_of_what_is_gone(operator: Operator, api: Api) -> None:
    operator._seen("virtualmachines", "ADDED", item(6))
    assert operator._facts
    operator.fleet.note_vm(WEB, None)
    await operator._vm_keys()
    assert not operator._facts


@drill
async def test_a_version_that_is_no_number_is_as_good_as_any(operator: Operator, api: Api) -> None:
    odd = item(4)
    odd["metadata"]["resourceVersion"] = "a"
    operator._seen("virtualmachines", "MODIFIED", odd)
    assert operator.fleet.vms[WEB].metadata.resource_version == "a"


class Walked(dict[Key, VirtualMachine]):
    """VMs, and how often all of them were gone through."""

    walks = 0

    def items(self) -> Any:
        """Count it."""
        self.walks += 1
        return super().items()


def test_many_vms_that_come_to_hosts_have_not_all_vms_gone_through_for_each() -> None:
    told: list[Key] = []
    fleet = Fleet(now, lambda names: told.extend(fleet.waiting()))
    fleet.vms = vms = Walked()
    fleet.note_vm(("shop", "waiting"), vm(1, "waiting", reason="NoRoom"))
    for number in range(100):
        fleet.note_vm(("shop", str(number)), vm(1, str(number), candidates=[HOST]))
    assert set(told) == {("shop", "waiting")}, "it is told of every place that is taken or left"
    assert vms.walks == 0


def test_a_vm_waits_for_as_long_as_its_reason_says_so() -> None:
    fleet = Fleet(now, lambda names: None)
    fleet.note_vm(WEB, vm(1, reason="NoRoom"))
    assert fleet.waiting() == [WEB]
    fleet.note_vm(WEB, vm(2, reason="Running"))
    assert fleet.waiting() == []
    fleet.note_vm(WEB, vm(3, reason="NoHost"))
    fleet.note_vm(WEB, None)
    assert fleet.waiting() == []
