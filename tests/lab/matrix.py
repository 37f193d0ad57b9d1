# SPDX-License-Identifier: Apache-2.0
"""Every effect of a scenario crossed with every fault, on the real, unchanged operator between real servers.

The scenarios are a VM's life, and its live migration. `python -m tests.lab.matrix` runs all points of both and writes
docs/matrix.md, with `--scenario migrate` that one's and its part of the page; `--points N --seed S` runs N of each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tests.controlplane import ControlPlane
from tests.controlplane.ports import allocate
from tests.lab.lab import Lab
from tests.lab.rig import ROOT, SHORT, Rig, hypervisor
from tests.operator_process import OperatorProcess

FAULTS = ("kill-before", "kill-after", "drop-reply", "late=3", "delay=3", "hang")
CALL = ("migrateSetMaxDowntime", "migratePerform3Params")
"""The call that migrates. Without its answer, or any sign that it was begun, a migration ends where it was."""
NEVER_ANSWERED = {(each, "hang") for each in CALL}
"""Left out: the call that migrates has no deadline, as it lasts as long as the migration; keep-alive ends it."""
PAGE = ROOT / "docs" / "matrix.md"
SETTINGS = SHORT | {"migration_grace_seconds": 3, "call_deadline_seconds": 4, "api_timeout_seconds": 4}
DISK = {"name": "data", "pool": "shared", "size": "1Mi", "deletionPolicy": "Delete"}
SECONDS = 90.0
MIGRATIONS = "virtualmachinemigrations"
SLOW = {"bandwidth": "2Mi"}
"""Slow enough to be seen on its way."""
ARRIVED = 8
"""Seconds after which what was held up for 3 has arrived."""


@dataclass(frozen=True)
class Effect:
    """The `occurrence`-th effect of this name in one run of a scenario."""

    name: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.name} {self.occurrence}"


@dataclass(frozen=True)
class Outcome:
    """How a point ended: seconds to the first aim, seconds from there to the second, and what was wrong, or "".

    Of a life: Running, and from deletion until gone. Of a migration: Finished, and until all says so.
    """

    first: float
    second: float
    wrong: str = ""
    stayed: str = ""
    """The reason of a migration that ended without a move."""

    def __str__(self) -> str:
        times = f"{self.first:.0f} / {self.second:.0f}"
        return self.wrong or (f"{times}, {self.stayed}" if self.stayed else times)


Run = tuple[Outcome, list[dict[str, Any]]]


def _settings() -> str:
    return ", ".join(f"`{name}` {value}" for name, value in SETTINGS.items())


class Bed:
    """A control plane, a lab of three hosts, and a proxy between them and the operator.

    A life is led on h1 and h2, which differ in the user that QEMU runs as. A migration is between h1 and its like, h3.
    """

    def __init__(self, name: str) -> None:
        self.name, self.directory = name, Path("/var/lib/homeostat") / name
        self._moved: str | None = None
        self.lab, self.plane = Lab.up(name, hosts=3, stock=2), ControlPlane(name)
        self.plane.up()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ports = list(allocate(self.directory, ("h1", "h2", "h3", "api")).values())
        self.rig = Rig(self.plane, self.lab, self.directory)
        options = ["--lease-seconds=0", *(f"--set={key}={value}" for key, value in SETTINGS.items())]
        self.operator = OperatorProcess(self.directory, self._kubeconfig(), *options)
        self.rig.kubectl("apply", "-f", str(ROOT / "crds"))
        self.rig.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(ROOT / "crds"))
        self._used: list[str] = []
        self._use("h1", "h2")

    def _use(self, *names: str) -> None:
        """Declare hosts, and have no VM go to others."""
        for name in set(self._used) - set(names):
            self.rig.patch("hv", name, {"spec": {"maintenance": "Cordon"}})
        for name in names:
            number = int(name[1:]) - 1
            peer = {"peerURI": self.lab.hosts[number].uri_tcp}
            self.rig.apply(hypervisor(name, f"qemu+tcp://127.0.0.1:{self.ports[number]}/system", migration=peer))
        self._used = list(names)

    def _kubeconfig(self) -> Path:
        path = self.directory / "proxied.kubeconfig"
        there = {"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self.ports[3]}"}}
        context = {"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}}
        users = [{"name": "nobody", "user": {}}]
        config = {"apiVersion": "v1", "kind": "Config", "clusters": [there], "contexts": [context], "users": users}
        path.write_text(yaml.safe_dump(config | {"current-context": "proxy"}))
        return path

    def down(self) -> None:
        """Remove every trace."""
        self.operator.kill()
        self.lab.down()
        self.plane.down()
        shutil.rmtree(self.directory, ignore_errors=True)

    # One run

    def life(self, vm: str, effect: Effect | None = None, fault: str = "") -> Run:
        """Declare a VM, wait until it runs, delete it, wait until it is gone."""
        return self._run(vm, vm, effect, fault, lambda: self._live(vm, late="=" in fault))

    def migrate(self, name: str, effect: Effect | None = None, fault: str = "") -> Run:
        """Move a VM, which the first run makes, to the other host. The pool has no marks, as before any migration."""
        if self._moved is None:
            self._moved = name
            self._use("h1", "h3")
            made, _ = self._run(f"{name}-made", name, None, "", lambda: self._make(name))
            if made.wrong:
                raise RuntimeError(f"there is no VM to move: {made.wrong}")
        vm, late = self._moved, "=" in fault
        for mark in self.lab.hosts[0].pool_path("shared").glob("homeostat-marker-*"):
            mark.unlink()
        outcome, lines = self._run(name, vm, effect, fault, lambda: self._move(vm, late=late))
        if outcome.stayed and not outcome.wrong and (effect is None or effect.name not in CALL):
            outcome = replace(outcome, wrong=f"it was not moved: {outcome.stayed}")
        if outcome.wrong:
            self._abandon(vm)
        return outcome, lines

    def _run(self, name: str, vm: str, effect: Effect | None, fault: str, work: Callable[[], Outcome]) -> Run:
        """How it ended, and the effects in the order they passed."""
        log = self.directory / f"{name}.jsonl"
        at = ["--at", f"{pattern(effect, vm)}:{effect.occurrence}", "--do", fault] if effect else []
        with self._proxy(log, at) as proxy:
            self._supervise()
            self._ready()
            outcome = work()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        if proxy.returncode == 3 and not outcome.wrong:
            outcome = replace(outcome, wrong=f"the fault at {effect} was never reached")
        # There is no other VM meanwhile: whatever is done to a host is done for this one.
        return outcome, [line for line in lines if line["where"] != "api" or vm in line["object"]]

    @contextmanager
    def _proxy(self, log: Path, at: list[str]) -> Iterator[subprocess.Popen[str]]:
        targets = [f"{port}={host.address}:16509" for port, host in zip(self.ports, self.lab.hosts, strict=False)]
        words = [word for target in targets for word in ("--libvirt", target)]
        command = [
            sys.executable,
            "-m",
            "tests.lab.faultproxy",
            *words,
            "--api",
            f"{self.ports[3]}={self.plane.kubeconfig}",
        ]
        options = ["--log", str(log), "--pid-file", str(self._pid_file), *at]
        proxy = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            assert proxy.stdout
            assert proxy.stdout.readline().strip() == "ready"
            yield proxy
        finally:
            self.operator.kill()
            proxy.send_signal(signal.SIGTERM)
            proxy.wait(10)

    @property
    def _pid_file(self) -> Path:
        return self.directory / "victim.pid"

    def _supervise(self) -> None:
        """Start the operator if it is not there, as a Deployment would."""
        if self.operator.process.pid is None:
            self.operator.start()
            self._pid_file.write_text(str(self.operator.process.pid))

    def _ready(self) -> None:
        self._until(lambda: all(self.rig.state("hv", name) == "Ready" for name in self._used), "the hosts to be Ready")

    def _live(self, vm: str, *, late: bool) -> Outcome:
        running = gone = 0.0
        try:
            uuid = self.rig.vm(vm, disks=[DISK])
            running = self._until(lambda: self._runs(vm, uuid), "it to run")
            # What a dead operator asked for while this was made has to arrive while there is one who may remove it:
            # tests/simulation/test_control_plane.py has what is said of it when it arrives after the VM is gone.
            time.sleep(ARRIVED if late else 0)
            self._as_declared(uuid)
            self.rig.delete("vm", vm)
            gone = self._until(lambda: self.rig.get("vm", vm) is None, "it to go")
            self._nothing_left(uuid)
            self.lab.assert_never_two(uuid)
        except AssertionError as error:
            return Outcome(running, gone, str(error))
        return Outcome(running, gone)

    def _make(self, vm: str) -> Outcome:
        try:
            uuid = self.rig.vm(vm, disks=[DISK])
            return Outcome(self._until(lambda: self._runs(vm, uuid), "it to run"), 0.0)
        except AssertionError as error:
            return Outcome(0.0, 0.0, str(error))

    def _move(self, vm: str, *, late: bool) -> Outcome:
        """Whatever happens, it has to end, and then the VM runs on the one host that is said, as if nothing was."""
        finished = settled = 0.0
        uuid, home = self.rig.uuid(vm), str(self.rig.status("vm", vm).get("host"))
        away = "h3" if home == "h1" else "h1"
        spec = {"vmRef": {"name": vm}, "target": {"host": away}, "policy": SLOW}
        migration = {"apiVersion": "homeostat.dev/v1alpha1", "kind": "VirtualMachineMigration", "spec": spec}
        try:
            self.rig.apply(migration | {"metadata": {"name": vm, "namespace": "default"}})
            finished = self._until(lambda: self._finished(vm), "the migration to end")
            succeeded = self.rig.condition("vmmig", vm, "Succeeded")
            moved = succeeded["status"] == "True"
            settled = self._until(lambda: self._at_rest(vm, away if moved else home), "all to say so")
            time.sleep(ARRIVED if late else 0.5)  # what may still be under way
            self._on_one_host(vm, uuid, away if moved else home)
            self.rig.delete("vmmig", vm)
            self._until(lambda: self.rig.get("vmmig", vm) is None, "the migration's object to go")
        except AssertionError as error:
            return Outcome(finished, settled, str(error))
        return Outcome(finished, settled, stayed="" if moved else str(succeeded["reason"]))

    def _finished(self, vm: str) -> bool:
        return self.rig.condition("vmmig", vm, "Finished").get("status") == "True"

    def _at_rest(self, vm: str, host: str) -> bool:
        """Whether the VM is said to run on this host and to be nowhere else, and the migration is let go of."""
        status, migration = self.rig.status("vm", vm), self.rig.get("vmmig", vm) or {"metadata": {}}
        said = (status.get("state"), status.get("host"), status.get("migration"))
        listed = [each["hypervisor"] for each in status.get("candidates", [])]
        return said == ("Running", host, None) and listed == [host] and not migration["metadata"].get("finalizers")

    def _on_one_host(self, vm: str, uuid: str, name: str) -> None:
        """One process, whose CPUs run, and one definition, both on this host; CPUs never ran on two at once."""
        there = [f"h{n}" for n, host in enumerate(self.lab.hosts, 1) if host.qemu_pid(uuid) is not None]
        defined = [f"h{n}" for n, host in enumerate(self.lab.hosts, 1) if host.definition(uuid) is not None]
        assert (there, defined) == ([name], [name]), f"processes on {there}, definitions on {defined}, not on {name}"
        (life,) = [each for each in self.lab.intervals(uuid) if each.end is None]
        assert life.running, f"{vm} has a process whose CPUs never ran"
        assert life.running[-1][1] is None, f"{vm} has a process whose CPUs do not run"
        self._as_declared(uuid)
        self.lab.assert_never_two(uuid)

    def _abandon(self, vm: str) -> None:
        """Remove a VM of which something is wrong, so that the next point has one of its own."""
        self._moved = None
        with self._proxy(self.directory / "abandon.jsonl", []):
            self._supervise()
            self.rig.kubectl("delete", "vmmig,vm", vm, "-n", "default", "--wait=false", "--ignore-not-found")
            self._until(lambda: self.rig.get("vm", vm) is None, "the VM to go")

    def _runs(self, vm: str, uuid: str) -> bool:
        return self.rig.state("vm", vm) == "Running" and self.rig.host_of(uuid) is not None

    def _until(self, done: Callable[[], Any], what: str) -> float:
        began = time.monotonic()
        while not done():
            self._supervise()
            if time.monotonic() - began > SECONDS:
                raise AssertionError(f"waited {SECONDS:.0f} s for {what}: {self.operator.process.last_words(3)}")
            time.sleep(0.1)
        return time.monotonic() - began

    def _as_declared(self, uuid: str) -> None:
        """One process, one definition, one volume."""
        there = [(host.name, domain) for host in self.lab.hosts for domain in host.domains() if domain.uuid == uuid]
        assert len(there) == 1, f"domains: {there}"
        volumes = [name for name in self.lab.hosts[0].volumes("shared") if uuid in name]
        assert len(volumes) == 1, f"volumes: {volumes}"

    def _nothing_left(self, uuid: str) -> None:
        """After what may still be under way has arrived: no process, no definition, no volume."""
        time.sleep(ARRIVED)
        left = [(host.name, domain) for host in self.lab.hosts for domain in host.domains() if domain.uuid == uuid]
        volumes = [name for name in self.lab.hosts[0].volumes("shared") if uuid in name]
        assert not left, f"domains that are left: {left}"
        assert not volumes, f"volumes that are left: {volumes}"


def pattern(effect: Effect, vm: str) -> str:
    """The expression by which the proxy finds an effect of this VM, or of the migration of its name."""
    method, *what = effect.name.split()
    kind = MIGRATIONS if "migration" in what else "virtualmachines"
    return rf"^{method} \S*/{kind}/{vm}{'/status' if 'status' in what else ''} " if what else f"^{method} "


def effects(lines: list[dict[str, Any]]) -> list[Effect]:
    """The effects of a clean run, each with its occurrence."""
    seen: Counter[str] = Counter()
    found = []
    for line in lines:
        name = effect_name(line["what"])
        seen[name] += 1
        found.append(Effect(name, seen[name]))
    return found


def effect_name(what: str) -> str:
    """The name of an effect without the VM in it: a libvirt call, or a method and `status` or `object`."""
    method, _, path = what.partition(" ")
    kind = "migration " if f"/{MIGRATIONS}/" in path else ""
    return f"{method} {kind}{'status' if path.endswith('/status') else 'object'}" if path else what


def points(found: list[Effect]) -> list[tuple[Effect, str]]:
    """Every effect with every fault, but for what is not to be expected of the call that migrates."""
    return [(effect, fault) for effect in found for fault in FAULTS if (effect.name, fault) not in NEVER_ANSWERED]


def share_of(all_points: list[tuple[Effect, str]], number: int, seed: int) -> list[tuple[Effect, str]]:
    """A seeded choice in which no effect comes twice before every effect came once."""
    chance, turns = random.Random(seed), Counter[Effect]()
    order: list[tuple[int, tuple[Effect, str]]] = []
    for point in chance.sample(all_points, len(all_points)):
        order.append((turns[point[0]], point))
        turns[point[0]] += 1
    return [point for _, point in sorted(order, key=lambda each: each[0])[:number]]


@dataclass(frozen=True)
class Scenario:
    """What is done in each run; `sure` has how many effects of a name every run has: more depend on what is seen."""

    name: str
    title: str
    words: str
    run: Callable[[Bed, str, Effect | None, str], Run]
    sure: Mapping[str, int] = field(default_factory=dict)

    def clean(self, bed: Bed) -> list[Effect]:
        """The effects of a run without a fault. RuntimeError when something is wrong with it."""
        outcome, lines = self.run(bed, f"clean-{self.name}", None, "")
        if outcome.wrong:
            raise RuntimeError(f"{self.name}, without a fault: {outcome.wrong}")
        return [each for each in effects(lines) if each.occurrence <= self.sure.get(each.name, each.occurrence)]


LIFE = Scenario(
    "life",
    "A VM's life",
    "Declared until Running, deleted until gone. In each cell the seconds until Running, and from deletion until gone.",
    Bed.life,
    {"PATCH status": 3, "PATCH object": 2, "poolRefresh": 2},
)
MIGRATE = Scenario(
    "migrate",
    "A live migration",
    "A running VM is moved to the other host, 2 MiB/s fast, in a pool without marks. In each cell the seconds until the"
    " migration has ended, and from then until all objects say where the VM is; and the reason where it ended"
    " without a move, which is right where libvirt's answer was lost before anything was seen to begin.",
    Bed.migrate,
    {"PATCH migration status": 5, "PATCH status": 4, "poolRefresh": 4},
)
SCENARIOS = {each.name: each for each in (LIFE, MIGRATE)}


def run(bed: Bed, scenario: Scenario, chosen: list[tuple[Effect, str]]) -> dict[tuple[Effect, str], Outcome]:
    """Run points one after the other, saying how each ended."""
    results = {}
    for number, (effect, fault) in enumerate(chosen, 1):
        outcome, _ = scenario.run(bed, f"p{number}-{os.urandom(2).hex()}", effect, fault)
        results[effect, fault] = outcome
        print(f"[{number}/{len(chosen)}] {effect} x {fault}: {outcome}", flush=True)
    return results


def wrong(results: dict[tuple[Effect, str], Outcome]) -> dict[str, str]:
    """What went wrong, by point."""
    return {f"{effect} x {fault}": outcome.wrong for (effect, fault), outcome in results.items() if outcome.wrong}


HEAD = f"""# Crash points, on real parts

Written by `make matrix`: the unchanged operator process between a real API server and real libvirt hosts, every effect
of a scenario crossed with every fault; tests/lab/matrix.py says what is checked. A point that was not run has a `-`.
Limits of the operator were shortened: {_settings()}.
"""


def section(scenario: Scenario, found: list[Effect], results: dict[tuple[Effect, str], Outcome]) -> str:
    """One scenario's part of the page."""
    lines = [
        f"## {scenario.title}",
        "",
        f"{scenario.words} {len(results)} of {len(points(found))} points, {len(wrong(results))} wrong.",
        "",
        "| effect | " + " | ".join(FAULTS) + " |",
        "| --- |" + " --- |" * len(FAULTS),
    ]
    for effect in found:
        cells = [str(results.get((effect, fault), "-")) for fault in FAULTS]
        lines.append(f"| {effect} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def merged(page: str, parts: dict[str, str]) -> str:
    """The page docs/matrix.md with these parts new, by scenario, and the others as they were."""
    old = {
        title: f"## {title}\n{body}" for title, _, body in (each.partition("\n") for each in page.split("\n## ")[1:])
    }
    every = [parts.get(each.name) or old.get(each.title) for each in SCENARIOS.values()]
    return "\n".join([HEAD, *(f"{each.strip()}\n" for each in every if each)])


def main() -> None:
    """Run the matrix; exit status 1 when a point is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.matrix", description=__doc__)
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="which; all if not given")
    parser.add_argument("--points", type=int, default=0, help="how many of each; 0: all, and the page is written")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    parts, bad = {}, False
    bed = Bed(f"matrix-{os.getpid()}")
    try:
        for scenario in [each for each in SCENARIOS.values() if each.name in (args.scenario or SCENARIOS)]:
            found = scenario.clean(bed)
            print(f"{scenario.name}: {', '.join(map(str, found))}; {len(points(found))} points", flush=True)
            chosen = share_of(points(found), args.points, args.seed) if args.points else points(found)
            results = run(bed, scenario, chosen)
            parts[scenario.name], bad = section(scenario, found, results), bad or bool(wrong(results))
    finally:
        bed.down()
    if not args.points:
        PAGE.write_text(merged(PAGE.read_text() if PAGE.exists() else "", parts))
    sys.exit(bad)


if __name__ == "__main__":
    main()
