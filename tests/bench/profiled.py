# SPDX-License-Identifier: Apache-2.0
"""The operator under cProfile: `python -m tests.bench.profiled FILE run ...`. Only its first thread is measured."""

from __future__ import annotations

import cProfile
import os
import sys

from homeostat.cli import main


def run() -> None:
    """Run the command; the profile is written when it ends by itself, which is after a signal too."""
    file, *words = sys.argv[1:]
    profile, leave = cProfile.Profile(), os._exit

    def dump(code: int) -> None:
        profile.disable()
        profile.dump_stats(file)
        leave(code)

    # The operator ends this way so that calls to hosts that never answer cannot hold it.
    os._exit = dump  # type: ignore[assignment]
    profile.enable()
    main(words)


if __name__ == "__main__":
    run()
