# SPDX-License-Identifier: Apache-2.0
"""The thread of a connection outlives whatever is asked of it."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest

from homeostat.hosts.driver import HostError
from homeostat.hosts.sessions import Opened, Session

pytestmark = pytest.mark.unit


def test_a_call_that_fails_in_a_way_nobody_foresaw_is_told_and_the_next_one_is_answered() -> None:
    async def scenario() -> int:
        session = Session("host", Opened(Mock(), lambda: None), lambda why: None)
        with pytest.raises(HostError, match="TypeError: int"):
            await session.run(lambda virt: int(None), 5)  # type: ignore[call-overload]
        answer = await session.run(lambda virt: 7, 5)
        session.end("the test is over")
        return answer

    assert asyncio.run(asyncio.wait_for(scenario(), 10)) == 7
