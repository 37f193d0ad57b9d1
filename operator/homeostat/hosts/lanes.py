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
    """A daemon thread that runs jobs in order of arrival. Jobs must not raise."""

    def __init__(self, name: str) -> None:
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopped = self._over = False
        start(name, self._work)

    def submit(self, job: Job) -> None:
        """Queue a job; one submitted after stop() never runs."""
        with self._changed:
            if not self._stopped:
                self._jobs.append(job)
                self._changed.notify_all()

    def withdraw(self, job: Job) -> bool:
        """Take back a job; False when it has been started, or was never here."""
        with self._changed:
            try:
                self._jobs.remove(job)
            except ValueError:
                return False
            return True

    def stop(self) -> None:
        """Drop the jobs that wait; the thread ends once its present job returns."""
        with self._changed:
            self._stopped = True
            self._jobs.clear()
            self._changed.notify_all()

    def drain(self) -> None:
        """After stop(): block until no job runs any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._over)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._jobs)
            return self._jobs.popleft() if self._jobs else None
