# SPDX-License-Identifier: Apache-2.0
"""The simulated hosts answer as real ones do. No expectation stands here: the real host is the expectation."""

from __future__ import annotations

import pytest

from homeostat.hosts import libvirt_driver
from tests.lab.rig import Rig
from tests.simulation import honesty, honesty_machines


@pytest.mark.parametrize("name", [name for name, _ in honesty.PROBES])
def test_both_hosts_answer_alike(session_rig: Rig, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_driver, "_REFUSAL_SECONDS", 20.0)  # what refuses late, on a busy machine, refuses
    there, here = honesty_machines.real(name, session_rig.lab), honesty_machines.simulated(name)
    assert here == there, f"{name}: simulated {here}, real {there}"
