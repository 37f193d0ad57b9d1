# SPDX-License-Identifier: Apache-2.0
"""The queue and its workers: nothing is lost, no key is worked on twice at once, resyncs wait behind events."""

from __future__ import annotations

import asyncio
import logging
import random
import subprocess
import sys
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.runtime.controller import Controller, Key, Result, Retry
from homeostat.runtime.logs import JsonFormatter
from homeostat.runtime.queue import WorkQueue
from tests.simulation.clock import run_virtual

KEYS: list[Key] = [("shop", str(number)) for number in range(4)]
STEPS = st.lists(
    st.tuples(st.sampled_from(["edit", "edit unseen", "crash", "fail"]), st.sampled_from(KEYS), st.floats(0, 5)),
    max_size=60,
)


class World:
    """Something to reconcile: `there` follows `wanted`."""

    def __init__(self) -> None:
        self.wanted = dict.fromkeys(KEYS, 0)
        self.there = dict.fromkeys(KEYS, -1)
        self.failures = dict.fromkeys(KEYS, 0)
        self.active: set[Key] = set()
        self.overlaps: list[Key] = []

    async def reconcile(self, key: Key) -> Result:
        if key in self.active:
            self.overlaps.append(key)
        self.active.add(key)
        try:
            wanted = self.wanted[key]
            await asyncio.sleep(random.random())
            if self.failures[key]:
                self.failures[key] -= 1
                raise Retry("not yet")
            self.there[key] = wanted
            return Result()
        finally:
            self.active.discard(key)

    async def keys(self) -> Iterable[Key]:
        return KEYS


@given(STEPS, st.integers(1, 4), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_whatever_happens_all_is_reconciled_in_the_end_and_no_key_twice_at_once(
    steps: list[tuple[str, Key, float]], workers: int, seed: int
) -> None:
    async def main() -> None:
        world = World()
        random.seed(seed)

        def start() -> tuple[Controller, asyncio.Task[None]]:
            controller = Controller("t", world.reconcile, keys=world.keys, workers=workers, resync_seconds=60)
            return controller, asyncio.create_task(controller.run())

        controller, task = start()
        for what, key, pause in steps:
            if what == "edit":
                world.wanted[key] += 1
                controller.queue.add(key)
            elif what == "edit unseen":
                world.wanted[key] += 1
            elif what == "fail":
                world.failures[key] += 2
            else:
                task.cancel()
                await asyncio.wait({task})
                controller, task = start()
            await asyncio.sleep(pause)
        await asyncio.sleep(3600)
        task.cancel()
        await asyncio.wait({task})
        assert world.there == world.wanted
        assert not world.overlaps

    run_virtual(main())


def test_a_key_that_something_happened_to_comes_before_those_of_a_resync() -> None:
    async def main() -> list[str]:
        queue: WorkQueue[str] = WorkQueue()
        for key in ("a", "b", "c"):
            queue.add(key, resync=True)
        queue.add("c")
        queue.add("d")
        return [await queue.get() for _ in range(len(queue))]

    assert run_virtual(main()) == ["c", "d", "a", "b"]


def test_workers_that_have_to_wait_for_nothing_leave_others_their_turns() -> None:
    """Thousands of VMs are at rest, and the lease has to be renewed all the same."""
    keys = [("shop", str(number)) for number in range(1000)]
    turns: list[int] = []

    async def drill() -> None:
        done = 0

        async def reconcile(key: Key) -> Result:
            nonlocal done
            done += 1
            return Result()

        async def listed() -> Iterable[Key]:
            return keys

        working = asyncio.create_task(Controller("all", reconcile, keys=listed, workers=4).run())
        while done < len(keys):
            await asyncio.sleep(0)
            turns.append(done)
        working.cancel()

    asyncio.run(drill())
    assert max(after - before for before, after in zip([0, *turns], turns, strict=False)) <= 4


def test_a_key_added_while_it_is_worked_on_is_worked_on_again() -> None:
    async def main() -> int:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        key = await queue.get()
        queue.add("a")
        assert len(queue) == 0
        queue.done(key)
        return len(queue)

    assert run_virtual(main()) == 1


def test_of_several_delays_the_earliest_counts() -> None:
    async def main() -> float:
        queue: WorkQueue[str] = WorkQueue()
        queue.add_after("a", 50)
        queue.add_after("a", 5)
        queue.add_after("a", 500)
        await queue.get()
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(5, abs=0.01)


def test_retries_become_rarer_up_to_a_cap_and_start_anew_after_success() -> None:
    async def main() -> list[float]:
        queue: WorkQueue[str] = WorkQueue(base_seconds=1, cap_seconds=60)
        delays = [queue.retry("a") for _ in range(10)]
        queue.forget("a")
        return [*delays, queue.retry("a")]

    *delays, anew = run_virtual(main())
    assert all(0.8 * 2**n <= delay <= 1.2 * 2**n for n, delay in enumerate(delays[:6]))
    assert all(48 <= delay <= 72 for delay in delays[6:])
    assert anew <= 1.2


def test_an_error_nobody_foresaw_is_one_line_and_does_not_stop_the_workers(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> int:
        calls = 0

        async def reconcile(key: Key) -> Result:
            nonlocal calls
            calls += 1
            raise ZeroDivisionError("by zero")

        async def keys() -> Iterable[Key]:
            return KEYS[:1]

        task = asyncio.create_task(Controller("t", reconcile, keys=keys, workers=1).run())
        await asyncio.sleep(20)
        task.cancel()
        await asyncio.wait({task})
        return calls

    with caplog.at_level(logging.INFO):
        assert run_virtual(main()) > 3
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines
    assert not [record for record in lines if record.exc_info]
    assert "ZeroDivisionError: by zero" in lines[0].getMessage()


def test_a_json_line_says_key_and_reconcile() -> None:
    seen: list[str] = []

    async def main() -> None:
        async def reconcile(key: Key) -> Result:
            record = logging.LogRecord("homeostat", logging.INFO, "", 0, "did %s", ("it",), None)
            seen.append(JsonFormatter().format(record))
            return Result()

        async def keys() -> Iterable[Key]:
            return KEYS[:1]

        task = asyncio.create_task(Controller("t", reconcile, keys=keys, workers=1).run())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait({task})

    run_virtual(main())
    assert '"message": "did it"' in seen[0]
    assert '"key": "shop/0"' in seen[0]
    assert '"reconcile": "' in seen[0]


def test_the_operator_may_open_as_many_files_as_the_system_lets() -> None:
    script = (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (256, r.getrlimit(r.RLIMIT_NOFILE)[1]));"
        "from homeostat.cli.run import raise_file_limit; raise_file_limit();"
        "soft, hard = r.getrlimit(r.RLIMIT_NOFILE); assert soft == hard > 256, (soft, hard)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
