# SPDX-License-Identifier: Apache-2.0
"""Every effect of a VM's life crossed with every fault, on the real, unchanged operator between real servers.

`python -m tests.lab.matrix` runs all points and writes docs/matrix.md; `--points N --seed S` runs N of them.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.controlplane import ControlPlane
from tests.controlplane.ports import allocate
from tests.lab.lab import Lab
from tests.lab.rig import ROOT, SHORT, Rig, hypervisor
from tests.operator_process import OperatorProcess

FAULTS = ("kill-before", "kill-after", "drop-reply", "late=3", "delay=3", "hang")
PAGE = ROOT / "docs" / "matrix.md"
SETTINGS = SHORT | {"call_deadline_seconds": 4, "api_timeout_seconds": 4}
DISK = {"name": "data", "pool": "shared", "size": "1Mi", "deletionPolicy": "Delete"}
SECONDS = 90.0


@dataclass(frozen=True)
class Effect:
    """The `occurrence`-th effect of this name in the life of one VM, from its declaration until it is gone."""

    name: str
    occurrence: int

    def __str__(self) -> str:
        return f"{self.name} {self.occurrence}"


@dataclass(frozen=True)
class Outcome:
    """How a point ended: seconds to Running, seconds from deletion to gone, and what was wrong, "" when nothing was."""

    running: float
    gone: float
    wrong: str = ""


def _settings() -> str:
    return ", ".join(f"`{name}` {value}" for name, value in SETTINGS.items())


class Bed:
    """A control plane, a lab of two hosts, and a proxy between them and the operator."""

    def __init__(self, name: str) -> None:
        self.name, self.directory = name, Path("/var/lib/homeostat") / name
        self.lab, self.plane = Lab.up(name, hosts=2), ControlPlane(name)
        self.plane.up()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ports = list(allocate(self.directory, ("h1", "h2", "api")).values())
        self.rig = Rig(self.plane, self.lab, self.directory)
        options = ["--lease-seconds=0", *(f"--set={key}={value}" for key, value in SETTINGS.items())]
        self.operator = OperatorProcess(self.directory, self._kubeconfig(), *options)
        self.rig.kubectl("apply", "-f", str(ROOT / "crds"))
        for number in range(len(self.lab.hosts)):
            self.rig.apply(hypervisor(f"h{number + 1}", f"qemu+tcp://127.0.0.1:{self.ports[number]}/system"))

    def _kubeconfig(self) -> Path:
        path = self.directory / "proxied.kubeconfig"
        there = {"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self.ports[2]}"}}
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

    # One life

    def life(self, vm: str, effect: Effect | None = None, fault: str = "") -> tuple[Outcome, list[dict[str, Any]]]:
        """Declare a VM, wait until it runs, delete it, wait until it is gone; the effects in the order they passed."""
        log = self.directory / f"{vm}.jsonl"
        at = ["--at", f"{pattern(effect, vm)}:{effect.occurrence}", "--do", fault] if effect else []
        with self._proxy(log, at) as proxy:
            self._supervise()
            self._ready()
            outcome = self._live(vm)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        if proxy.returncode == 3:
            outcome = Outcome(outcome.running, outcome.gone, f"the fault at {effect} was never reached")
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
            f"{self.ports[2]}={self.plane.kubeconfig}",
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
        self._until(
            lambda: all(self.rig.state("hv", f"h{n + 1}") == "Ready" for n in range(2)), "the hosts to be Ready"
        )

    def _live(self, vm: str) -> Outcome:
        running = gone = 0.0
        try:
            uuid = self.rig.vm(vm, disks=[DISK])
            running = self._until(lambda: self._runs(vm, uuid), "it to run")
            self._as_declared(uuid)
            self.rig.delete("vm", vm)
            gone = self._until(lambda: self.rig.get("vm", vm) is None, "it to go")
            self._nothing_left(uuid)
            self.lab.assert_never_two(uuid)
        except AssertionError as error:
            return Outcome(running, gone, str(error))
        return Outcome(running, gone)

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
        time.sleep(3.5)
        left = [(host.name, domain) for host in self.lab.hosts for domain in host.domains() if domain.uuid == uuid]
        volumes = [name for name in self.lab.hosts[0].volumes("shared") if uuid in name]
        assert not left, f"domains that are left: {left}"
        assert not volumes, f"volumes that are left: {volumes}"


def pattern(effect: Effect, vm: str) -> str:
    """The expression by which the proxy finds an effect of this VM."""
    method, _, what = effect.name.partition(" ")
    return rf"^{method} \S*/{vm}{'/status' if what == 'status' else ''} " if what else f"^{method} "


def effects(lines: list[dict[str, Any]]) -> list[Effect]:
    """The effects of a clean life, each with its occurrence."""
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
    return f"{method} {'status' if path.endswith('/status') else 'object'}" if path else what


def points(found: list[Effect]) -> list[tuple[Effect, str]]:
    """Every effect with every fault."""
    return [(effect, fault) for effect in found for fault in FAULTS]


def share_of(all_points: list[tuple[Effect, str]], number: int, seed: int) -> list[tuple[Effect, str]]:
    """A seeded choice in which no effect comes twice before every effect came once."""
    chance, turns = random.Random(seed), Counter[Effect]()
    order: list[tuple[int, tuple[Effect, str]]] = []
    for point in chance.sample(all_points, len(all_points)):
        order.append((turns[point[0]], point))
        turns[point[0]] += 1
    return [point for _, point in sorted(order, key=lambda each: each[0])[:number]]


def run(bed: Bed, chosen: list[tuple[Effect, str]]) -> dict[tuple[Effect, str], Outcome]:
    """Run points one after the other, saying how each ended."""
    results = {}
    for number, (effect, fault) in enumerate(chosen, 1):
        outcome, _ = bed.life(f"p{number}-{os.urandom(2).hex()}", effect, fault)
        results[effect, fault] = outcome
        verdict = outcome.wrong or f"running after {outcome.running:.1f} s, gone after {outcome.gone:.1f} s"
        print(f"[{number}/{len(chosen)}] {effect} x {fault}: {verdict}", flush=True)
    return results


def page(found: list[Effect], results: dict[tuple[Effect, str], Outcome]) -> str:
    """The page docs/matrix.md."""
    wrong = sum(bool(outcome.wrong) for outcome in results.values())
    lines = [
        "# Crash points, on real parts",
        "",
        "Written by `make matrix`: the unchanged operator process between a real API server and real libvirt hosts,",
        "every effect of a VM's life (declared until Running, deleted until gone) crossed with every fault. In each",
        "cell the seconds until Running and from deletion until gone; tests/lab/matrix.py says what is checked.",
        "",
        f"{len(results)} points, {wrong} wrong. Limits of the operator were shortened: {_settings()}.",
        "",
        "| effect | " + " | ".join(FAULTS) + " |",
        "| --- |" + " --- |" * len(FAULTS),
    ]
    for effect in found:
        cells = [results.get((effect, fault)) for fault in FAULTS]
        shown = ["-" if c is None else c.wrong or f"{c.running:.0f} / {c.gone:.0f}" for c in cells]
        lines.append(f"| {effect} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Run the matrix; exit status 1 when a point is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.matrix", description=__doc__)
    parser.add_argument("--points", type=int, default=0, help="how many of them; 0: all, and the page is written")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    bed = Bed(f"matrix-{os.getpid()}")
    try:
        clean, lines = bed.life("clean")
        assert not clean.wrong, clean.wrong
        found = effects(lines)
        print(f"effects of a life: {', '.join(map(str, found))}; {len(points(found))} points", flush=True)
        chosen = share_of(points(found), args.points, args.seed) if args.points else points(found)
        results = run(bed, chosen)
    finally:
        bed.down()
    if not args.points:
        PAGE.write_text(page(found, results))
    sys.exit(any(outcome.wrong for outcome in results.values()))


if __name__ == "__main__":
    main()
