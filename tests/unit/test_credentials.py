# SPDX-License-Identifier: Apache-2.0
"""No key of a host stays on the disk when the process that wrote it ends, or was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from homeostat.hosts.uri import remove_leftovers

pytestmark = pytest.mark.unit

ENDING = """
import os, threading, time
from homeostat.api.observed import Credentials
from homeostat.cli.run import _exit
from homeostat.hosts.uri import with_pki

written = threading.Event()

def hang():
    with with_pki("qemu+tls://silent/system", Credentials({"tls.key": b"secret"})) as address:
        print(open(address.directory + "/clientkey.pem").read(), flush=True)
        written.set()
        time.sleep(60)

threading.Thread(target=hang, daemon=True).start()
written.wait(30)
_exit(0)
"""


def test_a_process_that_ends_while_it_connects_leaves_no_key(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", ENDING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "secret\n"
    assert list(tmp_path.iterdir()) == []


def test_keys_of_processes_that_were_killed_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    stay = ["homeostat-1-alive", "homeostat-state", f"other-{gone.pid}-a", "homeostat-x-y"]
    for name in (*stay, f"homeostat-{gone.pid}-a", f"homeostat-{os.getpid()}-a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clientkey.pem").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    remove_leftovers()
    assert {each.name for each in tmp_path.iterdir()} == set(stay)
