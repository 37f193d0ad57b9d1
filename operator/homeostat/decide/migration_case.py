# SPDX-License-Identifier: Apache-2.0
"""What the next step of a migration is decided on, and what is decided: the two ends of homeostat.decide.migration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from homeostat.api import actions as act
from homeostat.api import reasons
from homeostat.api.migration import IntentStatus, MarksStatus, VirtualMachineMigration
from homeostat.decide.migration_copy import Names
from homeostat.decide.migration_policy import WAIT, Advice
from homeostat.decide.migration_table import Row, Side, job
from homeostat.decide.view import Say

LOOK_SECONDS = 2.0
ASK_AGAIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class CallEnded:
    """What the call that migrates said in the end. `refused`: libvirt's words say that nothing was begun.

    `no_post_copy`: that was because the target cannot do post-copy.
    """

    message: str
    refused: bool = False
    no_post_copy: bool = False


@dataclass(frozen=True, slots=True)
class MigrationView:
    """All that is known when a migration with an intent is decided on.

    Both hosts were asked after the object was read. `since` is when this pair of observations was first seen
    (`first_seen`). `calling`: the call that migrates has not returned yet in this process; `ended` what it said,
    `called` how many seconds ago it was made: a broken post-copy is resumed once that is `resume` seconds.
    `listed`: the target is among the VM's recorded candidates; `hands_off` says why it will not be, if so. `vm_stops`
    says why the VM is not to run any more, if so; `abandoned` names a silent host that its owner, who deletes it, gave
    up. `advice` is what the policy makes of the progress; `request` what to
    call libvirt with. `untold` is what a host said that was asked for its job and did not tell it; `refused` the number
    of the row in which the last step was refused, and libvirt's words. `volumes` are the names in each (Hypervisor,
    pool) of disks that are copied, None when they were not looked at; `volume_error` is what libvirt said when it
    refused to make one.
    """

    source: Side
    target: Side
    since: datetime
    now: datetime
    grace: float
    request: act.Migrate
    calling: bool = False
    called: float = math.inf
    resume: float = 30.0
    ended: CallEnded | None = None
    listed: bool = True
    hands_off: str = ""
    abandoned: str = ""
    vm_stops: str = ""
    advice: Advice = WAIT
    untold: str = ""
    refused: tuple[str, str] = ("", "")
    volumes: Mapping[tuple[str, str], Names] | None = None
    volume_error: str = ""


@dataclass(frozen=True, slots=True)
class MigrationDecision:
    """What to report (a row of reasons.MIGRATION), the one action to perform, when to look again (seconds).

    `marks` are written before the action is performed, except before a source is frozen, which waits for nothing.
    `look_at_volumes`: nothing may be done before the pools of disks that are copied were asked.
    """

    say: Say
    row: Row
    evidence: str
    action: act.MigrationAction | None = None
    marks: MarksStatus | None = None
    ambiguous: bool = False
    look_at_volumes: bool = False
    requeue_after: float | None = LOOK_SECONDS

    @property
    def finished(self) -> bool:
        """Whether the attempt has ended."""
        return reasons.MIGRATION[self.say.reason].ready != "Unknown"


@dataclass(frozen=True, slots=True)
class Case:
    """A migration, its intent, what is known, and the row that fits."""

    migration: VirtualMachineMigration
    intent: IntentStatus
    view: MigrationView
    row: Row
    evidence: str

    @property
    def marks(self) -> MarksStatus:
        """What was done so far that a host does not show."""
        return self.migration.status.marks or MarksStatus()

    @property
    def unasked(self) -> bool:
        """Whether it is certain that libvirt was not asked to migrate."""
        return self.marks.not_asked is not None and self.migration.status.start_time is None

    @property
    def twice(self) -> bool:
        """Whether the same pair was seen before, so that the target was looked at after the source."""
        return self.view.since < self.view.now

    @property
    def stop(self) -> str:
        """Why the migration is to be stopped; "" when it is not."""
        if self.migration.metadata.deleting:
            return "the migration is being deleted"
        return "spec.abort is Requested" if self.migration.spec.abort else self.view.vm_stops

    @property
    def settled(self) -> bool:
        """Whether the same pair has been seen for the grace period."""
        return self.view.now - self.view.since >= timedelta(seconds=self.view.grace)

    @property
    def idle(self) -> bool:
        """Whether neither side has a job."""
        return job(self.view.source) == job(self.view.target) == "-"


def say(case: Case, reason: str, detail: str = "", **fields: object) -> MigrationDecision:
    """Return the decision that says this of the row that fits, and has these fields."""
    return MigrationDecision(Say(reason, detail), case.row, case.evidence, **fields)  # type: ignore[arg-type]


def after_grace(case: Case, reason: str, action: act.MigrationAction) -> MigrationDecision:
    """End or remove something, when the same was seen for the grace period. The rows that do so are without jobs."""
    left = case.view.grace - (case.view.now - case.view.since).total_seconds()
    if left > 0:
        return say(case, reason, requeue_after=max(min(left, LOOK_SECONDS), 0.05))
    return say(case, reason, action=action, requeue_after=0.0)


def joined(*details: str) -> str:
    """Return what is said of these details in one."""
    return "; ".join(detail for detail in details if detail)


def asked_lately(mark: datetime | None, now: datetime) -> bool:
    """Whether a step was asked for so lately that it may not be seen yet.

    A mark is written before its step is taken, so it proves nothing: a step that is not seen is taken again.
    """
    return mark is not None and (now - mark).total_seconds() < ASK_AGAIN_SECONDS
