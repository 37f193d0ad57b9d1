# SPDX-License-Identifier: Apache-2.0
"""Looking at a folder that is changed meanwhile."""

import os
import stat
from pathlib import Path

import pytest

from tests.files import below


def test_everything_below_a_folder_is_found_but_what_goes_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("four")
    (tmp_path / "link").symlink_to("kept/file")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/key").touch()
    listed = os.walk

    def walk(folder: Path) -> list[tuple[str, list[str], list[str]]]:
        found = list(listed(folder))
        (tmp_path / "gone/key").unlink()
        (tmp_path / "gone").rmdir()
        return found

    monkeypatch.setattr(os, "walk", walk)
    found = below(tmp_path)
    assert list(found) == [tmp_path / "kept", tmp_path / "kept/file", tmp_path / "link"]
    assert stat.S_ISDIR(found[tmp_path / "kept"].st_mode)
    assert found[tmp_path / "link"].st_size == 4
    monkeypatch.undo()
    assert below(tmp_path / "gone") == {}
