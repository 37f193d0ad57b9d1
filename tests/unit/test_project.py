# SPDX-License-Identifier: Apache-2.0
"""Rules of the house that a machine can check, and the plugin that keeps the rings honest."""

import ast
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LOCKS = ("requirements.lock", "requirements-build.lock")


def test_operator_never_shadows_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    subprocess.run([sys.executable, "-c", "import collections, operator; operator.itemgetter"], cwd=ROOT, check=True)


def test_no_file_has_more_than_500_lines() -> None:
    files = [path for folder in ("operator", "tests") for path in (ROOT / folder).rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: count for name, count in lines.items() if count > 500} == {}


def test_the_median_function_of_the_operator_has_fewer_than_ten_lines() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "operator").rglob("*.py")]
    functions = [each for tree in trees for each in ast.walk(tree) if isinstance(each, FUNCTIONS)]
    assert statistics.median((each.end_lineno or each.lineno) - each.lineno + 1 for each in functions) < 10


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_a_hash_and_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    pins = re.findall(r"^[a-z][\w.-]*==\S+.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)+", text, re.MULTILINE)
    assert len(pins) == len(re.findall(r"==", re.sub(r";.*", "", text))) > 0
    assert not re.search(r"://|^-|^\s+--(?!hash)", text, re.MULTILINE)


def run_rings(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest with the plugin in a project of its own."""
    command = [sys.executable, "-m", "pytest", "--import-mode=importlib", "-p", "tests.rings", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    unit:\n    api:\n")
    for ring in ("unit", "api"):
        (tmp_path / "tests" / ring).mkdir(parents=True)
    (tmp_path / "tests" / "unit" / "test_one.py").write_text("def test_one(): pass\n")
    return tmp_path


def test_a_ring_without_tests_fails_the_run(project: Path) -> None:
    done = run_rings(project, "tests/unit", "tests/api")
    assert done.returncode == 1
    assert "ring api ran no test" in done.stdout


def test_a_ring_whose_tests_are_all_deselected_fails_the_run(project: Path) -> None:
    (project / "tests" / "api" / "test_two.py").write_text("def test_two(): pass\n")
    assert run_rings(project, "tests/unit", "tests/api").returncode == 0
    assert run_rings(project, "tests/unit", "tests/api", "-m", "unit").returncode == 1


def test_a_skipped_test_fails_the_run(project: Path) -> None:
    text = "import pytest\n\ndef test_two():\n    pytest." + "skip('no such thing here')\n"
    (project / "tests" / "unit" / "test_two.py").write_text(text)
    done = run_rings(project, "tests/unit")
    assert done.returncode == 1
    assert "skipped: tests/unit/test_two.py::test_two" in done.stdout
