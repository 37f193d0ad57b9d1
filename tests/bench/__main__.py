# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.bench import creation, healing, migration
from tests.bench.bed import Bed
from tests.bench.report import PAGE, Results, migrations, page, summary


def main() -> None:
    """`python -m tests.bench`: measure, and write docs/benchmarks.md; with --smoke, print a small run's page."""
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that nothing is left behind
    count, rounds, alone, kills, series = (4, 1, 2, 6, 1) if args.smoke else (args.n, 4, 10, 38, 4)  # two CPUs take 40
    movers, journeys = (3, 1) if args.smoke else (20, 4)
    rounds, series, journeys = args.rounds or rounds, args.rounds or series, args.rounds or journeys
    with Bed(args.profile) as bed:
        if args.only_migration:
            print("\n".join(migrations(migration.measure(bed, movers, journeys, smoke=args.smoke))))
            return
        made = creation.measure(bed, count, rounds)
        if args.only_creation:
            print("\n".join(summary(made)))
            return
        one_by_one = creation.measure_alone(bed, alone)
        healed = healing.measure(bed, kills, series, settled=not args.smoke)
        moved = migration.measure(bed, movers, journeys, smoke=args.smoke)
    options = f"-n {count}" + (f" --rounds {args.rounds}" if args.rounds else "")
    command = "python -m tests.bench --smoke" if args.smoke else f'make bench BENCH_ARGS="{options}"'
    text = page(Results(made, one_by_one, healed, moved, command))
    if args.smoke:
        print(f"\n{text}")
    else:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure the operator on real hosts.")
    parser.add_argument("--smoke", action="store_true", help="a small run that shows that measuring works")
    parser.add_argument("-n", type=int, default=50, help="how many VMs are created at once (default: 50)")
    parser.add_argument("--rounds", type=int, help="how often each thing is done each way")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--only-creation", action="store_true", help="print that part and write no page")
    only.add_argument("--only-migration", action="store_true", help="print that part and write no page")
    parser.add_argument("--profile", type=Path, help="profile the operator of each round into this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
