# SPDX-License-Identifier: Apache-2.0
"""The page of crash points on real parts: one scenario's part is written anew, and the others stay as they were."""

from __future__ import annotations

import re

import pytest

from tests.lab.matrix import LIFE, MIGRATE, PAGE, Effect, Outcome, effect_name, merged, pattern, points, section

CALL = Effect("migratePerform3Params", 1)
API = "/apis/homeostat.dev/v1alpha1/namespaces/default"


def test_a_part_takes_the_place_of_its_older_self_and_of_nothing_else() -> None:
    page = PAGE.read_text()
    assert merged(page, {}) == page
    first = section(MIGRATE, [CALL], {(CALL, "kill-after"): Outcome(3.2, 1.0, stayed="Refused")})
    both = merged(page, {"migrate": first})
    assert both.index(f"## {LIFE.title}") < both.index(f"## {MIGRATE.title}")
    assert "| migratePerform3Params 1 | - | 3 / 1, Refused |" in both
    again = section(MIGRATE, [CALL], {(CALL, "kill-after"): Outcome(4.0, 1.0, "it never ended")})
    newer = merged(both, {"migrate": again})
    assert "1 of 5 points, 1 wrong" in newer
    assert "Refused |" not in newer
    life = page[page.index(f"## {LIFE.title}") :].split("\n## ")[0].strip()
    assert life in both
    assert life in newer


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (f"PATCH {API}/virtualmachines/web/status", "PATCH status"),
        (f"PATCH {API}/virtualmachines/web", "PATCH object"),
        (f"PATCH {API}/virtualmachinemigrations/web/status", "PATCH migration status"),
        (f"PATCH {API}/virtualmachinemigrations/web", "PATCH migration object"),
        ("migratePerform3Params", "migratePerform3Params"),
    ],
)
def test_the_proxy_finds_an_effect_by_its_name_and_no_other(request_: str, name: str) -> None:
    assert effect_name(request_) == name
    others = {"PATCH status", "PATCH object", "PATCH migration status", "PATCH migration object", "poolRefresh"} - {
        name
    }
    assert re.search(pattern(Effect(name, 1), "web"), f"{request_} web")
    assert not any(re.search(pattern(Effect(other, 1), "web"), f"{request_} web") for other in others)


def test_no_answer_is_expected_from_the_call_that_lasts_as_long_as_the_migration() -> None:
    assert (CALL, "hang") not in points([CALL])
    assert (CALL, "drop-reply") in points([CALL])
