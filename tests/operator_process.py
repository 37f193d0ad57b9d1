# SPDX-License-Identifier: Apache-2.0
"""The real, unchanged operator as a process, started and ended by whoever recorded it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from tests.controlplane.processes import Process

NAMESPACE = "homeostat-system"
NO_PROXIES = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}


class OperatorProcess:
    """`homeostat run` on a kubeconfig, with its log in a directory."""

    def __init__(self, directory: Path, kubeconfig: Path, *options: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.process = Process("operator", directory)
        words = f"-m homeostat run --kubeconfig {kubeconfig} --namespace {NAMESPACE} --listen".split()
        self._command = [sys.executable, *words, "", *options]

    def start(self) -> None:
        """Start it, unless it runs."""
        os.environ.update(NO_PROXIES)
        self.process.start(self._command)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()

    def terminate(self) -> float:
        """Ask it to end; returns how many seconds it took. TimeoutError after 30 s."""
        began = time.monotonic()
        self.process.signal(signal.SIGTERM)
        while (pid := self.process.pid) is not None:
            if time.monotonic() - began > 30:
                raise TimeoutError(f"the operator {pid} did not end within 30 s of SIGTERM")
            time.sleep(0.01)
        return time.monotonic() - began

    @property
    def log(self) -> str:
        """All it has logged."""
        return self.process.log.read_text(errors="replace") if self.process.log.exists() else ""
