# SPDX-License-Identifier: Apache-2.0
"""CPU time by program, and what the machine is."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.lab.host import Host

_TICKS = os.sysconf("SC_CLK_TCK")
Usage = dict[str, float]
"""CPU seconds by what used them; "machine" is all of it, what nobody here used included."""


def used(hosts: Iterable[Host], programs: Mapping[str, int | None]) -> Usage:
    """CPU used so far by guests, libvirt, programs by pid, and this process with kubectl. Ended guests are missing."""
    found = {"QEMU": 0.0, "libvirt": 0.0, "kubectl, measuring": sum(os.times()[:4]), "machine": _busy_seconds()}
    for process in (process for host in hosts for process in host.processes()):
        name, own, children = _of(process.pid)
        found["QEMU" if name.startswith("qemu") else "libvirt"] += own + (children if name == "libvirtd" else 0.0)
    return found | {name: _of(pid)[1] for name, pid in programs.items() if pid is not None}


def since(before: Usage, after: Usage) -> Usage:
    """What was used in between."""
    return {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}


def _of(pid: int) -> tuple[str, float, float]:
    """Name, CPU seconds, and those of its children that have ended."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return "", 0.0, 0.0
    user, system, child_user, child_system = (int(word) / _TICKS for word in rest.split()[11:15])
    return name, user + system, child_user + child_system


def _busy_seconds() -> float:
    line = _cpu_line()
    return (sum(line) - line[3] - line[4]) / _TICKS


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
