# SPDX-License-Identifier: Apache-2.0
"""Effects on VMs: a guest counts as asked to power off when it was asked, and a call holds its key until it ends."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock, Mock, patch

import pytest

from homeostat.api import actions as act
from homeostat.decide.view import Decision, Say, VMView
from homeostat.hosts import libvirt_driver
from homeostat.hosts.driver import AGENT_UNRESPONSIVE, OPERATION_TIMEOUT, HostError, NotBegun
from homeostat.reconcile.settings import Settings
from homeostat.reconcile.vm import VMReconciler
from homeostat.runtime.controller import Retry
from tests.simulation.clock import now, run_virtual
from tests.unit.driven import FakeLibvirt, connected

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need longer than that to begin a thread."""
    monkeypatch.setattr(libvirt_driver, "_REFUSAL_SECONDS", 8.0)


KEY = ("shop", "web")


def test_guests_whose_turn_does_not_come_are_reported_as_not_asked() -> None:
    async def drill() -> tuple[set[str], set[str]]:
        host, told = FakeLibvirt(), set[str]()
        host.hangs.add("shutdownFlags")

        async def ask(uuid: str) -> None:
            try:
                await connection.shutdown(uuid, agent=True)
            except NotBegun:
                told.add(uuid)

        async with connected(host) as connection:
            await asyncio.gather(*(ask(str(number)) for number in range(10)))
            arrived = {uuid for call, uuid in host.asked if call == "shutdownFlags"}
        return arrived, told

    arrived, told = asyncio.run(drill())
    assert arrived
    assert told
    assert told == {str(number) for number in range(10)} - arrived


def test_questions_for_addresses_keep_no_guest_from_being_asked_to_power_off() -> None:
    async def drill() -> list[tuple[str, str]]:
        host = FakeLibvirt()
        host.hangs.add("interfaceAddresses")
        async with connected(host) as connection:
            questions = [asyncio.create_task(connection.addresses(str(number))) for number in range(8)]
            await asyncio.sleep(0.1)
            await connection.shutdown("web", agent=True)
            for question in questions:
                question.cancel()
        return host.asked

    assert ("shutdownFlags", "web") in asyncio.run(drill())


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (None, True),
        (NotBegun(OPERATION_TIMEOUT, "the agents of other guests are being asked"), False),
        (HostError(AGENT_UNRESPONSIVE, "Guest agent is not responding"), True),
        (HostError(OPERATION_TIMEOUT, "cannot acquire state change lock"), True),
    ],
)
def test_a_guest_that_was_not_asked_is_asked_again(error: HostError | None, asked: bool) -> None:
    """One whose agent or QEMU does not react has had its chance: it is not asked for ever."""

    async def drill() -> VMView:
        async def shutdown(uuid: str, *, agent: bool) -> None:
            if error is not None:
                raise error

        fleet: Any = Mock()
        fleet.connected.return_value.shutdown = shutdown
        vms = VMReconciler(Mock(), fleet, Mock(), Settings(), now, lambda key: None, lambda key, vm: None)
        decision = Decision(Say("Stopping"), act.Shutdown("h", "uuid", agent=True))
        await vms._perform(KEY, {}, decision, Mock())
        return vms._with_memory(KEY, VMView("", {}))

    view = run_virtual(drill())
    assert (view.asked_seconds_ago is not None) == asked
    assert (view.failure is not None) == (error is not None and asked), "to wait for one's turn is no failure"


def test_a_report_that_fails_does_not_give_the_key_back_before_the_call_has_ended() -> None:
    async def drill() -> float:
        async def destroy(uuid: str) -> None:
            await asyncio.sleep(100)

        async def report() -> None:
            raise ValueError("nobody foresaw this")

        fleet: Any = Mock()
        fleet.connected.return_value.destroy = destroy
        vms = VMReconciler(Mock(), fleet, Mock(), Settings(), now, lambda key: None, lambda key, vm: None)
        with pytest.raises(ValueError, match="nobody foresaw this"):
            await vms._perform(KEY, {}, Decision(Say("Stopping"), act.Destroy("h", "uuid")), report)
        return asyncio.get_running_loop().time()

    assert run_virtual(drill()) >= 100


@pytest.mark.parametrize(("size", "doubted"), [("64Mi", set()), ("64 megs", {KEY})])
def test_a_vm_is_doubted_until_what_was_read_of_it_is_understood(size: str, doubted: set[tuple[str, str]]) -> None:
    """Else one that an older operator cannot read would be taken for at rest, as it was known before."""

    async def drill() -> set[tuple[str, str]]:
        metadata = {"namespace": KEY[0], "name": KEY[1], "uid": "u", "resourceVersion": "2", "generation": 1}
        client: Any = Mock(get=AsyncMock(return_value={"metadata": metadata, "spec": {"memory": {"size": size}}}))
        fleet: Any = Mock(vms={}, doubted={KEY})
        vms = VMReconciler(client, fleet, Mock(), Settings(), now, lambda key: None, lambda key, vm: None)
        with patch.object(vms, "_migration", AsyncMock(side_effect=Retry("as far as this"))), pytest.raises(Retry):
            await vms.reconcile(KEY)
        return set(fleet.doubted)

    assert run_virtual(drill()) == doubted
