# SPDX-License-Identifier: Apache-2.0
"""A migration with an intent, before libvirt is asked: nothing that a host shows is its doing.

The table (homeostat.decide.migration_table) reads what a migration has left on two hosts. Read before there was one, it
would take a definition that is off on the target for a VM that ran there, and a silent target for one that may have the
VM. So until libvirt is asked an attempt may end at any time, and all it does to a host is to make its volumes, and to
remove a definition of the VM that is off on the target.
"""

from __future__ import annotations

from homeostat.api import actions as act
from homeostat.api.observed import Unknown
from homeostat.decide import migration_checkpoints as checkpoints
from homeostat.decide import migration_copy as copies
from homeostat.decide.migration_case import Case, MigrationDecision, after_grace, say
from homeostat.decide.migration_table import RUNS, WITHOUT_PROCESS, Seen, described, job, kind
from homeostat.decide.migration_volumes import finish, volume_step

STILL = ("paused", "stuck")


def before(case: Case) -> MigrationDecision:
    """The next step of an attempt that libvirt was certainly not asked for."""
    if (over := _over(case)) is not None:
        # What was made for a copy would stay: a mark on the source's disk, too, from which nothing is started then.
        silent = case.marks.volume_made is not None and _silent(case)
        return say(case, "CleaningUp", silent) if silent else finish(case, *over)
    if (waits := _waits(case)) is not None:
        return say(case, *waits)
    if isinstance(case.view.target, Seen):
        return after_grace(case, "Preparing", act.UndefineStale(case.intent.target, case.intent.domain_uuid))
    return begin(case)


def begin(case: Case) -> MigrationDecision:
    """Call libvirt. Calling twice is harmless: libvirt refuses a second migration of a domain that is in one."""
    target = case.intent.target
    if kind(case.view.target) == "out":
        return finish(case, "TargetUnreachable", f"Hypervisor {target} is out of service")
    if not case.view.listed:
        return say(case, "Preparing", f"Hypervisor {target} is being recorded as a candidate of the VM")
    if (storage := volume_step(case, "Preparing", copies.prepare)) is not None:
        return storage
    marks = checkpoints.recorded(case.marks, case.view.source)
    marks = marks.model_copy(update={"asked": case.view.now, "not_asked": None})
    return say(case, "Preparing", action=case.view.request, marks=marks, requeue_after=1.0)


def _silent(case: Case) -> str:
    sides = ((case.intent.source, case.view.source), (case.intent.target, case.view.target))
    return "; ".join(f"{name} cannot be asked: {side.message}" for name, side in sides if isinstance(side, Unknown))


def _over(case: Case) -> tuple[str, str] | None:
    """Why nothing will be begun: a reason and what is to be said of it; None while it may be."""
    if case.marks.not_prepared:
        return "StorageNotReady", case.marks.not_prepared
    if case.stop:
        return "Aborted", case.stop
    if case.view.hands_off:
        return "NotMigratable", case.view.hands_off
    return _without_target(case) or _without_source(case)


def _without_target(case: Case) -> tuple[str, str] | None:
    target, name = case.view.target, f"Hypervisor {case.intent.target}"
    if kind(target) == "out":
        return "TargetUnreachable", f"{name} is out of service"
    if isinstance(target, Unknown):
        return ("TargetUnreachable", f"{name}: {target.message or target.reason}") if case.settled else None
    if kind(target) not in WITHOUT_PROCESS:
        return "NotMigratable", f"{name} has a process of the VM: {described(target)}"
    return None


def _without_source(case: Case) -> tuple[str, str] | None:
    """Once the same was seen twice: a look may fall between two states."""
    source = case.view.source
    if not case.twice or isinstance(source, Unknown) or job(source) != "-":
        return None
    if kind(source) in WITHOUT_PROCESS:
        return "VMDown", ""
    return ("VMNotRunning", f"it is {described(source)} on {case.intent.source}") if kind(source) in STILL else None


def _waits(case: Case) -> tuple[str, str] | None:
    """What has to pass before libvirt is asked: a reason and details; None when nothing has to."""
    source, target = case.view.source, case.view.target
    if isinstance(source, Unknown):
        return "SourceUnknown", source.message or source.reason
    if isinstance(target, Unknown):
        return "TargetUnknown", target.message or target.reason
    if kind(source) in RUNS:
        return ("OtherJob", case.view.untold) if job(source) != "-" else None
    moves = kind(source) not in WITHOUT_PROCESS and kind(source) not in STILL
    return (
        ("OtherJob", f"it is {described(source)}, which is not this migration's doing") if moves else ("Preparing", "")
    )
