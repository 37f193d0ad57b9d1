# SPDX-License-Identifier: Apache-2.0
"""Real libvirt hosts on one machine, and the faults that drills do to them."""

from tests.lab.host import Domain, Host
from tests.lab.intervals import Life
from tests.lab.lab import Lab, labs
from tests.lab.processes import LabError, Process

__all__ = ["Domain", "Host", "Lab", "LabError", "Life", "Process", "labs"]
