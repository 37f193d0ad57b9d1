# SPDX-License-Identifier: Apache-2.0
"""The operator under cProfile: `python -m tests.bench.profiled FILE run ...`.

Of its first thread, in CPU seconds. How much CPU each thread used is written to FILE.threads.
"""

from __future__ import annotations

import cProfile
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from homeostat.cli import main

_TICKS = os.sysconf("SC_CLK_TCK")


def run() -> None:
    """Run the command; the profile is written when it ends by itself, which is after a signal too."""
    file, *words = sys.argv[1:]
    profile, leave = cProfile.Profile(time.thread_time), os._exit

    def dump(code: int) -> None:
        profile.disable()
        profile.dump_stats(file)
        Path(f"{file}.threads").write_text(_threads())
        leave(code)

    # The operator ends this way so that calls to hosts that never answer cannot hold it.
    os._exit = dump  # type: ignore[assignment]
    profile.enable()
    main(words)


def _threads() -> str:
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    used: Counter[str] = Counter()
    for task in Path("/proc/self/task").iterdir():
        user, system = (task / "stat").read_text().rpartition(")")[2].split()[11:13]
        used[names.get(int(task.name), "?")] += int(user) + int(system)
    lines = [f"{ticks / _TICKS:8.2f} {name}\n" for name, ticks in used.most_common()]
    return f"{sum(os.times()[:2]):8.2f} in all, ended threads included\n{''.join(lines)}"


if __name__ == "__main__":
    run()
