# SPDX-License-Identifier: Apache-2.0
"""Looking at folders that others change meanwhile.

What a folder is listed to hold may be gone before it is looked at: a driver removes its credentials, virtlogd renames
its logs, another process of pytest ends its lab. `Path.rglob` fails then, and so does a `stat` of what was listed.
"""

import os
from pathlib import Path


def below(folder: Path) -> dict[Path, os.stat_result]:
    """Everything below a folder, at any depth, in order of its paths; without what was gone when it was looked at."""
    paths = sorted(Path(parent, name) for parent, folders, files in os.walk(folder) for name in (*folders, *files))
    return {path: stat for path in paths if (stat := _stat(path))}


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
