# SPDX-License-Identifier: Apache-2.0
"""When a VM whose disks, definition or start failed is tried again."""

from __future__ import annotations

from datetime import timedelta

from homeostat.api import actions as act
from homeostat.api.observed import ACTIVE_STATES
from homeostat.decide import wanted
from homeostat.decide.runstrategy import ASKED
from homeostat.decide.view import Decision, Failure, Say
from homeostat.decide.vm_case import Case

SHORT_RUN_SECONDS = 60
"""A process that ends sooner than this after its start counts as a failed start."""
_COUNTED = ("StartFailed", "DefineFailed", "DiskFailed", "CrashLoop", "RecordLost")


def backing_off(case: Case, reason: str) -> Decision | None:
    """Wait after a failure: one that just happened is counted, one counted before is waited for."""
    failure, status = case.view.failure, case.vm.status
    if failure is not None:
        return Decision(Say(_failed_at(failure, reason), failure.message), failed=failure)
    if _short_run(case):
        return _count_short_run(case)
    if status.start_failures is None or status.start_failures.retry_time is None:
        return None
    left = (status.start_failures.retry_time - case.now).total_seconds()
    if left <= 0:
        return None
    kept = status.reason if status.reason in _COUNTED else reason
    return Decision(Say(kept, status.start_failures.last_message or ""), requeue_after=left + 0.05)


def undefinable(case: Case) -> Decision | None:
    """Wait after a definition for a running process was refused: that ends the process no more than it starts one."""
    failure, status = case.view.failure, case.vm.status
    if failure is not None and isinstance(failure.action, act.Define):
        return Decision(Say("DefineFailed", failure.message), failed=failure)
    failures = status.start_failures
    if status.reason != "DefineFailed" or failures is None or failures.retry_time is None:
        return None
    left = (failures.retry_time - case.now).total_seconds()
    return Decision(Say("DefineFailed", failures.last_message or ""), requeue_after=left + 0.05) if left > 0 else None


def _failed_at(failure: Failure, otherwise: str) -> str:
    if isinstance(failure.action, act.CreateVolume):
        return "DiskFailed"
    return "DefineFailed" if isinstance(failure.action, act.Define) else otherwise


def _short_run(case: Case) -> bool:
    """Whether status still says that it runs, and since less than a minute. A guest that was asked ends in time."""
    status = case.vm.status
    if status.reason in ASKED:
        return False
    was_running = status.domain is not None and status.domain.state in ACTIVE_STATES and status.state == "Running"
    return was_running and status.since is not None and case.now - status.since < timedelta(seconds=SHORT_RUN_SECONDS)


def _count_short_run(case: Case) -> Decision:
    failures, start = case.vm.status.start_failures, act.Start("", wanted.domain_uuid(case.vm))
    note = Failure(start, "it went off less than a minute after its start")
    first = failures is None or failures.count == 0
    return Decision(Say("Starting" if first else "CrashLoop", note.message), failed=note)
