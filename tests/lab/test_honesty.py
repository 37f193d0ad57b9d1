# SPDX-License-Identifier: Apache-2.0
"""The simulated hosts answer as real ones do. No expectation stands here: the real host is the expectation."""

from __future__ import annotations

import pytest

from tests.lab.rig import Rig
from tests.simulation import honesty, honesty_machines


@pytest.mark.parametrize("name", [name for name, _ in honesty.PROBES])
def test_both_hosts_answer_alike(session_rig: Rig, name: str) -> None:
    there, here = honesty_machines.real(name, session_rig.lab), honesty_machines.simulated(name)
    assert here == there, f"{name}: simulated {here}, real {there}"
