# SPDX-License-Identifier: Apache-2.0
"""How a copy is made to converge: the policy that applies, and what it makes of the progress."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from homeostat.api.meta import parse_quantity
from homeostat.api.migration_policy import SWITCHING, EffectivePolicy, MigrationPolicy

STEPS = 10
"""In how many steps the downtime limit reaches the policy's."""
FIRST_PASSES = 2
"""So many passes it takes at the least; a limit raised before that only has the guest wait longer."""
MOST_DOWNTIME_MS = 2_000_000
"""The highest limit QEMU takes: at the next pass it switches over whatever is left."""
FORCE_SECONDS = 60
"""How long that may take before the guest's CPUs are stopped for the copy to end."""
PASSES_BEFORE_POSTCOPY = 2
"""Post-copy begins with this pass over memory: the first one has brought most pages."""
PASSES_BEFORE_DOUBT = 3
"""From this pass on, a guest that writes too fast is known not to converge."""
TOO_FAST = 0.5
"""From this part of the bandwidth on: what QEMU slows guests down from. No guest is seen to write much faster than is
copied, as a page that is written to often counts once in a pass."""
WRITE_SHARE = 10
"""Progress is written again when at least one part in so many of the time has passed since it was last written."""
GIB, MIB = 1024**3, 1024**2


@dataclass(frozen=True, slots=True)
class Progress:
    """How an outgoing job goes. Bytes, seconds and milliseconds.

    `stalled` is for how long `remaining` has not been lower than ever before; `size` what there is to copy in all;
    `post_copy` whether QEMU was prepared for it; `forced`, `suspended` and `switched` what was done already.
    """

    elapsed: float
    iteration: int
    remaining: int
    size: int
    dirty_rate: int
    bandwidth: int
    downtime_limit_ms: int | None
    stalled: float = 0.0
    post_copy: bool = False
    suspended: bool = False
    switched: bool = False
    transferred: int = 0


@dataclass(frozen=True, slots=True)
class Advice:
    """The next step: Wait, SetMaxDowntime, PostCopy, Suspend or Abort.

    `time_out` is the one that has passed, Completion or Progress, or "".
    """

    step: str
    detail: str = ""
    milliseconds: int = 0
    time_out: str = ""


WAIT = Advice("Wait")


def effective(
    asked: MigrationPolicy | None,
    host: MigrationPolicy | None,
    everywhere: MigrationPolicy | None = None,
    *,
    target_tls: bool,
    post_copy: bool,
) -> EffectivePolicy | str:
    """The policy with all defaults filled in, or a sentence on what cannot be done.

    What the migration does not say is the source's to say, and then the operator's settings' (`everywhere`).
    `post_copy`: whether Auto may count on it.
    """
    merged: dict[str, Any] = {}
    for each in (everywhere, host, asked):
        merged |= each.wire() if each else {}
    try:
        policy = MigrationPolicy.model_validate(merged)
    except ValidationError as error:
        given = " and the operator's --migration-policy" if everywhere else ""
        wrong = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        return f"with the source's spec.migration.policy{given}: {wrong}"
    defaults = _defaults(policy.mode or "PreCopy", target_tls=target_tls, post_copy=post_copy)
    return EffectivePolicy.model_validate(defaults | policy.wire())


def _defaults(mode: str, *, target_tls: bool, post_copy: bool) -> dict[str, str]:
    stuck = "PostCopy" if mode in SWITCHING else "Abort"
    slow_down = mode == "Auto" and not post_copy
    return {
        "onTimeout": stuck,
        "autoConverge": "Enabled" if slow_down else "Disabled",
        "tls": "Enabled" if target_tls else "Disabled",
    }


def prepares_post_copy(policy: EffectivePolicy, *, post_copy: bool) -> bool:
    """Whether QEMU is told from the start that it may come to post-copy."""
    return policy.mode == "PostCopy" or (policy.mode == "Auto" and post_copy)


def bandwidth_mib(policy: EffectivePolicy) -> int:
    """The bandwidth limit in MiB a second, at least 1; 0 for none."""
    return max(parse_quantity(policy.bandwidth) // MIB, 1) if policy.bandwidth else 0


def completion_seconds(policy: EffectivePolicy, size: int) -> float:
    """The completion time-out for so many bytes; fewer than 2 GiB count as 2."""
    return policy.completion_timeout_seconds_per_gib * max(size / GIB, 2.0)


def progress_due(written: float | None, elapsed: float, least: float) -> bool:
    """Whether progress is to be written, `elapsed` seconds into a copy; it was `written` seconds in before, or never.

    A write is at least `least` seconds, and a factor of 10/9, later than the one before it. So there are at most 11
    until 10 * least seconds, and log(T / (10 * least)) / log(10 / 9) more until T seconds: with 5 s 51 in an hour and
    81 in a day. The completion time-out bounds T.
    """
    if written is None or elapsed < written:  # a new job: that of a broken post-copy which goes on
        return True
    return elapsed - written >= max(least, elapsed / WRITE_SHARE)


def advise(policy: EffectivePolicy, progress: Progress) -> Advice:
    """The next step of a copy that is under way: the same progress always gives the same one."""
    if progress.switched or progress.suspended:
        return WAIT
    time_out = _timed_out(policy, progress)
    if time_out:
        return replace(_give_up(policy, progress, time_out), time_out=time_out)
    if progress.post_copy and _wants_post_copy(policy, progress):
        return Advice("PostCopy", "what is left follows the guest to the target")
    return _limit(progress, downtime_limit_ms(policy, progress))


def downtime_limit_ms(policy: EffectivePolicy, progress: Progress) -> int:
    """The downtime limit for now: a step more with each pass, all of it when half the completion time-out is over.

    The first two passes have the first step: whether what is written in a pass fits is first seen at the end of them.
    """
    pace = completion_seconds(policy, progress.size) / 2 / STEPS
    late = progress.iteration > FIRST_PASSES
    step = max(progress.iteration - FIRST_PASSES, int(progress.elapsed / pace)) if late else 0
    return max(policy.max_downtime_milliseconds * min(1 + step, STEPS) // STEPS, 1)


def _timed_out(policy: EffectivePolicy, progress: Progress) -> str:
    if progress.elapsed > completion_seconds(policy, progress.size):
        return "Completion"
    return "Progress" if progress.stalled > policy.progress_timeout_seconds else ""


def _wants_post_copy(policy: EffectivePolicy, progress: Progress) -> bool:
    if policy.mode == "PostCopy":
        return progress.iteration >= PASSES_BEFORE_POSTCOPY
    if policy.mode == "PreCopy":
        return False
    return progress.iteration >= PASSES_BEFORE_DOUBT and progress.dirty_rate >= TOO_FAST * progress.bandwidth > 0


def _give_up(policy: EffectivePolicy, progress: Progress, time_out: str) -> Advice:
    why = _words(policy, progress, time_out)
    told = f"{why}; {_rates(progress)}"
    if policy.on_timeout == "Abort":
        return Advice("Abort", told)
    if policy.on_timeout == "PostCopy" and progress.post_copy:
        return Advice("PostCopy", told)
    if progress.elapsed > _time_out_at(policy, progress, time_out) + FORCE_SECONDS:
        return Advice("Suspend", f"{told}; the guest's CPUs are stopped for the copy to end")
    # Said for as long as that takes: rates in it would have it written again and again.
    return replace(_limit(progress, MOST_DOWNTIME_MS), detail=f"{why}; it switches over whatever the downtime")


def _time_out_at(policy: EffectivePolicy, progress: Progress, time_out: str) -> float:
    if time_out == "Completion":
        return completion_seconds(policy, progress.size)
    return progress.elapsed - progress.stalled + policy.progress_timeout_seconds


def _words(policy: EffectivePolicy, progress: Progress, time_out: str) -> str:
    if time_out == "Progress":
        return f"for {policy.progress_timeout_seconds} s what is left did not get less than before"
    return f"it took longer than {completion_seconds(policy, progress.size):g} s"


def _rates(progress: Progress) -> str:
    return f"the guest writes {progress.dirty_rate // MIB} MiB/s and {progress.bandwidth // MIB} MiB/s are copied"


def _limit(progress: Progress, milliseconds: int) -> Advice:
    if progress.downtime_limit_ms in (None, milliseconds):
        return WAIT
    return Advice("SetMaxDowntime", milliseconds=milliseconds)
