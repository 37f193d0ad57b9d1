# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a VM that is moved: libvirt (9.0) moves it, and forgets them on both hosts (measured).

The bitmaps stay in the disks. So what the source has of each is written down before the call that migrates, and what
the target lacks of it afterwards is defined there again, parents first.
"""

from __future__ import annotations

from homeostat.api.migration import MOST_CHECKPOINTS, CheckpointStatus, MarksStatus
from homeostat.api.observed import Checkpoint
from homeostat.decide.migration_table import Seen, Side

LONGEST_NAME, LONGEST_XML = 253, 4096


def too_much(checkpoints: tuple[Checkpoint, ...]) -> str:
    """Which of them cannot be written down; "" when all can."""
    if len(checkpoints) > MOST_CHECKPOINTS:
        return f"there are {len(checkpoints)}, and {MOST_CHECKPOINTS} can be carried over"
    large = (each.name for each in checkpoints if len(each.xml) > LONGEST_XML or len(each.name) > LONGEST_NAME)
    return next((f"{name[:60]!r} has a description that is too long to be carried over" for name in large), "")


def recorded(marks: MarksStatus, source: Side) -> MarksStatus:
    """The marks with what the source has of checkpoints."""
    found = source.checkpoints if isinstance(source, Seen) else ()
    written = tuple(CheckpointStatus(name=each.name, xml=each.xml) for each in found)
    return marks.model_copy(update={"checkpoints": written})


def missing(marks: MarksStatus, target: Side) -> tuple[CheckpointStatus, ...]:
    """Those written down that the target does not have."""
    there = {each.name for each in target.checkpoints} if isinstance(target, Seen) else set()
    return tuple(each for each in marks.checkpoints if each.name not in there)


def left_out(lacking: tuple[CheckpointStatus, ...]) -> str:
    """What is said in the end of those that could not be defined on the target."""
    names = ", ".join(each.name for each in lacking)
    return f"checkpoints that could not be redefined are in status.marks.checkpoints: {names}" if lacking else ""
