# SPDX-License-Identifier: Apache-2.0
"""What the demo says while a person waits for it."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest

from tests import demo
from tests.lab.processes import LabError


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def kubectl(*words: str) -> str:
    """A cluster whose VM is starting."""
    return json.dumps({"status": {"reason": "Starting"}}) if words[0] == "get" else "all that is known of it"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(demo, "time", clock)
    return clock


def wait(clock: Clock, until: float, pid: int | None = 1) -> None:
    plane: Any = SimpleNamespace(kubectl=kubectl)
    operator: Any = SimpleNamespace(process=SimpleNamespace(pid=pid, last_words=lambda: "it could not go on"))
    demo._await(plane, operator, "the VM to run", lambda: 7 if clock.now >= until else None)


def test_a_wait_says_every_few_seconds_how_long_it_has_been_and_where_the_vm_stands(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    wait(clock, until=20)
    lines = capsys.readouterr().out.splitlines()
    times = [int(re.fullmatch(r" +waiting for the VM to run: (\d+) s, Starting", line)[1]) for line in lines]  # type: ignore[index]
    assert 5 <= len(times) <= 7
    assert times == sorted(times)


def test_a_short_wait_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    wait(clock, until=2)
    assert capsys.readouterr().out == ""


def test_a_wait_ends_with_what_is_known_when_it_is_too_long_or_the_operator_ended(clock: Clock) -> None:
    with pytest.raises(TimeoutError, match="waited 120 s for the VM to run\nall that is known of it"):
        wait(clock, until=1000)
    with pytest.raises(LabError, match="the operator ended: it could not go on"):
        wait(clock, until=1000, pid=None)
