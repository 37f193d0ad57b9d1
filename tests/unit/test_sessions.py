# SPDX-License-Identifier: Apache-2.0
"""The thread of a connection outlives whatever is asked of it."""

from __future__ import annotations

import asyncio
import threading
from unittest.mock import Mock

import pytest

from homeostat.hosts import lanes, links, sessions
from homeostat.hosts.driver import HostError, HostUnreachable
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


def test_who_waits_is_told_of_the_end_though_the_process_has_no_threads_and_no_files_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_file() -> None:
        raise OSError(24, "Too many open files")

    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        virt, ended, held = Mock(), list[str](), threading.Event()
        session = Session("host", Opened(virt, no_file), ended.append)
        call = asyncio.create_task(session.run(lambda _: held.wait(20), 5, effect=True))
        await asyncio.sleep(0.1)
        with monkeypatch.context() as short:
            short.setattr(lanes, "start", no_thread)
            session.end("the host was lost")
            with pytest.raises(HostUnreachable, match="the host was lost"):
                await call
        assert ended == ["the host was lost"]
        closed = threading.Event()
        virt.close.side_effect = closed.set
        held.set()
        assert await asyncio.to_thread(closed.wait, 5)

    monkeypatch.setattr(sessions, "CLOSE_AGAIN_SECONDS", 0.1)
    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_a_connection_that_no_thread_can_be_had_for_is_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        virt, cut = Mock(), Mock()

        async def opened(*_: object) -> Opened:
            return Opened(virt, cut)

        monkeypatch.setattr(links, "open_in_thread", opened)
        monkeypatch.setattr(lanes, "start", no_thread)
        endpoint = links.Endpoint("qemu+tcp://h/system", None, links.DriverSettings())
        with pytest.raises(HostUnreachable, match="can't start new thread"):
            await endpoint.connect("observe", lambda why: None)
        assert cut.called
        assert virt.close.called

    asyncio.run(scenario())
