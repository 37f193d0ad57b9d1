# SPDX-License-Identifier: Apache-2.0
"""An operator of another version in mid-migration, on real hosts: what it leaves in the status, made by hand."""

from __future__ import annotations

import json
import time

import pytest

from tests.lab.rig import Object, Rig
from tests.lab.test_migration import SLOW, copying, finished, move, only_on, placed, switch

KEPT = ("intent", "phase", "reason", "conditions")
NEW = {
    "type": "Entangled",
    "status": "True",
    "reason": "Spin",
    "message": "",
    "lastTransitionTime": "2030-01-01T00:00:00Z",
}


def older(status: Object) -> Object:
    """A patch that leaves only what is promised to stay."""
    return {field: None for field in status if field not in KEPT}


def newer(status: Object) -> Object:
    """A patch with words that a later version may have."""
    decision = status["decision"] | {"row": "99"}
    return {"phase": "Teleporting", "reason": "Spin", "decision": decision, "conditions": [*status["conditions"], NEW]}


@pytest.mark.parametrize("version", [older, newer], ids=["older", "newer"])
def test_an_operator_goes_on_from_the_status_of_another_version(rig: Rig, version: object) -> None:
    uuid = placed(rig, "web")
    move(rig, "go", "web", target={"host": "h2"}, policy=SLOW)
    copying(rig, "go")
    source = rig.lab.hosts[0].qemu_pid(uuid)
    rig.operator.kill()
    patch = json.dumps({"status": (older if version is older else newer)(rig.status("vmmig", "go"))})
    rig.kubectl("patch", "vmmig", "go", "--subresource=status", "--type=merge", "-p", patch)
    left = rig.status("vmmig", "go")
    assert set(left) == set(KEPT) if version is older else left["reason"] == "Spin"
    time.sleep(1)
    rig.operator.start()
    rig.until(lambda: rig.status("vmmig", "go").get("decision", {}).get("row") == "1", "the copy to be found")
    assert rig.lab.hosts[0].qemu_pid(uuid) == source
    assert rig.status("vmmig", "go")["policy"]["bandwidth"] == SLOW["bandwidth"]
    copying(rig, "go")
    switch(rig, uuid)
    finished(rig, "go", "Migrated")
    only_on(rig, "web", rig.lab.hosts[1])
