# SPDX-License-Identifier: Apache-2.0
"""Pytest plugin: a test's ring is the folder it is in; a ring that was asked for and ran no test fails the run.

Figures that a test records (record_property with FIGURE) are printed at the end, whichever process ran it.
"""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

FIGURE = "figure"
RINGS = ("unit", "simulation", "api", "lab")
LONGEST = 12
LONG = (
    "test_crash_points.py",
    "test_matrix.py",
    "test_migration.py",
    "test_migration_copy.py",
    "test_migration_events.py",
    "test_migration_post_copy.py",
    "test_migration_rows.py",
    "test_migration_user.py",
    "test_migration_ways.py",
    "test_protocol_faults.py",
    "test_store.py",
    "test_strategies.py",
)
"""Files of few tests that take minutes: where files run side by side, none of these is to be left for the end."""
ran: Counter[str] = Counter()
seconds: dict[str, float] = {}
skipped: list[str] = []
figures: list[str] = []


def ring_of(node_id: str) -> str | None:
    """Return the ring of a test or of a folder of tests, such as "api" for tests/api/test_rules.py."""
    parts = Path(node_id.partition("::")[0]).parts
    return parts[1] if len(parts) > 1 and parts[0] == "tests" and parts[1] in RINGS else None


def pytest_configure() -> None:
    """No property fails because the machine is slow; one that fails by chance says how to have it again."""
    settings.register_profile(
        "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
    )
    settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its ring; put files that take long first, then those with many tests."""
    for item in items:
        if (ring := ring_of(item.nodeid)) is not None:
            item.add_marker(ring)
    files = Counter(item.nodeid.partition("::")[0] for item in items)
    items.sort(key=lambda item: _place(item.nodeid.partition("::")[0], files))


def _place(file: str, files: Counter[str]) -> tuple[bool, int, str]:
    return Path(file).name not in LONG, -files[file], file


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the tests that were really run, how long each file took, and keep their figures."""
    file = report.nodeid.partition("::")[0]
    seconds[file] = seconds.get(file, 0.0) + report.duration
    if report.when == "call":
        figures.extend(str(value) for name, value in report.user_properties if name == FIGURE)
    if report.skipped:
        skipped.append(report.nodeid)
    elif report.when == "call":
        ran[ring_of(report.nodeid) or ""] += 1


def complaints(config: pytest.Config) -> list[str]:
    """Return what makes a run worthless although no test failed."""
    wanted = {argument.rstrip("/") for argument in config.args}
    empty = [f"ring {ring} ran no test" for ring in RINGS if f"tests/{ring}" in wanted and not ran[ring]]
    return empty + [f"skipped: {node_id}" for node_id in skipped]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if there is something to complain about."""
    # A process that runs a share of the tests knows nothing of the others.
    whole = not hasattr(session.config, "workerinput")
    if whole and not session.config.option.collectonly and complaints(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many tests each ring ran, and what is wrong with the run."""
    for line in sorted(figures):
        terminalreporter.write_line(line)
    counts = ", ".join(f"{ring} {ran[ring]}" for ring in RINGS if ran[ring])
    terminalreporter.write_line(f"tests per ring: {counts or 'none'}")
    longest = sorted(seconds.items(), key=lambda each: -each[1])[:LONGEST]
    shown = ", ".join(f"{file} {took:.0f}" for file, took in longest if took >= 1)
    terminalreporter.write_line(f"seconds of the longest files: {shown or 'none'}")
    for line in complaints(config):
        terminalreporter.write_line(f"ERROR {line}", red=True)
