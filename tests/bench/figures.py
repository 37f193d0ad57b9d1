# SPDX-License-Identifier: Apache-2.0
"""Figures of samples: percentiles, and how far they can be trusted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

RESAMPLES = 4000
SEED = 1


class Estimate(NamedTuple):
    """A percentile of a sample, and the interval that holds 95 % of its bootstrap replicas."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, interpolated. ValueError without values."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median(values: Sequence[float]) -> float:
    """The middle value. ValueError without values."""
    return percentile(values, 0.5)


def estimate(values: Sequence[float], share: float) -> Estimate:
    """A percentile with its 95 % interval by the bootstrap; the same values always give the same interval."""
    chance = random.Random(SEED)
    replicas = [percentile(chance.choices(values, k=len(values)), share) for _ in range(RESAMPLES)]
    return Estimate(percentile(values, share), percentile(replicas, 0.025), percentile(replicas, 0.975))
