# SPDX-License-Identifier: Apache-2.0
"""Threads for calls that block.

Not concurrent.futures: that joins its threads when Python exits, and a host that never answers would keep the process
alive. These are daemon threads, and die with it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

Job = Callable[[], None]


def start(name: str, target: Job) -> None:
    """Run `target` in a daemon thread of its own."""
    threading.Thread(target=target, name=name, daemon=True).start()


class Lane:
    """At most `threads` daemon threads, started when needed, that run jobs in order of arrival. Jobs must not raise."""

    def __init__(self, name: str, threads: int) -> None:
        self._name, self._limit = name, threads
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._threads = self._idle = 0
        self._stopped = False

    def submit(self, job: Job) -> None:
        """Queue a job; one submitted after stop() never runs."""
        with self._changed:
            if self._stopped:
                return
            self._jobs.append(job)
            if len(self._jobs) > self._idle and self._threads < self._limit:
                self._threads += 1
                start(f"{self._name}-{self._threads}", self._work)
            self._changed.notify()

    def withdraw(self, job: Job) -> bool:
        """Take back a job; False when it has been started, or was never here."""
        with self._changed:
            try:
                self._jobs.remove(job)
            except ValueError:
                return False
            return True

    def stop(self) -> None:
        """Drop the jobs that wait; each thread ends once its present job returns."""
        with self._changed:
            self._stopped = True
            self._jobs.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job()

    def _next(self) -> Job | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._stopped or self._jobs)
            self._idle -= 1
            return self._jobs.popleft() if self._jobs else None
