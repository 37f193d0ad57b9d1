# SPDX-License-Identifier: Apache-2.0
"""Reads what the recorder wrote: the lives of the QEMU processes of a domain, and whether two ever ran at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import NamedTuple

Interval = tuple[float, float | None]


class Life(NamedTuple):
    """One QEMU process. Times are seconds since the epoch; an end of None has not come yet."""

    host: str
    pid: int
    start: float
    end: float | None
    running: list[Interval]  # when its CPUs ran


def lives(lines: Iterable[str], uuid: str) -> list[Life]:
    """The QEMU processes of a domain UUID on all hosts, in the order of their starts."""
    found: list[Life] = []
    open_lives: dict[int, int] = {}  # pid -> place in `found`
    for line in lines:
        event = json.loads(line)
        if event["uuid"] != uuid:
            continue
        if event["event"] == "start":
            open_lives[event["pid"]] = len(found)
            found.append(Life(event["host"], event["pid"], event["t"], None, []))
        else:
            place = open_lives[event["pid"]]
            found[place] = _continued(found[place], event["event"], event["t"])
    return found


def _continued(life: Life, event: str, at: float) -> Life:
    running = life.running[-1:] and life.running[-1][1] is None
    if event == "RESUME" and not running:
        life.running.append((at, None))
    if event in ("STOP", "end") and running:
        life.running[-1] = (life.running[-1][0], at)
    return life._replace(end=at) if event == "end" else life


def overlap(found: list[Life]) -> str | None:
    """What ran at the same time, as a sentence; None when nothing did."""
    spans = [(begin, math.inf if end is None else end, life) for life in found for begin, end in life.running]
    last: tuple[float, Life] | None = None
    for begin, end, life in sorted(spans, key=lambda span: span[:2]):
        if last and begin < last[0]:
            other, until = last[1], "now" if last[0] == math.inf else f"{last[0]:.6f}"
            return (
                f"CPUs of pid {life.pid} on {life.host} ran from {begin:.6f}, "
                f"while those of pid {other.pid} on {other.host} ran until {until}"
            )
        last = (end, life)
    return None
