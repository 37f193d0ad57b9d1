# SPDX-License-Identifier: Apache-2.0
"""The results as a page of the documentation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from homeostat.reconcile.settings import Settings
from tests.bench import processes
from tests.bench.creation import Alone, Creation, Round
from tests.bench.figures import estimate, median
from tests.bench.healing import HEALTHY, TROUBLED, Healing
from tests.bench.migration import Migration, Pair, Trip, Trips, Writes
from tests.bench.requests import READS

PAGE = Path(__file__).parent.parent.parent / "docs/benchmarks.md"

INTRODUCTION = """# Benchmarks

Written by `make bench`, never by hand. `make bench BENCH_ARGS="-n 50"` repeats it: as root, on a control plane and
libvirt hosts that it makes on this machine and removes. Seconds are those of the machine below, on which API server,
etcd, both hosts, all guests and the operator share the CPUs; nothing passes or fails on them.
"""


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured."""

    creation: Creation
    alone: Alone
    healing: Healing
    migration: Migration
    command: str


def page(results: Results) -> str:
    """The page, in Markdown."""
    parts = (_machine(results), _creation(results.creation), _writes(results), _healing(results.healing))
    return "\n".join([INTRODUCTION, *(line for part in parts for line in part), *migrations(results.migration)])


def _machine(results: Results) -> Iterable[str]:
    yield f"Measured on {datetime.now(UTC):%Y-%m-%d} with `{results.command}`, shipped settings:"
    yield ""
    yield from (f"- {line}" for line in processes.machine())
    libraries = ", ".join(f"{name} {version(name)}" for name in ("kopf", "kubernetes", "libvirt-python", "pydantic"))
    yield f"- {libraries}"
    yield ""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)
    yield ""


def _creation(creation: Creation) -> Iterable[str]:
    bare, operator = ([each.seconds for each in creation.of(way)] for way in ("bare", "operator"))
    yield f"## {creation.count} VMs from nothing to running"
    yield ""
    yield (
        "64 MiB, a blank disk, nothing to boot. Bare: a loop on libvirt-python with as many threads as the operator has"
        " workers makes the volume, defines the XML that the operator renders, and starts it; the clock stops when the"
        " last start returns. Operator: from the start of `kubectl apply` of one file until each status says Running"
        " and the CPUs of each QEMU run. By turns, on the same hosts; the operator is not there during a bare round."
    )
    yield ""
    yield (
        f"Median {median(operator):.2f} s with the operator, {median(bare):.2f} s bare: ratio **{creation.ratio:.2f}**"
        f" (each round to the bare one before it: {_listed(creation.pairs)}). Aim: 1.15 at 50 VMs."
    )
    yield ""
    yield from _table(
        ("round", "seconds", "CPUs busy before", "spread", "CPU seconds"),
        (
            (each.way, f"{each.seconds:.2f}", f"{each.busy_before:.0%}", _spread(each), _cpu(each))
            for each in creation.rounds
        ),
    )


def _spread(one: Round) -> str:
    return " + ".join(str(number) for _host, number in sorted(one.spread.items()))


def _cpu(one: Round) -> str:
    named = {name: seconds for name, seconds in one.cpu.items() if name != "machine"}
    rest = {"all else": one.cpu["machine"] - sum(named.values())}
    ordered = sorted(named.items(), key=lambda item: -item[1]) + list(rest.items())
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in ordered if seconds >= 0.05)


def _writes(results: Results) -> Iterable[str]:
    yield "## Requests to the API server"
    yield ""
    slow = sum(each >= 5 for each in results.alone.starts)
    yield (
        f"A VM created alone ({len(results.alone.writes)} of them, Running after {_listed(results.alone.starts)} s,"
        f" {slow} of them after 5 s or more): {_counts(results.alone.writes)} writes to its object from its creation"
        " until Running is reported. Aim: 3 or fewer when it takes under 5 s."
    )
    yield ""
    yield from _requests(results.creation)


def _requests(creation: Creation) -> Iterable[str]:
    rounds = creation.of("operator")
    starts, writes = [s for each in rounds for s in each.starts], [w for each in rounds for w in each.writes]
    yield (
        f"{creation.count} at once (Running after {min(starts):.1f} to {max(starts):.1f} s, median"
        f" {median(starts):.1f} s): {_counts(writes)} writes."
    )
    yield ""
    yield f"Requests for each VM, from the API server's own `apiserver_request_total`, mean of {len(rounds)} rounds:"
    yield ""
    total: Counter[str] = sum((each.requests for each in rounds), Counter())
    share = len(rounds) * creation.count
    ordered = sorted(total.items(), key=lambda item: (item[0].split()[0] in READS, item[0]))
    yield from _table(("request", "for each VM"), ((name, f"{number / share:.2f}") for name, number in ordered))
    yield "`kubectl apply` itself makes one GET and the POST. Hypervisors meanwhile:"
    yield ""
    yield from _table(
        ("round", "Hypervisor", "writes", "transitions", "most others in 10 s (aim: 1)"),
        ((number, *row) for number, each in enumerate(rounds, 1) for row in each.hypervisors),
    )


def summary(creation: Creation) -> Iterable[str]:
    """What was measured of the creation of many VMs."""
    return [*_creation(creation), *_requests(creation)]


def _healing(healing: Healing) -> Iterable[str]:
    yield "## QEMU killed, and running again"
    yield ""
    yield (
        "SIGKILL to one VM after the other on one host, until a new process' CPUs run and status says Running (which is"
        " written after that). In trouble: the other host's libvirtd is stopped (TCP is accepted, nothing is answered),"
        " and so is the QEMU of another VM on the same host. Percentiles in seconds with their 95 % bootstrap"
        " intervals. Aim: 1 s and 3 s."
    )
    yield ""
    yield from _table(
        ("", "kills", "median", "p99", "process alone, median", "most", "CPUs busy before"),
        (_heal_row(healing, condition) for condition in (HEALTHY, TROUBLED)),
    )
    if healing.overdue:
        yield f"{healing.overdue} of the VMs were not back after 60 s, and count as 60 s."
        yield ""


def _heal_row(healing: Healing, condition: str) -> Sequence[object]:
    seconds, ran = healing.seconds[condition], healing.processes[condition]
    busy = " ".join(f"{each:.0%}" for each in healing.busy[condition])
    median_, high = estimate(seconds, 0.5), estimate(seconds, 0.99)
    return condition, len(seconds), median_, high, estimate(ran, 0.5), f"{max(seconds):.2f}", busy


def migrations(migration: Migration) -> Iterable[str]:
    """What was measured of live migrations."""
    yield "## Live migration"
    yield ""
    yield (
        "One guest there and back, by the operator and by `virsh migrate` with the same flags and limits, by turns; the"
        " operator is not there while virsh works. Blank: 64 MiB, nothing to boot. Booted: 128 MiB, an idle Linux."
    )
    yield ""
    yield (
        "Three things are compared. From apply to Succeeded: from the creation of the VirtualMachineMigration until"
        " Migrated is written, to virsh from its start to its end. The migration proper: from the start of QEMU on the"
        " target until its end on the source, which is libvirt's own part. Down: while no CPU of the guest runs, by the"
        " lab's recorder; the operator raises the limit of that step by step while it copies, and virsh keeps the first"
        " step. Medians in seconds; ratios are medians of the pairs' own."
    )
    yield ""
    yield from _table(
        (
            "guest",
            "limit/s",
            "pairs",
            "apply to Succeeded",
            "virsh",
            "ratio",
            "migration proper",
            "down",
            "operator before and after it",
            "CPUs busy",
        ),
        (_trips_row(trips) for trips in migration.trips),
    )
    yield "Aim: ratios of 1.05 or less. In a column with two figures the operator's is the first; their ratio follows."
    yield ""
    yield from _emptied(migration)
    yield from _migration_writes(migration)


def _trips_row(trips: Trips) -> Sequence[object]:
    before, after = (median([getattr(pair.operator, what) for pair in trips.pairs]) for what in ("before", "after"))
    return (
        trips.guest,
        trips.bandwidth or "none",
        len(trips.pairs),
        *(f"{median([each.total for each in way]):.2f}" for way in _ways(trips.pairs)),
        f"**{trips.ratio('total'):.2f}**",
        _both(trips, "libvirt"),
        _both(trips, "downtime", digits=3),
        f"{before:.2f} and {after:.2f}",
        " ".join(f"{each:.0%}" for each in trips.busy),
    )


def _ways(pairs: Sequence[Pair]) -> tuple[list[Trip], list[Trip]]:
    return [pair.operator for pair in pairs], [pair.bare for pair in pairs]


def _both(trips: Trips, what: str, digits: int = 2) -> str:
    operator, bare = (median([getattr(each, what) for each in way]) for way in _ways(trips.pairs))
    return f"{operator:.{digits}f}, {bare:.{digits}f}: {trips.ratio(what):.2f}"


def _emptied(migration: Migration) -> Iterable[str]:
    operator, bare = ([getattr(each, way) for each in migration.emptied] for way in ("operator", "bare"))
    ratios = [each.operator / each.bare for each in migration.emptied]
    yield (
        f"{migration.count} blank guests leave one host, {migration.outbound} at a time as Hypervisors have it by"
        f" default: {median(operator):.2f} s from `kubectl patch` until all are Migrated ({_listed(operator)}),"
        f" {median(bare):.2f} s in a loop on libvirt-python with {migration.outbound} threads ({_listed(bare)}): ratio"
        f" **{median(ratios):.2f}** (each to the bare one beside it: {_listed(ratios)})."
    )
    yield ""


def _migration_writes(migration: Migration) -> Iterable[str]:
    yield (
        "What is written because of one migration: to its object from its creation until Migrated, and all requests"
        " that write, to VMs, Hypervisors and as Events too, until ten seconds after that. Aim: a cap that does not"
        " grow with the duration."
    )
    yield ""
    yield from _table(
        ("guest", "limit/s", "seconds", "writes to the object", "writes in all", "of these"),
        (
            (each.guest, each.bandwidth or "none", f"{each.seconds:.1f}", each.own, each.all, _named(each.requests))
            for each in migration.writes
        ),
    )
    yield _growth(migration.writes)
    yield ""


def _growth(writes: Sequence[Writes]) -> str:
    """What a longer migration writes more."""
    short, long = (pick(writes, key=lambda each: each.seconds) for pick in (min, max))
    return (
        f"The longest, {long.seconds:.0f} s, writes {long.own} times to its object, and the shortest, in"
        f" {short.seconds:.0f} s, {short.own} times. Progress is written ever more seldom: an hour of it costs at most"
        f" {_most(3600)} writes, a day {_most(86400)}, and the completion time-out ends it."
    )


def _most(seconds: float) -> int:
    """The bound that progress_due keeps, with the shipped settings."""
    least = 10 * Settings().migration_write_seconds
    return 11 + int(math.log(seconds / least) / math.log(10 / 9))


def _named(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items()) if n > 0 and name.split()[0] not in READS)


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _counts(values: Sequence[int]) -> str:
    return " and ".join(f"{value} ({number} VMs)" for value, number in sorted(Counter(values).items()))
