# SPDX-License-Identifier: Apache-2.0
"""Pools of two hosts that share their storage, looked at while another migration leaves its mark there."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import patch

from homeostat.decide.migration_planning import Look
from homeostat.reconcile import observe
from tests.unit import test_decide_vm as vms
from tests.unit.planning import host, machine, running


def test_a_mark_that_is_seen_on_the_source_is_looked_for_on_the_target_after_that() -> None:
    """It is made while the pools are read: who reads first sees less, and that is not to be the target."""
    storage: set[str] = set()
    vm = machine()
    view = vms.view(host("a", running(vm)), host("b"))

    async def everything(_: Any, name: str, __: str) -> frozenset[str]:
        await asyncio.sleep(0.02 if name == "a" else 0.0)  # the target's pool is read faster
        if name == "a":
            storage.add("mark")
        return frozenset(storage)

    async def look(*_: Any) -> Any:
        return view

    wish = Look(hosts=("a", "b"), pools={"a": ("default",), "b": ("default",)})
    fleet: Any = None
    with patch.object(observe, "everything", everything), patch.object(observe, "look", look):
        seen = asyncio.run(observe.look_at_pools(fleet, vm, view, wish))
    assert [seen.hosts[name].volumes["default"] for name in ("a", "b")] == [frozenset({"mark"})] * 2
