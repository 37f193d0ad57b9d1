# SPDX-License-Identifier: Apache-2.0
"""A seeded share of the crash-point matrix, another one with each commit; MATRIX_SEED repeats one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

from tests.lab.matrix import Bed, effects, points, run, share_of
from tests.lab.rig import ROOT
from tests.rings import FIGURE

SHARE = 8


def seed() -> int:
    """The commit decides which points are run, so that over time all are."""
    given = os.environ.get("MATRIX_SEED")
    words = ["git", "-C", str(ROOT), "rev-parse", "--short=8", "HEAD"]
    return int(given) if given else int(subprocess.run(words, capture_output=True, text=True, check=True).stdout, 16)


def test_a_share_of_the_crash_points_on_real_parts(record_property: Callable[[str, object], None]) -> None:
    bed = Bed(f"matrix-{os.getpid()}")
    try:
        clean, lines = bed.life("clean")
        assert not clean.wrong
        all_points = points(effects(lines))
        record_property(FIGURE, f"a life, on real hosts: {SHARE} of {len(all_points)} points, MATRIX_SEED={seed()}")
        results = run(bed, share_of(all_points, SHARE, seed()))
    finally:
        bed.down()
    wrong = {f"{effect} x {fault}": outcome.wrong for (effect, fault), outcome in results.items() if outcome.wrong}
    assert not wrong
    assert len(results) == SHARE
