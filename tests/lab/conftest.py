# SPDX-License-Identifier: Apache-2.0
"""One control plane, one lab of three hosts and one operator for all drills, each of which leaves them as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controlplane import ControlPlane
from tests.lab.lab import Lab
from tests.lab.rig import Rig


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
