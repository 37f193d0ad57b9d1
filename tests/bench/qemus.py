# SPDX-License-Identifier: Apache-2.0
"""When QEMU processes ran: from the lab's recorder, which sees every start and end and when CPUs ran."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import NamedTuple

from tests.lab import recorder
from tests.lab.lab import Lab


class Event(NamedTuple):
    """One line of the record: start, RESUME, STOP, SHUTDOWN or end of a process, in seconds since the epoch."""

    at: float
    kind: str
    uuid: str
    host: str


class Qemus:
    """The record, read as it grows."""

    def __init__(self, lab: Lab) -> None:
        self._folder = lab.directory / "recorder"
        self._read = 0
        self.events: list[Event] = []

    def refresh(self) -> list[Event]:
        """Everything that has happened before this call."""
        recorder.sync(self._folder)
        with (self._folder / recorder.LOG).open() as file:
            file.seek(self._read)
            rows = [json.loads(line) for line in file]
            self._read = file.tell()
        self.events += [Event(row["t"], row["event"], row["uuid"], row["host"]) for row in rows]
        return self.events

    def ran(self, uuids: Iterable[str], since: float, seconds: float = 30) -> dict[str, Event]:
        """The first time after `since` that the CPUs of each domain ran. TimeoutError when one does not."""
        wanted, deadline = set(uuids), time.monotonic() + seconds
        while True:
            found: dict[str, Event] = {}
            for event in self.refresh():
                if event.kind == "RESUME" and event.at > since and event.uuid in wanted:
                    found.setdefault(event.uuid, event)
            if found.keys() == wanted:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"no process ran of {', '.join(sorted(wanted - found.keys()))}")
            time.sleep(0.005)
