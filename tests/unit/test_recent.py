# SPDX-License-Identifier: Apache-2.0
"""What was read a moment ago is not read again, unless something newer is known, and is not kept for longer."""

from __future__ import annotations

import asyncio

import pytest

from homeostat.reconcile.recent import RECENT_SECONDS, Recent
from tests.simulation.clock import run_virtual

pytestmark = pytest.mark.unit


def test_it_is_had_while_it_is_recent_and_the_newest_that_is_known_and_then_forgotten() -> None:
    async def drill() -> None:
        recent, web, other = Recent(), ("shop", "web"), ("shop", "other")
        seen = {"metadata": {"resourceVersion": "5"}}
        recent.put(web, seen)
        assert recent.get(web, "5") is seen
        assert recent.get(web, "6") is None
        assert recent.get(other, "5") is None
        await asyncio.sleep(RECENT_SECONDS)
        assert recent.get(web, "5") is None
        recent.put(other, seen)
        assert list(recent._seen) == [other]
        recent.forget(other)
        assert recent.get(other, "5") is None

    run_virtual(drill())
