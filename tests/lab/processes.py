# SPDX-License-Identifier: Apache-2.0
"""Processes by pid and start time, so that a recycled pid is never taken for the process that had it before."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class LabError(Exception):
    """The lab cannot do what it was asked; the message is for a person."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process: its pid, and its start time in clock ticks since boot."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this pid now. ProcessLookupError when there is none, or only a zombie."""
        process = cls(pid, _start(pid))
        if not process.alive:
            raise ProcessLookupError(pid)
        return process

    @property
    def alive(self) -> bool:
        """Whether it exists and not all of its threads have exited."""
        return not self.wait(0)

    def signal(self, number: int) -> bool:
        """Send a signal; False when the process is gone."""
        pidfd = self._pidfd()
        if pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True

    def wait(self, timeout: float) -> bool:
        """Wait for the end, at most `timeout` seconds; False when it still exists then."""
        pidfd = self._pidfd()
        if pidfd is None:
            return True
        try:
            return bool(select.select([pidfd], [], [], timeout)[0])
        finally:
            os.close(pidfd)

    def _pidfd(self) -> int | None:
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        try:
            # Compared after opening: from here on the descriptor, unlike the pid, cannot come to mean another process.
            if _start(self.pid) == self.start:
                return pidfd
        except ProcessLookupError:
            pass
        os.close(pidfd)
        return None


def _start(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None


def in_namespace(network: Path) -> list[Process]:
    """The live processes in the network namespace that `network` is a file of; none when the file is missing."""
    try:
        inode = network.stat().st_ino
    except FileNotFoundError:
        return []
    return [found for folder in Path("/proc").glob("[0-9]*") if (found := _member(int(folder.name), inode))]


def _member(pid: int, inode: int) -> Process | None:
    try:
        return Process.of(pid) if os.stat(f"/proc/{pid}/ns/net").st_ino == inode else None
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def inner_pid(process: Process) -> int | None:
    """The pid that a process has in its own PID namespace; None when it is gone."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(status.partition("NSpid:")[2].split("\n")[0].split()[-1])


def end(processes: Iterable[Process], timeout: float = 10) -> None:
    """Kill processes and wait until they are gone. LabError when one is not after `timeout` seconds."""
    killed = [process for process in processes if process.signal(signal.SIGKILL)]
    for process in killed:
        if not process.wait(timeout):
            raise LabError(f"process {process.pid} did not end within {timeout:.0f} s of SIGKILL")


def run(*command: str | Path, check: bool = True, cwd: Path | None = None) -> str:
    """Run a command and return its output. LabError with the command's own words when it fails and `check` is set."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise LabError(f"{words[0]} is not installed") from error
    if check and done.returncode:
        raise LabError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip() or done.returncode}")
    return done.stdout
