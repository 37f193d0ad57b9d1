# SPDX-License-Identifier: Apache-2.0
"""What is remembered of attempts to connect two hosts, and of guests' addresses, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from homeostat.decide.migration_peers import Peers
from homeostat.hosts.driver import Connection, HostError, HostUnreachable
from homeostat.hosts.migration import PeerUnreachable
from homeostat.reconcile.addresses import AddressBook
from homeostat.reconcile.peers import PeerBook
from homeostat.runtime.controller import Key

pytestmark = pytest.mark.unit

AB = Peers("a", "b", "qemu+tcp://b/system")
GO: Key = ("shop", "go")


def failing(error: HostError) -> Callable[[], Coroutine[Any, Any, None]]:
    async def call() -> None:
        raise error

    return call


async def working() -> None:
    await asyncio.sleep(0)


async def silent() -> None:
    await asyncio.Event().wait()


class Bed:
    """A book of which two migrations, `one` and `other`, are there."""

    def __init__(self, seconds: float = 60.0) -> None:
        self.news: asyncio.Queue[Key] = asyncio.Queue()
        self.present = ["one", "other"]
        self.book = PeerBook(self.news.put_nowait, lambda: self.present, seconds)

    async def ask(self, call: Callable[[], Coroutine[Any, Any, None]]) -> Key:
        """Whom the outcome was told."""
        self.book.ask(GO, AB, call)
        return await asyncio.wait_for(self.news.get(), 10)


async def _told(call: Callable[[], Coroutine[Any, Any, None]], seconds: float = 60.0) -> list[str | None]:
    bed = Bed(seconds)
    assert await bed.ask(call) == GO
    return [bed.book.known(each).get(AB) for each in ("one", "other", "later")]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (working, ["", "", ""]),
        (failing(PeerUnreachable(38, "refused", 7)), ["refused", "refused", None]),
        (failing(HostError(55, "domain is not running", 10)), ["", "", None]),
        (failing(HostUnreachable(38, "the source is lost", 7)), [None, None, None]),
    ],
    ids=["connected", "not connected", "not tried", "lost"],
)
def test_success_counts_for_good_and_a_failure_for_the_migrations_there_were(
    call: Callable[[], Coroutine[Any, Any, None]], told: list[str | None]
) -> None:
    assert asyncio.run(_told(call)) == told


def test_no_answer_is_a_failure_after_a_while() -> None:
    assert asyncio.run(_told(silent, 0.05)) == ["no answer within 0.05 s", "no answer within 0.05 s", None]


def test_one_attempt_serves_all_that_ask_and_a_new_one_replaces_it() -> None:
    async def drill() -> None:
        bed, calls, go = Bed(), 0, asyncio.Event()

        async def call() -> None:
            nonlocal calls
            calls += 1
            await go.wait()

        bed.book.ask(GO, AB, call)
        bed.book.ask(("shop", "other"), AB, call)
        await asyncio.sleep(0.01)
        go.set()
        assert {await bed.news.get(), await bed.news.get()} == {GO, ("shop", "other")}
        assert calls == 1
        bed = Bed()
        await bed.ask(failing(PeerUnreachable(38, "refused", 7)))
        bed.present = ["later"]
        await bed.ask(working)
        assert bed.book.known("later") == {AB: ""}

    asyncio.run(asyncio.wait_for(drill(), 10))


def test_a_guest_is_asked_again_at_once_where_it_was_moved_to() -> None:
    class Agent:
        asked = 0

        async def addresses(self, uuid: str) -> list[tuple[str, str, str]]:
            self.asked += 1
            return [("eth0", "52:54:00:00:00:01", uuid)]

    async def drill() -> None:
        news: asyncio.Queue[Key] = asyncio.Queue()
        book = AddressBook(600.0, news.put_nowait)
        here, there = Agent(), Agent()
        for agent in (here, here, there, there):
            book.ask(GO, f"198.51.100.{1 if agent is here else 2}", cast(Connection, agent))
            await asyncio.sleep(0.01)
        assert (here.asked, there.asked, news.qsize()) == (1, 1, 2)
        assert book.of(GO) == (("eth0", "52:54:00:00:00:01", "198.51.100.2"),)

    asyncio.run(asyncio.wait_for(drill(), 10))
