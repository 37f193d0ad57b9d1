# SPDX-License-Identifier: Apache-2.0
"""Mutual exclusion between processes, by a lock on the directory itself: nothing is left lying about."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.controlplane.output import progress


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with progress(f"waiting for another process to be done with {directory}"):
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _open_locked(directory: Path) -> int:
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:  # it, or what it is in, was removed meanwhile
            continue
        except FileExistsError:  # so it was between being found and being looked at
            if directory.is_file():
                raise
            continue
        _lock(descriptor, directory)
        # Its last owner may have removed the directory while we waited: then this lock is on nothing that has a name.
        try:
            if os.path.samestat(os.stat(directory), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory, made if missing, for one process at a time; the lock ends with the process at the latest."""
    descriptor = _open_locked(directory)
    try:
        yield
    finally:
        os.close(descriptor)
