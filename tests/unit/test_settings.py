# SPDX-License-Identifier: Apache-2.0
"""What the operator's command line sets, and the sentence for what it cannot be."""

from __future__ import annotations

import subprocess
import sys

import pytest

from homeostat.cli import parser
from homeostat.cli.run import settings

pytestmark = pytest.mark.unit


def test_what_is_not_set_is_as_shipped() -> None:
    found = settings(parser().parse_args(["run"]))
    assert (found.migrations, found.migration_policy, found.lease_seconds) == (10, None, 15)


def test_numbers_and_the_policy_for_all_migrations_are_set() -> None:
    policy = '{"mode": "Auto", "bandwidth": "1Gi", "maxDowntimeMilliseconds": 100}'
    arguments = ["run", "--set=migrations=3", "--set=resync_seconds=1.5", f"--migration-policy={policy}"]
    found = settings(parser().parse_args(arguments))
    assert (found.migrations, found.resync_seconds) == (3, 1.5)
    assert found.migration_policy is not None
    assert found.migration_policy.wire() == {"mode": "Auto", "bandwidth": "1Gi", "maxDowntimeMilliseconds": 100}


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--set=migrations=0", "--set migrations: it has to be at least 1, and is 0"),
        ("--set=migrations=-2", "--set migrations: it has to be at least 1, and is -2"),
        ("--set=migrations=many", "--set migrations: it has to be a whole number, and is 'many'"),
        ("--set=migrations=1.5", "--set migrations: it has to be a whole number, and is '1.5'"),
        ("--set=resync_seconds=", "--set resync_seconds: it has to be a number, and is ''"),
        ("--set=resync_seconds=nan", "--set resync_seconds: it has to be at least 0, and is nan"),
        ("--set=resync_seconds=inf", "--set resync_seconds: it has to be at least 0, and is inf"),
        ("--set=nothing=1", "--set nothing: there is no such setting; there are api_timeout_seconds, "),
        ("--set=migration_policy=1", "--set migration_policy: there is no such setting"),
        ("--migration-policy=Auto", "--migration-policy: Invalid JSON"),
        ("--migration-policy=[]", "--migration-policy: Input should be an object"),
        ('--migration-policy={"mode": "auto"}', "--migration-policy: mode: Input should be 'PreCopy', 'PostCopy'"),
        ('--migration-policy={"mod": "Auto", "a": 1}', "--migration-policy: there is no field a, mod"),
        ('--migration-policy={"bandwidth": "2Ti"}', "--migration-policy: bandwidth "),
        (
            '--migration-policy={"mode": "PreCopy", "onTimeout": "PostCopy"}',
            "--migration-policy: onTimeout PostCopy needs mode PostCopy or Auto",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_the_start_with_a_sentence(option: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^--") as caught:
        settings(parser().parse_args(["run", option]))
    assert str(caught.value).startswith(sentence)


def test_an_operator_with_a_wrong_setting_does_not_start() -> None:
    command = [sys.executable, "-m", "homeostat", "run", '--migration-policy={"mode": "Auto", "mood": "good"}']
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "homeostat: --migration-policy: there is no field mood\n"
