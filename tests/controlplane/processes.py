# SPDX-License-Identifier: Apache-2.0
"""Background processes that are ended by whoever recorded them, and by nobody else."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

END_SECONDS = 60.0


def identity(pid: int) -> str | None:
    """Return what tells this life of a pid from any later one, or None when no such process lives."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    # A first thread may be a zombie while others still end, and hold files and ports: that is not dead yet.
    if fields[0] in "ZX" and threads <= 1:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{fields[19]}"


@dataclass(frozen=True)
class Process:
    """A process under a name, recorded in a directory by pid and start time."""

    name: str
    directory: Path

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.directory / f"{self.name}.log"

    @property
    def record(self) -> Path:
        """The file that holds pid and identity."""
        return self.directory / f"{self.name}.pid"

    @property
    def pid(self) -> int | None:
        """Its pid while it lives, else None; never that of a process that merely got the same pid later."""
        try:
            pid, born = self.record.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if identity(int(pid)) == born else None

    def start(self, command: Sequence[str]) -> None:
        """Start it in a session of its own, unless it lives."""
        if self.pid is not None:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        files = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(self.log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        pid = os.posix_spawn(command[0], list(command), os.environ, file_actions=files, setsid=True)
        self.record.write_text(f"{pid} {identity(pid)}")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if (pid := self.pid) is None:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        # Looked at again: from here on the descriptor, unlike the pid, cannot come to mean another process.
        if self.pid == pid:
            signal.pidfd_send_signal(pidfd, number)
        os.close(pidfd)

    def kill(self) -> None:
        """End it at once and forget it; fails when it outlives the kill by ten seconds."""
        pid, deadline = self.pid, time.monotonic() + END_SECONDS
        self.signal(signal.SIGKILL)
        while self.pid is not None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} (pid {pid}) outlives SIGKILL")
            time.sleep(0.01)
        if pid is not None:
            _reap(pid)
        self.record.unlink(missing_ok=True)

    def last_words(self, lines: int = 5) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # started by another process: not ours to wait for
        pass
