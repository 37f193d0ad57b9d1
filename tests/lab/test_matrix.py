# SPDX-License-Identifier: Apache-2.0
"""A seeded share of the crash-point matrix, another one with each commit; MATRIX_SEED repeats one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.lab.matrix import SCENARIOS, Bed, points, run, share_of, wrong
from tests.lab.rig import ROOT
from tests.rings import FIGURE

SHARES = {"life": 8, "migrate": 2}


def seed() -> int:
    """The commit decides which points are run, so that over time all are."""
    given = os.environ.get("MATRIX_SEED")
    words = ["git", "-C", str(ROOT), "rev-parse", "--short=8", "HEAD"]
    return int(given) if given else int(subprocess.run(words, capture_output=True, text=True, check=True).stdout, 16)


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    found = Bed(f"matrix-{os.getpid()}")
    yield found
    found.down()


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_share_of_the_crash_points_on_real_parts(
    bed: Bed, name: str, record_property: Callable[[str, object], None]
) -> None:
    scenario = SCENARIOS[name]
    all_points = points(scenario.clean(bed))
    told = f"{name}, on real hosts: {SHARES[name]} of {len(all_points)} points, MATRIX_SEED={seed()}"
    record_property(FIGURE, told)
    results = run(bed, scenario, share_of(all_points, SHARES[name], seed()))
    assert not wrong(results)
    assert len(results) == SHARES[name]
