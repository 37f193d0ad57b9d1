# SPDX-License-Identifier: Apache-2.0
"""What the API server tells a watcher, each change with the time at which it came."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.controlplane import ControlPlane

Object = dict[str, Any]
PATH = "/apis/homeostat.dev/v1alpha1"


class Change(NamedTuple):
    """One event of a watch: seconds since the epoch, ADDED, MODIFIED or DELETED, and the object."""

    at: float
    kind: str
    item: Object

    @property
    def name(self) -> str:
        """The object's name."""
        return str(self.item["metadata"]["name"])

    @property
    def state(self) -> str:
        """The word in status.state; "" before the first status."""
        return str(self.item.get("status", {}).get("state", ""))

    @property
    def version(self) -> int:
        """The object's resourceVersion: larger in a later change."""
        return int(self.item["metadata"]["resourceVersion"])


class Watch:
    """A watch of one kind in all namespaces, from now on and for as long as the context lasts."""

    def __init__(self, plane: ControlPlane, plural: str) -> None:
        self.changes: list[Change] = []
        self._came = threading.Condition()
        self._command = [
            str(plane.binaries["kubectl"]), f"--kubeconfig={plane.kubeconfig}", "get", "--raw",
        ]  # fmt: skip
        listed = json.loads(plane.kubectl("get", "--raw", f"{PATH}/{plural}"))
        self.before: dict[str, Object] = {item["metadata"]["name"]: item for item in listed["items"]}
        self._command.append(f"{PATH}/{plural}?watch=1&resourceVersion={listed['metadata']['resourceVersion']}")

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()

    def until(self, done: Callable[[list[Change]], bool], what: str, seconds: float) -> None:
        """Wait until `done` holds for the changes so far. TimeoutError after `seconds`."""
        with self._came:
            if not self._came.wait_for(lambda: done(self.changes), seconds):
                raise TimeoutError(f"waited {seconds:.0f} s for {what}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            at, event = time.time(), json.loads(line)
            with self._came:
                self.changes.append(Change(at, event["type"], event["object"]))
                self._came.notify_all()
