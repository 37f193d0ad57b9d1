# SPDX-License-Identifier: Apache-2.0
"""Is the simulated hypervisor honest? Small scripts that run on it and on real hosts; what they observe must agree.

A probe is written against the driver's port and `Machine`, and returns what it saw: codes, states, reasons, flags. No
expectation stands here: the real host is the expectation.
"""

from __future__ import annotations

from tests.simulation import honesty_domains, honesty_faults, honesty_migration
from tests.simulation.honesty_rig import PROBES, Machine, Rig, Seen

__all__ = ["MODULES", "PROBES", "Machine", "Seen", "run"]

MODULES = (honesty_domains, honesty_faults, honesty_migration)
"""Where the probes are; each enters itself into PROBES."""


async def run(one: Machine, two: Machine, name: str) -> Seen:
    """What the probe of this name sees on these machines."""
    rig = Rig(one, two)
    await rig.again()
    try:
        return await dict(PROBES)[name](rig)
    finally:
        await rig.clean()
