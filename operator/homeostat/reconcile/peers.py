# SPDX-License-Identifier: Apache-2.0
"""Which hosts' libvirt daemons can connect to which: tried in the background, before the first migration of a pair."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from homeostat.decide.migration_peers import Peers
from homeostat.hosts.driver import HostError, HostUnreachable
from homeostat.hosts.migration import PeerUnreachable
from homeostat.runtime.controller import Key

log = logging.getLogger(__name__)
DEADLINE_SECONDS = 150.0
"""Until an attempt is given up: TCP does so after 127 s. Before libvirt has answered, the domain cannot be migrated."""


class PeerBook:
    """What came of the attempts. One that succeeded counts for good, one that failed for the migrations there were.

    A migration made later has it tried again. `on_news` is called with the key of the migration that asked.
    """

    def __init__(
        self, on_news: Callable[[Key], None], present: Callable[[], Iterable[str]], seconds: float = DEADLINE_SECONDS
    ) -> None:
        self._seconds, self._on_news, self._present = seconds, on_news, present
        self._reached: set[Peers] = set()
        self._failed: dict[Peers, tuple[str, frozenset[str]]] = {}  # libvirt's words, and the migrations they are for
        self._asking: dict[Peers, tuple[asyncio.Task[None], set[Key]]] = {}

    def known(self, migration: str) -> dict[Peers, str]:
        """What counts for a migration (its UID): "" for those that reached each other, else libvirt's words."""
        failed = {peers: words for peers, (words, those) in self._failed.items() if migration in those}
        return dict.fromkeys(self._reached, "") | failed

    def ask(self, key: Key, peers: Peers, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have `call` connect them, unless that is being tried already."""
        if peers not in self._asking:
            task = asyncio.create_task(self._ask(peers, call), name=f"reach-{peers.uri}")
            self._asking[peers] = task, set()
        self._asking[peers][1].add(key)

    async def _ask(self, peers: Peers, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            words = await self._words(call)
        except HostUnreachable as error:  # the source was lost: it is tried again when that is back
            log.info("whether %s can be connected to is not known: %s", peers.uri, error.message)
        except HostError as error:  # whatever it is, the migration itself is told so in libvirt's words
            log.info("a connection to %s was not tried: %s", peers.uri, error.message)
            self._failed[peers] = "", frozenset(self._present())
        else:
            self._note(peers, words)
        finally:
            for key in self._asking.pop(peers)[1]:
                self._on_news(key)

    def _note(self, peers: Peers, words: str) -> None:
        if words:
            self._failed[peers] = words, frozenset(self._present())
        else:
            self._reached.add(peers)

    async def _words(self, call: Callable[[], Coroutine[Any, Any, None]]) -> str:
        """Why they cannot connect, "" when they can; any other HostError is raised."""
        try:
            async with asyncio.timeout(self._seconds):
                await call()
        except TimeoutError:
            return f"no answer within {self._seconds:g} s"
        except PeerUnreachable as error:
            return error.message
        return ""
