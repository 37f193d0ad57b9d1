# SPDX-License-Identifier: Apache-2.0
"""How long to wait after failures in a row."""

from __future__ import annotations


def seconds(count: int) -> int:
    """Seconds until the next try after `count` failures in a row: 0, 10, 20, 40, ... at most 300."""
    return 0 if count <= 1 else min(300, 10 * 2 ** min(count - 2, 5))
