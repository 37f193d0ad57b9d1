# SPDX-License-Identifier: Apache-2.0
"""The decision table of live migration: what was seen on both hosts, and whose copy of the VM counts.

docs/migration.md shows this table; a test compares them. Rows exclude each other, so their order says nothing. What no
row is for is decided by nobody but a person.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from homeostat.api.observed import Absent, Checkpoint, Unknown


@dataclass(frozen=True, slots=True)
class OutOfService:
    """The host is silent, and a person declared that nothing runs there."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The host has the domain. `job` is Out, In, Other, Unknown (it did not say) or None.

    `checkpoints` are those that libvirt has metadata of. `lost`: it is off by libvirt's word, nothing says how it went
    off, and a process was the last that was seen: one may be left. `cpus` says whether the CPUs' time was seen to
    advance, None when nobody looked; it decides nothing.
    """

    state: str
    reason: str
    job: str | None = None
    persistent: bool = True
    lost: bool = False
    cpus: bool | None = None
    checkpoints: tuple[Checkpoint, ...] = ()


Side = Unknown | OutOfService | Absent | Seen

# What a side is, in one word each; the keys of the patterns below.
WORDS = {
    "unknown": "unknown",
    "out": "out of service",
    "absent": "absent",
    "off": "off",
    "off-migrated": "off (Migrated)",
    "off-lost": "off with its record lost",
    "running": "running",
    "arrived": "running (Migrated)",
    "running-postcopy": "running (Postcopy)",
    "running-postcopy-failed": "running (PostcopyFailed)",
    "held": "paused (Migration, APIError)",
    "starting": "paused (StartingUp)",
    "paused": "paused (User)",
    "stuck": "paused (other)",
    "postcopy": "paused (Postcopy)",
    "postcopy-failed": "paused (PostcopyFailed)",
    "other": "other",
}
_RUNNING = {"Migrated": "arrived", "Postcopy": "running-postcopy", "PostcopyFailed": "running-postcopy-failed"}
_PAUSED = {
    "Migration": "held",
    "APIError": "held",  # libvirt 11; 9.0 leaves Migration after a resume that failed (both measured)
    "StartingUp": "starting",
    "Postcopy": "postcopy",
    "PostcopyFailed": "postcopy-failed",
}
WITHOUT_PROCESS = frozenset({"unknown", "out", "absent", "off", "off-migrated", "off-lost"})
HALVES = frozenset({"postcopy", "postcopy-failed", "running-postcopy", "running-postcopy-failed"})
UNTOLD = "untold"


def kind(side: Side) -> str:
    """A side in one word of WORDS."""
    match side:
        case Unknown():
            return "unknown"
        case OutOfService():
            return "out"
        case Absent():
            return "absent"
        case Seen(state="Shutoff", lost=True):
            return "off-lost"
        case Seen(state="Shutoff", reason=reason):
            return "off-migrated" if reason == "Migrated" else "off"
        case Seen(state="Running" | "Blocked" | "ShuttingDown" | "PMSuspended", reason=reason):
            return _RUNNING.get(reason, "running")
        case Seen(state="Paused", reason=reason) if reason in _PAUSED:
            return _PAUSED[reason]
        case Seen(state="Paused" | "Crashed", persistent=False):
            return "other"  # libvirt makes a target persistent before its CPUs run: this one may never have run
        case Seen(state="Paused", reason="User"):
            return "paused"
        case Seen(state="Paused" | "Crashed"):
            return "stuck"
        case _:
            return "other"


def job(side: Side) -> str:
    """The job on a side: "-", Out, In, or ? for one that is no migration or that the host did not tell.

    What a half of a post-copy is in the middle of is known even then: UNTOLD. libvirt does not tell while it waits for
    the other host, and that may be for two minutes (measured).
    """
    if not isinstance(side, Seen) or kind(side) in WITHOUT_PROCESS or side.job is None:
        return "-"
    if side.job == "Unknown" and kind(side) in HALVES:
        return UNTOLD
    return side.job if side.job in ("Out", "In") else "?"


def described(side: Side) -> str:
    """One side's observation in words, without times."""
    if isinstance(side, Unknown):
        return f"Unknown ({side.reason})"
    if not isinstance(side, Seen):
        return kind(side)
    job_ = f", job {side.job}" if side.job else ""
    return f"{side.state}/{side.reason}{job_}{'' if side.persistent else ', transient'}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which kinds a side may be of, and with which jobs. "*" stands for every job but one that is not known."""

    kinds: frozenset[str]
    jobs: str = "-"

    def fits(self, side: Side) -> bool:
        """Whether this side is one of these."""
        there = job(side)
        return kind(side) in self.kinds and (there in self.jobs.split("|") or (self.jobs == "*" and there != "?"))

    def text(self) -> str:
        """The pattern as the page shows it."""
        words = ", ".join(text for name, text in WORDS.items() if name in self.kinds)
        bare = self.kinds <= WITHOUT_PROCESS or self.jobs == "*"
        return words if bare else f"{words}; job {self.jobs.replace('|', ' or ')}"


@dataclass(frozen=True, slots=True)
class Row:
    """A row: what is seen, whose copy counts, the reason that is given, and what is done (a name in decide.migration).

    `confirmed` and `locks` restrict the row to migrations that were started with the CPUs stopped on the target, and to
    VMs all of whose disks are under locks that hold between hosts; None: it is for all.
    """

    number: str
    source: Pattern
    target: Pattern
    owner: str
    reason: str
    effect: str
    basis: str
    confirmed: bool | None = None
    locks: bool | None = None

    def fits(self, source: Side, target: Side, *, confirmed: bool, locks: bool) -> bool:
        """Whether this row is about what was seen."""
        restricted = self.confirmed not in (None, confirmed) or self.locks not in (None, locks)
        return not restricted and self.source.fits(source) and self.target.fits(target)

    def restriction(self) -> str:
        """What the row is restricted to, as the page shows it."""
        words = {
            (True, None): "switchover Confirmed",
            (False, None): "switchover Automatic",
            (None, True): "with locks",
            (None, False): "without locks",
        }
        return words.get((self.confirmed, self.locks), "")


def _is(*kinds: str, jobs: str = "-") -> Pattern:
    return Pattern(frozenset(kinds), jobs)


RUNS = ("running", "arrived")
GONE = ("absent", "out")
OFF = ("off", "off-migrated")
INCOMING = ("held", "starting")
POSTCOPY, BROKEN = ("running-postcopy", "postcopy"), ("running-postcopy-failed", "postcopy-failed")
BEFORE = (*GONE, *OFF, "off-lost", "unknown", *INCOMING)
"""What a target is before it has executed anything, or is not known to have."""
EXECUTED = (*RUNS, "paused", "stuck")
ENDED = ("absent", "off", "off-migrated", "out")

EFFECTS = {
    "wait": "wait",
    "guide": "wait; tune, time out or abort",
    "settle": "make the target's definition persistent, remove the source's after the grace; finished",
    "roll back": "call it if it was not called yet; else remove what is off on the target after the grace; finished",
    "end source": "after the grace end the source's process, then remove its definition",
    "resume source": "let the source's CPUs run",
    "resume source if ours": "let the source's CPUs run if we stopped them; finished",
    "freeze": "stop the source's CPUs at once; Ambiguous",
    "freeze if it lasts": "stop the source's CPUs when the same was seen twice; Ambiguous",
    "end target": "after the grace end the target's process, then remove its definition",
    "resume target": "let the target's CPUs run",
    "resume target if ours": "let the target's CPUs run if we ended the source in row 6b; else Ambiguous",
    "resume post-copy": "when both sides are broken, ask libvirt to go on",
    "down": "finished: the VM is down",
    "ended": "after the grace remove the source's definition; finished: it arrived and went off",
    "doubt": "wait, without locks Ambiguous; finished when libvirt refused to begin and no job was ever seen",
    "ask": "Ambiguous: a person decides",
}
"""What a row has done, by the name of its effect."""

ROWS = (
    Row("1", _is(*RUNS, "paused", "stuck", jobs="Out"), _is(*BEFORE, jobs="-|In"), "Source", "Copying", "guide",
        "measured"),
    Row("1b", _is(*RUNS, "paused", "stuck", jobs="Out"), _is(*EXECUTED, *POSTCOPY, *BROKEN, "other", jobs="*"),
        "Unknown", "SplitBrain", "ask", "usually two looks that are not of one moment"),
    Row("2", _is("held", jobs="Out"), _is(*BEFORE, jobs="-|In"), "Libvirt", "SwitchingOver", "wait", "protocol v3"),
    Row("3", _is("held", "postcopy", jobs="Out"), _is(*EXECUTED, jobs="-|In"), "Target", "Confirming", "wait",
        "measured; becomes row 6 when libvirt gives up"),
    Row("3b", _is(*ENDED), _is(*EXECUTED, jobs="In"), "Target", "Confirming", "wait", "the end of Finish"),
    Row("4", _is(*ENDED), _is("arrived"), "Target", "Arrived", "settle", "measured"),
    Row("5", _is(*RUNS), _is(*GONE, *OFF), "Source", "NotMoved", "roll back", "measured"),
    Row("6", _is("held"), _is(*RUNS, "stuck"), "Target", "EndingSource", "end source",
        "measured: the reply to Finish was lost"),
    Row("6b", _is("held"), _is("paused"), "Target", "EndingSource", "end source",
        "as row 6; started with its CPUs stopped, it is complete, and row 24 lets it run"),
    Row("7", _is("held"), _is(*GONE), "Source", "Resuming", "resume source",
        "read in libvirt: the target was ended with its connection"),
    Row("7b", _is("held"), _is(*OFF, "off-lost"), "Target", "EndingSource", "end source",
        "measured: a definition on the target means that it executed, and went off"),
    Row("7c", _is(*ENDED), _is("running", "stuck"), "Target", "Arrived", "settle",
        "as row 4; the reason is the VM's matter"),
    Row("7d", _is(*ENDED), _is("paused"), "Target", "Arrived", "settle", "as row 7c", confirmed=False),
    Row("8", _is(*RUNS, "held", "paused", "stuck"), _is(*INCOMING, "paused", "stuck", jobs="In"), "Libvirt",
        "RollingBack", "wait", "the target ends itself when its connection ends"),
    Row("8b", _is("held", "paused", "stuck"), _is(*RUNS, jobs="In"), "Libvirt", "RollingBack", "wait", "as row 8"),
    Row("9", _is("held"), _is(*INCOMING), "Unknown", "NoOwner", "ask", "libvirt never leaves this"),
    Row("9b", _is(*RUNS), _is(*INCOMING), "Source", "LeftoverProcess", "ask", "as row 9"),
    Row("9c", _is(*ENDED, "off-lost"), _is(*INCOMING), "Unknown", "NoOwner", "ask", "as row 9"),
    Row("10", _is("held", "paused", "stuck"), _is("unknown"), "Unknown", "TargetMayRun", "ask",
        "read in libvirt: only a third party can tell"),
    Row("11", _is(*RUNS, "paused", "stuck"), _is(*RUNS), "Both", "SplitBrain", "freeze",
        "measured: the reply to Finish was lost and no lock held"),
    Row("11b", _is(*RUNS), _is("stuck"), "Both", "SplitBrain", "ask", "as row 11; the target has stopped since"),
    Row("11c", _is(*RUNS), _is("paused"), "Both", "SplitBrain", "ask", "as row 11b", confirmed=False),
    Row("11d", _is(*RUNS), _is(*RUNS, jobs="In"), "Both", "SplitBrain", "freeze if it lasts",
        "as row 11, before libvirt on the target has ended its job"),
    Row("12", _is(*RUNS), _is("unknown"), "Source", "TargetUnknown", "doubt", "measured: the lock refused the target",
        locks=True),
    Row("12b", _is(*RUNS), _is("unknown"), "Unknown", "TargetMayRun", "doubt", "measured", locks=False),
    Row("13", _is("unknown"), _is(*RUNS, "stuck", jobs="-|In"), "Target", "SourceUnknown", "wait",
        "it executes; the source is looked at when it is back"),
    Row("13b", _is("unknown"), _is("paused", jobs="-|In"), "Unknown", "SourceUnknown", "wait", "row 23 or row 24"),
    Row("14", _is("unknown"), _is(*INCOMING, jobs="-|In"), "Source", "SourceUnknown", "wait", "as row 8"),
    Row("15", _is("unknown"), _is(*GONE), "Source", "SourceUnknown", "wait", "it is presumed to run"),
    Row("15b", _is("unknown"), _is(*OFF, "off-lost"), "Target", "SourceUnknown", "wait", "as row 7b"),
    Row("16", _is("off", "off-lost", "out"), _is(*GONE), "Nobody", "VMDown", "down", "Nova calls this completed"),
    Row("16b", _is("absent"), _is("absent"), "Unknown", "MovedElsewhere", "ask",
        "libvirt makes the target's definition before it removes the source's: whoever has the VM is not the target"),
    Row("16c", _is("absent"), _is("out"), "Nobody", "VMDown", "down", "it was moved to a host that is out of service"),
    Row("17", _is(*ENDED, "off-lost"), _is(*INCOMING, jobs="In"), "Nobody", "RollingBack", "wait",
        "becomes row 16 or 16b"),
    Row("18", _is("off-migrated"), _is(*GONE, *OFF, "off-lost"), "Target", "ArrivedThenOff", "ended",
        "the protocol was done"),
    Row("18b", _is("absent", "off", "out"), _is(*OFF, "off-lost"), "Target", "ArrivedThenOff", "ended",
        "as row 7b, with the source gone"),
    Row("19", _is("postcopy", jobs="*"), _is(*POSTCOPY, *INCOMING, "unknown", jobs="*"), "Both", "PostCopying", "wait",
        "measured: ending either loses the VM"),
    Row("19b", _is("held", jobs="Out"), _is(*POSTCOPY, *BROKEN, jobs="*"), "Both", "PostCopying", "wait",
        "the source is shown so for a moment"),
    Row("19c", _is("unknown"), _is(*POSTCOPY, *BROKEN, jobs="*"), "Both", "PostCopying", "wait", "as row 19"),
    Row("20", _is("postcopy", "postcopy-failed", jobs="*"), _is(*BROKEN, jobs="*"), "Both", "PostCopyInterrupted",
        "resume post-copy", "measured; also after the source's libvirtd was restarted"),
    Row("20b", _is("postcopy-failed", jobs="*"), _is(*POSTCOPY, *INCOMING, "unknown", jobs="*"), "Both",
        "PostCopyInterrupted", "wait", "the target has not noticed yet"),
    Row("21", _is(*ENDED, "off-lost"), _is(*POSTCOPY, *BROKEN, jobs="*"), "Nobody", "MemoryLost", "ask",
        "the source held pages that are nowhere else"),
    Row("22", _is("postcopy", "postcopy-failed"), _is(*GONE, *OFF), "Nobody", "EndingSource", "end source",
        "read in libvirt: no way back"),
    Row("22b", _is("postcopy", "postcopy-failed", jobs=f"Out|In|{UNTOLD}"), _is(*GONE), "Nobody", "MemoryLost", "ask",
        "as row 22, and libvirt still has a job"),
    Row("22c", _is("postcopy", "postcopy-failed", jobs="Out"), _is(*OFF), "Target", "EndingSource", "end source",
        "measured: it went off on the target; libvirt keeps the job as long as the source's process is there"),
    Row("22d", _is("postcopy", "postcopy-failed", jobs=f"In|{UNTOLD}"), _is(*OFF), "Nobody", "MemoryLost", "ask",
        "as row 22b"),
    Row("23", _is(*RUNS), _is("paused"), "Source", "EndingTarget", "end target", "measured", confirmed=True),
    Row("24", _is("absent", "off-migrated"), _is("paused"), "Target", "Resuming", "resume target", "measured",
        confirmed=True),
    Row("24b", _is("off", "out"), _is("paused"), "Unknown", "NoOwner", "resume target if ours",
        "the source may have run on before it went off, and the target's memory be older than the disks",
        confirmed=True),
    Row("25", _is("paused", "stuck"), _is(*GONE), "Source", "NotMoved", "resume source if ours",
        "paused by somebody: not a matter of the migration"),
    Row("26", _is("unknown", "out"), _is("unknown"), "Unknown", "BothUnknown", "wait", ""),
    Row("26b", _is("absent", "off-migrated", "off", "off-lost"), _is("unknown"), "Unknown", "TargetUnknown", "wait",
        "the source has nothing to run"),
    Row("27", _is(*RUNS), _is("off-lost"), "Unknown", "ProcessMayBeLeft", "ask",
        "measured: a libvirtd that lost its record shows this while QEMU runs"),
    Row("27b", _is("off-lost"), _is(*EXECUTED, *OFF, "off-lost"), "Target", "ProcessMayBeLeft", "ask", "as row 27"),
)  # fmt: skip

OTHER_JOB = Row("28", _is(), _is(), "Unknown", "OtherJob", "wait", "a job that is no migration, or is not known")
NO_ROW = Row("none", _is(), _is(), "Unknown", "NoRow", "ask", "no row fits")


def rows_of(source: Side, target: Side, *, confirmed: bool, locks: bool) -> Iterator[Row]:
    """Every row that fits: one, or none."""
    if "?" in (job(source), job(target)):
        yield OTHER_JOB
        return
    yield from (row for row in ROWS if row.fits(source, target, confirmed=confirmed, locks=locks))


def row_of(source: Side, target: Side, *, confirmed: bool, locks: bool) -> Row:
    """The one row that fits what was seen; NO_ROW when none does."""
    return next(rows_of(source, target, confirmed=confirmed, locks=locks), NO_ROW)


def evidence(attempt: str, source: Side, target: Side) -> str:
    """16 hexadecimal digits that name a pair of observations of one attempt, times apart."""
    text = "\n".join((attempt, _facts(source), _facts(target)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _facts(side: Side) -> str:
    if not isinstance(side, Seen):
        return kind(side)
    # How many there are is part of it: the grace period begins anew with each that is redefined.
    checkpoints = f" checkpoints={len(side.checkpoints)}" if side.checkpoints else ""
    return f"{side.state}/{side.reason} job={side.job} persistent={side.persistent} lost={side.lost}{checkpoints}"
