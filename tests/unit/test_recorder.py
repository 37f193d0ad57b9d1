# SPDX-License-Identifier: Apache-2.0
"""The lab's recorder, on which every "never two" rests, outlives whoever talks to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab import recorder

EMULATOR = """
import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.send(b"start h1 " + sys.argv[2].encode() + b"\\n")
print("there", flush=True)
peer.recv(64)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a recorder that runs, and does so to the end."""
    command = [sys.executable, "-I", recorder.__file__, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / recorder.SOCKET).exists() or not recorder_answers(tmp_path):
            assert process.poll() is None
            time.sleep(0.01)
        yield tmp_path
        try:
            recorder.sync(tmp_path)
        finally:
            process.kill()
            _, said = process.communicate()
        assert said == ""


def recorder_answers(folder: Path) -> bool:
    try:
        recorder.sync(folder)
    except ConnectionRefusedError:  # it is there, and does not listen yet
        return False
    return True


def emulator(folder: Path, uuid: str, stdin: int = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-c", EMULATOR, str(folder / recorder.SOCKET), uuid]
    process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "there\n"
    return process


def events(folder: Path) -> list[tuple[str, str]]:
    recorder.sync(folder)
    return [(row["event"], row["uuid"]) for row in map(json.loads, (folder / recorder.LOG).read_text().splitlines())]


@contextmanager
def one_turn(folder: Path) -> Iterator[None]:
    """Whatever happens inside is handled by the recorder at once, after it."""
    with recorder.connect(folder) as connection:
        pid = recorder.peer_pid(connection)
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


def test_those_who_say_nothing_or_do_not_wait_for_the_answer(folder: Path) -> None:
    recorder.connect(folder).close()
    with one_turn(folder):
        for words in (b"", b"sync\n", b"nonsense\n", b"\xff\n"):
            with recorder.connect(folder) as connection:
                connection.send(words)
    assert events(folder) == []


@pytest.mark.parametrize("reaped", [True, False])
def test_an_emulator_that_is_killed_before_it_is_answered(folder: Path, reaped: bool) -> None:
    with one_turn(folder):
        waiting = emulator(folder, "one")
        waiting.kill()
        os.waitid(os.P_PID, waiting.pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
    found = events(folder)
    waiting.wait()
    assert found == ([] if reaped else [("start", "one"), ("end", "one")])


def test_many_that_end_and_begin_in_one_turn_are_all_recorded(folder: Path) -> None:
    """Numbers of files that were closed are given to new ones at once."""
    for turn in range(3):
        old = [emulator(folder, f"{turn}-old-{n}") for n in range(5)]
        events(folder)
        with one_turn(folder):
            for each in old:
                each.kill()
            new = [emulator(folder, f"{turn}-new-{n}") for n in range(5)]
        events(folder)
        for each in new:
            each.kill()
        for each in (*old, *new):
            each.wait()
    found = events(folder)
    names = [f"{turn}-{age}-{n}" for turn in range(3) for age in ("old", "new") for n in range(5)]
    assert sorted(found) == sorted((event, name) for event in ("start", "end") for name in names)
