# SPDX-License-Identifier: Apache-2.0
"""What a person reads while waiting; standard output stays free for results."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

PERIOD = 5.0


def say(text: str) -> None:
    """Print one line about the control plane on standard error."""
    print(f"control plane: {text}", file=sys.stderr, flush=True)


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Say what has begun, then every few seconds how long it has been going on, then how long it took."""
    began, done = time.monotonic(), Event()

    def repeat() -> None:
        while not done.wait(PERIOD):
            say(f"{what}: {time.monotonic() - began:.0f} s")

    say(what)
    reporter = Thread(target=repeat, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        done.set()
        reporter.join()
    say(f"{what}: done in {time.monotonic() - began:.0f} s")
