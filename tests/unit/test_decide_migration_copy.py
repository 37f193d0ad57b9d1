# SPDX-License-Identifier: Apache-2.0
"""The volumes of a storage copy: at no point, whoever dies there, can two copies of a disk be started from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from homeostat.api import actions as act
from homeostat.api.migration import DiskCopyStatus, IntentStatus, MarksStatus
from homeostat.api.observed import Present, Unknown
from homeostat.decide import wanted
from homeostat.decide.migration import decide
from homeostat.decide.migration_copy import (
    Names,
    Step,
    Volumes,
    clean,
    complete,
    incoming_mark,
    left,
    mark_on,
    prepare,
    stale_mark,
)
from homeostat.decide.vm import decide as decide_vm
from tests.unit import test_decide_vm as vms
from tests.unit.migrations import ARRIVED, GONE, GRACE, INTENT, NOW, OFF, OUT, RUNS, intent_of, migration, view

VOLUME = "shop_web_root_1.qcow2"
COPY = DiskCopyStatus(
    disk="root", volume=VOLUME, source_pool="fast", target_pool="big", format="qcow2", size_bytes=1 << 30,
    backing="/images/base.qcow2", backing_format="qcow2",
)  # fmt: skip
INTENDED = IntentStatus.model_validate(INTENT | {"copies": [COPY.wire()]})
EARLIER = INTENDED.model_copy(update={"attempt": "an-earlier-one"})
STRANGER = INTENDED.model_copy(update={"domain_uuid": "22222222-2222-4222-8222-222222222222"})
HERE, THERE = ("a", "fast"), ("b", "big")
Decide = Callable[[Volumes], Step | None]


@dataclass
class Pools:
    """What the two pools have, and how long ago something was asked of them."""

    here: set[str] = field(default_factory=lambda: {VOLUME})
    there: set[str] = field(default_factory=set)
    age: float = GRACE
    one_storage: bool = False
    asked: MarksStatus = field(default_factory=MarksStatus)

    def known(self, **fields: Any) -> Volumes:
        names: dict[tuple[str, str], Names] = {HERE: frozenset(self.here), THERE: frozenset(self.there)}
        return replace(Volumes(INTENDED, self.asked, names, NOW, GRACE), **fields)

    def carry_out(self, step: Step) -> None:
        action = step.action
        assert action is not None, step.detail
        pool = {HERE: self.here, THERE: self.there}[action.host, action.pool]
        mark = "volume_made" if isinstance(action, act.CreateVolume) else "volume_removed"
        self.asked = self.asked.model_copy(update={mark: self.past(self.age)})
        if isinstance(action, act.CreateVolume):
            assert action.name not in pool, "nothing is written over"
            pool.add(action.name)
        else:
            pool.remove(action.name)
        if self.one_storage:
            self.there = self.here = self.here | self.there

    def past(self, seconds: float) -> datetime:
        return NOW - timedelta(seconds=seconds)

    def steps(self, decide_: Decide, **fields: Any) -> Iterator[Step]:
        """Each step, carried out; ends where there is none, or nothing can be done."""
        while (step := decide_(self.known(**fields))) is not None and not step.refused:
            self.carry_out(step)
            yield step

    def startable(self) -> list[str]:
        """Where the VM could be started from its volume."""
        pools = {"a": self.here, "b": self.there}
        return [host for host, names in pools.items() if VOLUME in names and mark_on(VOLUME, names) is None]


def through(pools: Pools, decide_: Decide, **fields: Any) -> Pools:
    for _ in pools.steps(decide_, **fields):
        pass
    return pools


STALE_THERE = {VOLUME, stale_mark(VOLUME, EARLIER)}
LEFT_THERE = {VOLUME, incoming_mark(VOLUME, EARLIER)}


@pytest.mark.parametrize("there", [set(), STALE_THERE, LEFT_THERE, {stale_mark(VOLUME, EARLIER)}])
def test_there_and_back_one_copy_counts_at_every_point(there: set[str]) -> None:
    pools = Pools(there=set(there))
    assert pools.startable() == ["a"]
    for _ in pools.steps(prepare):
        assert pools.startable() == []
    assert prepare(pools.known()) is None
    assert pools.there == {VOLUME, incoming_mark(VOLUME, INTENDED)}
    for _ in pools.steps(complete):
        assert pools.startable() in ([], ["b"])
    assert (pools.startable(), pools.here, pools.there) == (["b"], {VOLUME, stale_mark(VOLUME, INTENDED)}, {VOLUME})


@pytest.mark.parametrize("there", [set(), STALE_THERE, LEFT_THERE])
@pytest.mark.parametrize("after", range(7))
def test_wherever_it_is_broken_off_what_it_made_goes_and_what_was_there_before_stays(
    there: set[str], after: int
) -> None:
    pools = Pools(there=set(there))
    for number, _ in enumerate(pools.steps(prepare)):
        if number == after:
            break
    replaced = not there <= pools.there
    for _ in pools.steps(clean):
        assert pools.startable() in ([], ["a"])
    assert (pools.startable(), pools.here) == (["a"], {VOLUME})
    assert pools.there == (set() if replaced else there)


def test_the_copy_is_of_the_same_size_and_format_and_over_the_same_image() -> None:
    (*_, last) = Pools().steps(prepare)
    backing = ("/images/base.qcow2", "qcow2")
    assert last.action == act.CreateVolume("b", "big", VOLUME, "qcow2", 1 << 30, backing)


@pytest.mark.parametrize("mark", ["", stale_mark(VOLUME, STRANGER), f"{VOLUME}.stale-backup"])
def test_what_is_not_this_vms_is_never_touched(mark: str) -> None:
    there = {VOLUME, mark} - {""}
    pools = through(Pools(there=set(there)), prepare)
    found = prepare(pools.known())
    assert found is not None
    assert found.refused
    assert pools.there == there
    assert through(pools, clean).there == there
    assert pools.startable()[0] == "a"


def test_two_pools_that_are_one_storage_are_told_by_the_mark_before_anything_else() -> None:
    one = {VOLUME, stale_mark(VOLUME, EARLIER)}  # as if it were an old copy: it is the disk
    pools = Pools(here=one, there=one, one_storage=True)
    for step in pools.steps(prepare):
        assert isinstance(step.action, act.CreateVolume)
        assert step.action.name == stale_mark(VOLUME, INTENDED)
    found = prepare(pools.known())
    assert found is not None
    assert found.refused
    pools.one_storage = False
    assert VOLUME in through(pools, clean).here & pools.there


def test_what_was_asked_of_a_host_may_still_come() -> None:
    pools = Pools(age=GRACE - 1)
    list(pools.steps(prepare))
    for decide_ in (clean, complete):
        found = decide_(pools.known())
        assert found is not None
        assert (found.action, found.refused) == (None, False)
    removed = Pools(there=set(STALE_THERE), age=GRACE - 1)
    with pytest.raises(AssertionError, match="grace period"):
        through(removed, prepare)
    assert VOLUME not in removed.there


def test_a_pool_that_cannot_be_listed_is_waited_for() -> None:
    pools = through(Pools(), prepare)
    for decide_ in (prepare, clean, complete):
        known = pools.known(names={HERE: frozenset(pools.here), THERE: Unknown("PoolUnavailable", "it is not active")})
        found = decide_(known)
        assert found is not None
        assert (found.action, found.refused) == (None, False)
        assert "not active" in found.detail


def test_a_host_that_is_silent_is_left_as_it_is_and_that_is_said() -> None:
    pools = through(Pools(), prepare)
    there = set(pools.there)
    through(pools, clean, silent=frozenset({"b"}))
    assert (pools.startable(), pools.here, pools.there) == (["a"], {VOLUME}, there)
    assert VOLUME in left(pools.known(silent=frozenset({"b"})), moved=False)
    assert left(Pools().known(silent=frozenset({"b"})), moved=False) == ""


def test_what_the_vm_may_have_run_from_is_kept() -> None:
    pools = through(Pools(), prepare)
    through(pools, clean, discard=False)
    assert pools.there == {VOLUME, incoming_mark(VOLUME, INTENDED)}
    assert pools.startable() == ["a"]
    assert VOLUME in left(pools.known(discard=False), moved=False)
    neither = through(through(Pools(), prepare), clean, source_counts=False, discard=False)
    assert neither.startable() == []
    assert "stays marked" in left(neither.known(source_counts=False, discard=False), moved=False)


def test_a_copy_that_somebody_removed_is_missed() -> None:
    pools = through(Pools(), prepare)
    pools.there.remove(VOLUME)
    assert through(pools, complete).startable() == []
    assert "has no volume" in left(pools.known(), moved=True)


# Where a VM is started


@pytest.mark.parametrize("form", [stale_mark, incoming_mark])
@pytest.mark.parametrize("there", [True, False], ids=["volume", "mark alone"])
def test_nothing_is_started_from_a_marked_volume_nor_is_one_made_beside_a_mark(form: Any, there: bool) -> None:
    vm = vms.settled({"disks": [{"name": "root", "pool": "fast", "size": "1Gi"}]})
    volume = wanted.volume_name(vm, vm.spec.disks[0])
    names = frozenset({volume, form(volume, INTENDED)} if there else {form(volume, INTENDED)})
    for answer in (GONE, Present(vms.domain(vm, reason="Crashed"))):
        found = decide_vm(vm, vms.view(vms.host("a", answer, volumes={"default": names}), fresh=True), NOW)
        assert (found.say.reason, found.action) == ("DiskStale", None)
        assert form(volume, INTENDED) in found.say.detail


# In the decision about the migration

MADE = {"volumeMade": "2025-12-31T00:00:00Z"}
BEGUN = {"startTime": "2026-01-01T00:00:00Z"}


def decided(source: Any, target: Any, pools: Pools, marks: dict[str, Any] | None = None, **fields: Any) -> Any:
    status = fields.pop("status", BEGUN) | {"marks": MADE | (marks or {})}
    of = migration(status, {"copies": [COPY.wire()]} | fields.pop("intent", {}))
    return decide(of, intent_of(of), view(source, target, GRACE + 1, volumes=pools.known().names, **fields))


def test_libvirt_is_asked_when_all_is_ready_and_not_before() -> None:
    pools, ready = Pools(), through(Pools(), prepare)
    of = migration(None, {"copies": [COPY.wire()]})
    assert decide(of, intent_of(of), view(RUNS, GONE, GRACE)).look_at_volumes
    first = decided(RUNS, GONE, pools, status={})
    assert isinstance(first.action, act.CreateVolume)
    assert first.marks.volume_made == NOW
    assert isinstance(decided(RUNS, GONE, ready, status={}).action, act.Migrate)


def test_a_volume_that_cannot_be_made_ends_the_attempt_and_leaves_nothing() -> None:
    failed = decided(RUNS, GONE, Pools(), status={}, volume_error="No space left on device")
    assert failed.marks.not_prepared == "No space left on device"
    noted = {"notPrepared": "No space left on device"}
    half = Pools(here={VOLUME, stale_mark(VOLUME, INTENDED)})
    assert isinstance(decided(RUNS, GONE, half, noted, status={}).action, act.DeleteVolume)
    end = decided(RUNS, GONE, Pools(), noted, status={})
    assert (end.say.reason, end.finished) == ("StorageNotReady", True)
    assert "No space left" in end.say.detail


def test_a_target_that_was_left_a_definition_has_run_unless_only_we_let_it() -> None:
    pools = through(Pools(), prepare)
    assert decided(RUNS, OFF, pools).marks.target_ran == NOW
    paused = decided(RUNS, OFF, pools, intent={"startedPaused": "Enabled"})
    assert (type(paused.action), paused.marks) == (act.UndefineStale, None)


@pytest.mark.parametrize(
    ("source", "target", "marks", "removed"),
    [
        (RUNS, GONE, {}, True),
        (OFF, GONE, {}, True),
        (RUNS, GONE, {"targetRan": "2026-01-01T00:00:00Z"}, False),
        (RUNS, GONE, {"resolved": {"keep": "KeepSource", "evidence": "0" * 16}}, False),
        (OFF, GONE, {"endedSource": "2026-01-01T00:00:00Z"}, False),
        (GONE, OUT, {}, False),
        (RUNS, OUT, {}, False),
        (GONE, ARRIVED, {}, False),
    ],
)
def test_the_targets_volume_is_removed_only_when_the_vm_never_ran_from_it(
    source: Any, target: Any, marks: dict[str, Any], removed: bool
) -> None:
    pools, gone = through(Pools(), prepare), set()
    for _ in range(10):
        found = decided(source, target, pools, marks)
        if found.action is None:
            break
        assert isinstance(found.action, act.DeleteVolume)
        gone |= {(found.action.host, found.action.name)}
        pools.carry_out(Step("", found.action))
    assert found.finished, found.say
    assert (("b", VOLUME) in gone) == removed
    assert ("a", VOLUME) not in gone
    assert len(pools.startable()) == (0 if (source is GONE and target is OUT) or "endedSource" in marks else 1)
