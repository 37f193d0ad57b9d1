# SPDX-License-Identifier: Apache-2.0
"""What the drills stand on: one that fails leaves nothing to the next."""

from __future__ import annotations

import pytest

from tests.lab.rig import Rig


def test_what_does_not_go_is_removed_by_force_and_fails_its_own_drill_only(rig: Rig) -> None:
    uuid = rig.vm("web")
    host = rig.running("web")
    rig.patch("vm", "web", {"metadata": {"finalizers": ["example.com/held"]}})
    with pytest.raises(AssertionError, match="vm web to go"):
        rig.clean(seconds=5)
    assert rig.get("vm", "web") is None
    assert uuid not in {domain.uuid for domain in host.domains()}
    rig.restore()
    rig.vm("web")
    rig.running("web")
