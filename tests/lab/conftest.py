# SPDX-License-Identifier: Apache-2.0
"""One control plane, one lab of three hosts and one operator for all drills, each of which leaves them as it was.

Drills of the driver have hosts of their own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controlplane import ControlPlane
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.rig import Rig


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Hosts for the drills of one file that need no operator: two, or as many as its HOSTS says."""
    lab = Lab.up(f"hosts-{os.getpid()}", hosts=getattr(request.module, "HOSTS", 2))
    try:
        yield lab
    finally:
        lab.down()


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """The first of them, whose faults are mended after each drill."""
    yield lab.hosts[0]
    lab.hosts[0].heal()


@pytest.fixture(scope="session")
def session_rig() -> Iterator[Rig]:
    name = f"drill-{os.getpid()}"
    directory = Path("/var/lib/homeostat") / name
    lab, plane = Lab.up(name, hosts=3), ControlPlane(name)
    rig = Rig(plane, lab, directory)
    try:
        plane.up()
        rig.prepare()
        yield rig
    finally:
        rig.operator.kill()
        lab.down()
        plane.down()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def rig(session_rig: Rig) -> Iterator[Rig]:
    """The rig with its operator running, all hosts Ready, and no VM; whatever a drill did is undone after it."""
    session_rig.restore()
    yield session_rig
    session_rig.clean()
