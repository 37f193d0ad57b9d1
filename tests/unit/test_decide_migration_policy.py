# SPDX-License-Identifier: Apache-2.0
"""How a copy is made to converge, against a guest that writes while it is copied."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.api.migration_policy import EffectivePolicy, MigrationPolicy
from homeostat.decide.migration_policy import (
    FORCE_SECONDS,
    GIB,
    MIB,
    MOST_DOWNTIME_MS,
    STEPS,
    Advice,
    Progress,
    advise,
    bandwidth_mib,
    completion_seconds,
    downtime_limit_ms,
    effective,
    prepares_post_copy,
    progress_due,
)


def policy(*, post_copy: bool = True, **fields: Any) -> EffectivePolicy:
    found = effective(MigrationPolicy.model_validate(fields), None, target_tls=False, post_copy=post_copy)
    assert isinstance(found, EffectivePolicy), found
    return found


def progress(**fields: Any) -> Progress:
    return replace(Progress(10.0, 1, GIB, 4 * GIB, 10 * MIB, 100 * MIB, None), **fields)


@dataclass
class Guest:
    """A guest of 4 GiB that writes `dirty` bytes a second all over `working_set`, copied at `bandwidth` a second.

    The simplest model of QEMU's pre-copy: what was written during a pass is copied in the next one.
    """

    policy: EffectivePolicy
    dirty: int
    bandwidth: int = 100 * MIB
    working_set: int = 2 * GIB
    post_copy: bool = True
    iteration: int = 1
    remaining: int = 4 * GIB
    written: int = 0
    elapsed: float = 0.0
    lowest: int = 4 * GIB
    lowest_at: float = 0.0
    limit: int | None = 500
    suspended: bool = False
    rate: int = 0
    passed_at: float = 0.0

    def run(self, most: float = 10000.0) -> str:
        """Return how it ends."""
        while self.elapsed < most:
            self._second()
            if self.suspended and self.remaining == 0:
                return "Suspended"
            if self.remaining / self.bandwidth * 1000 <= (self.limit or 0):
                return "Switched"
            advice = advise(self.policy, self.progress())
            match advice.step:
                case "SetMaxDowntime":
                    self.limit = advice.milliseconds
                case "PostCopy" | "Abort":
                    return f"{advice.step} {advice.time_out}".strip()
                case "Suspend":
                    self.suspended = True
        return "Never"

    def _second(self) -> None:
        self.elapsed += 1
        self.written = min(self.written + (0 if self.suspended else self.dirty), self.working_set)
        self.remaining = max(self.remaining - self.bandwidth, 0)
        if self.remaining == 0 and self.written:
            # As QEMU reports it: what is found to be written to at the end of a pass, by how long the pass took.
            self.rate, self.passed_at = int(self.written / (self.elapsed - self.passed_at)), self.elapsed
            self.iteration, self.remaining, self.written = self.iteration + 1, self.written, 0
        if self.remaining < self.lowest:
            self.lowest, self.lowest_at = self.remaining, self.elapsed

    def progress(self) -> Progress:
        stalled = self.elapsed - self.lowest_at
        numbers = (self.elapsed, self.iteration, self.remaining, 4 * GIB, self.rate, self.bandwidth, self.limit)
        return Progress(*numbers, stalled=stalled, post_copy=self.post_copy, suspended=self.suspended)


def test_a_quiet_guest_is_switched_over_within_a_small_downtime() -> None:
    guest = Guest(policy(), 5 * MIB)
    assert guest.run() == "Switched"
    assert guest.limit is not None
    assert guest.limit <= 150


def test_a_guest_that_writes_little_is_not_down_for_longer_than_the_first_step() -> None:
    """A limit that was raised while the first pass went on would only have it wait longer."""
    for dirty, bandwidth in ((MIB // 2, 100 * MIB), (MIB // 100, 10 * MIB)):
        guest = Guest(policy(), dirty, bandwidth, working_set=4 * MIB)
        assert guest.run() == "Switched"
        assert guest.limit == policy().max_downtime_milliseconds // STEPS


def test_a_guest_that_writes_faster_than_is_copied_goes_to_post_copy_under_auto() -> None:
    guest = Guest(policy(mode="Auto"), 200 * MIB)
    assert guest.run() == "PostCopy"
    assert guest.iteration == 3
    assert guest.elapsed < completion_seconds(guest.policy, 4 * GIB)


def test_a_guest_that_writes_less_than_half_as_fast_as_is_copied_is_waited_for_under_auto() -> None:
    auto, third = policy(mode="Auto"), progress(iteration=3, post_copy=True)
    assert advise(auto, replace(third, dirty_rate=49 * MIB)).step == "Wait"
    assert advise(auto, replace(third, dirty_rate=50 * MIB)).step == "PostCopy"


def test_it_ends_by_its_time_out_under_precopy() -> None:
    guest = Guest(policy(), 200 * MIB)
    assert guest.run() == "Abort Progress"
    assert guest.elapsed <= 2 * 150 + 60


def test_without_post_copy_auto_slows_the_guest_down_and_then_forces_the_end() -> None:
    auto = policy(mode="Auto", post_copy=False)
    assert (auto.auto_converge, prepares_post_copy(auto, post_copy=False)) == ("Enabled", False)
    assert Guest(auto, 200 * MIB, post_copy=False).run() == "Switched"
    guest = Guest(policy(onTimeout="ForceComplete"), 200 * MIB)
    assert guest.run() == "Switched"
    assert guest.limit == MOST_DOWNTIME_MS


def test_postcopy_mode_switches_after_the_first_pass() -> None:
    guest = Guest(policy(mode="PostCopy"), 20 * MIB)
    assert guest.run() == "PostCopy"
    assert guest.iteration == 2


def test_what_the_highest_limit_does_not_end_is_ended_by_stopping_the_cpus() -> None:
    forced = policy(onTimeout="ForceComplete")
    late = completion_seconds(forced, 4 * GIB) + 1
    assert advise(forced, progress(elapsed=late, downtime_limit_ms=500)).milliseconds == MOST_DOWNTIME_MS
    assert advise(forced, progress(elapsed=late, downtime_limit_ms=MOST_DOWNTIME_MS)).step == "Wait"
    later = progress(elapsed=late + FORCE_SECONDS, downtime_limit_ms=MOST_DOWNTIME_MS)
    assert advise(forced, later).step == "Suspend"
    assert advise(forced, replace(later, suspended=True)) == Advice("Wait")


def test_nothing_is_advised_once_it_was_switched_to_post_copy() -> None:
    assert advise(policy(mode="Auto"), progress(elapsed=100000.0, switched=True)) == Advice("Wait")


def test_a_reason_names_the_rates() -> None:
    late = progress(elapsed=601.0, dirty_rate=200 * MIB)
    assert advise(policy(), late).detail == (
        "it took longer than 600 s; the guest writes 200 MiB/s and 100 MiB/s are copied"
    )


@given(st.integers(1, 10**6), st.floats(0, 10**6), st.integers(1, 2_000_000))
def test_the_limit_lies_between_a_step_and_the_policys(iteration: int, elapsed: float, most: int) -> None:
    chosen = policy(maxDowntimeMilliseconds=most)
    limit = downtime_limit_ms(chosen, progress(iteration=iteration, elapsed=elapsed))
    assert 1 <= limit <= most
    assert limit <= downtime_limit_ms(chosen, progress(iteration=iteration + 1, elapsed=elapsed))
    assert limit <= downtime_limit_ms(chosen, progress(iteration=iteration, elapsed=elapsed + 1))


def test_the_limit_is_set_only_when_it_is_another() -> None:
    wanted = downtime_limit_ms(policy(), progress())
    assert advise(policy(), progress(downtime_limit_ms=wanted)).step == "Wait"
    assert advise(policy(), progress(downtime_limit_ms=wanted + 1)) == Advice("SetMaxDowntime", milliseconds=wanted)


# How often progress is written


def writes(seconds: float, looks: list[float], least: float) -> list[float]:
    """When progress is written of a copy that takes so long and is looked at after these pauses, again and again."""
    at, written = 0.0, None
    found: list[float] = []
    for number in range(10**6):
        if at > seconds:
            return found
        if progress_due(written, at, least):
            written = at
            found.append(at)
        at += looks[number % len(looks)]
    raise AssertionError("too many looks")


@given(st.floats(0, 86400), st.lists(st.floats(1, 30), min_size=1, max_size=5), st.sampled_from([1.0, 5.0]))
def test_how_often_progress_is_written_is_capped(seconds: float, looks: list[float], least: float) -> None:
    found = writes(seconds, looks, least)
    beyond = max(math.log(max(seconds, 1) / (10 * least)) / math.log(10 / 9), 0)
    assert 1 <= len(found) <= 11 + beyond
    assert all(after - before >= least for before, after in itertools.pairwise(found))
    for shown, after in zip(found, [*found[1:], seconds], strict=True):  # and what is shown is never old
        assert after - shown <= max(least, after / 10) + max(looks)


def test_an_hour_costs_some_fifty_writes_and_a_day_some_eighty() -> None:
    counts = [len(writes(seconds, [2.0], 5.0)) for seconds in (4, 60, 3600, 86400)]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert 8 <= counts[1] <= 13
    assert 40 <= counts[2] <= 51
    assert 65 <= counts[3] <= 81


def test_the_progress_of_a_new_job_is_written_at_once() -> None:
    assert progress_due(3000.0, 1.0, 5.0)
    assert not progress_due(3000.0, 3001.0, 5.0)


def test_what_is_said_while_it_is_forced_does_not_change_with_the_rates() -> None:
    forced = progress(elapsed=650.0, downtime_limit_ms=MOST_DOWNTIME_MS)
    said = {advise(policy(onTimeout="ForceComplete"), replace(forced, dirty_rate=rate * MIB)) for rate in (1, 200)}
    assert {each.detail for each in said} == {"it took longer than 600 s; it switches over whatever the downtime"}


# The policy that applies


def test_the_migration_goes_before_the_host_and_the_host_before_the_default() -> None:
    host = MigrationPolicy.model_validate({"bandwidth": "100Mi", "maxDowntimeMilliseconds": 100})
    asked = MigrationPolicy.model_validate({"bandwidth": "1Gi"})
    found = effective(asked, host, target_tls=True, post_copy=False)
    assert isinstance(found, EffectivePolicy)
    assert (found.bandwidth, found.max_downtime_milliseconds, found.mode, found.tls) == (
        "1Gi",
        100,
        "PreCopy",
        "Enabled",
    )
    assert bandwidth_mib(found) == 1024
    assert bandwidth_mib(policy()) == 0


def test_what_holds_everywhere_goes_before_the_default_and_after_the_host() -> None:
    everywhere = {"bandwidth": "10Mi", "maxDowntimeMilliseconds": 10, "progressTimeoutSeconds": 10}
    host = {"bandwidth": "20Mi", "maxDowntimeMilliseconds": 20}
    given = [MigrationPolicy.model_validate(each) for each in ({"bandwidth": "30Mi"}, host, everywhere)]
    found = effective(*given, target_tls=False, post_copy=False)
    assert isinstance(found, EffectivePolicy)
    assert (found.bandwidth, found.max_downtime_milliseconds, found.progress_timeout_seconds) == ("30Mi", 20, 10)
    assert found.completion_timeout_seconds_per_gib == 150


@pytest.mark.parametrize(("mode", "on_timeout"), [("PreCopy", "Abort"), ("PostCopy", "PostCopy"), ("Auto", "PostCopy")])
def test_what_is_done_at_a_time_out_follows_from_the_mode(mode: str, on_timeout: str) -> None:
    assert policy(mode=mode).on_timeout == on_timeout


def test_two_policies_that_contradict_each_other_are_told() -> None:
    host = MigrationPolicy.model_validate({"parallelConnections": 4})
    found = effective(MigrationPolicy.model_validate({"mode": "Auto"}), host, target_tls=False, post_copy=True)
    assert isinstance(found, str)
    assert "parallelConnections above 1 needs mode PreCopy" in found
    found = effective(None, MigrationPolicy.model_validate({"mode": "Auto"}), host, target_tls=False, post_copy=True)
    assert isinstance(found, str)
    assert found.startswith("with the source's spec.migration.policy and the operator's --migration-policy: parallel")
