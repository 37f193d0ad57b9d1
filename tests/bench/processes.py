# SPDX-License-Identifier: Apache-2.0
"""CPU time by program, and what the machine is."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections import defaultdict
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
PROGRAMS = {
    "qemu-system-x86": "QEMU",
    "libvirtd": "libvirtd",
    "virtlogd": "libvirtd",
    "rpc-libvirtd": "libvirtd",
    "kube-apiserver": "API server",
    "etcd": "etcd",
    "kubectl": "kubectl",
}


def cpu_seconds(own: dict[int, str]) -> dict[str, float]:
    """CPU seconds used so far, by program; `own` gives processes a name of their own by pid. Ended ones are missing."""
    used: defaultdict[str, float] = defaultdict(float)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = rest.split()
        used[own.get(int(folder.name)) or PROGRAMS.get(name, "other")] += (int(fields[11]) + int(fields[12])) / _TICKS
    return dict(used)


def since(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What was used in between."""
    return {name: max(0.0, used - before.get(name, 0.0)) for name, used in after.items()}


def busy(seconds: float = 1.0) -> float:
    """Share of the machine's CPUs (0 to 1) that were busy during the next `seconds`."""
    before = _cpu_line()
    time.sleep(seconds)
    spent = [new - old for old, new in zip(before, _cpu_line(), strict=True)]
    return 1 - (spent[3] + spent[4]) / sum(spent)


def _cpu_line() -> list[int]:
    return [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]


def machine() -> list[str]:
    """The machine and the versions that results depend on, a line each."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    system = platform.freedesktop_os_release()
    return [
        f"{os.cpu_count()} CPUs ({model[1] if model else 'unknown'}), "
        f"{int(memory[1]) / 2**20 if memory else 0:.0f} GiB of memory, no KVM used: guests are emulated",
        f"{system.get('PRETTY_NAME', '')}, Linux {platform.release()}, Python {platform.python_version()}",
        f"{_first('libvirtd', '--version')}; {_first('qemu-system-x86_64', '--version')}",
    ]


def _first(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
