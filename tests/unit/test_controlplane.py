# SPDX-License-Identifier: Apache-2.0
"""Where the control plane's programs come from, and whose processes are ended."""

import json
import os
import platform
import re
import shutil
import signal
import socket
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.controlplane import ControlPlane, GivenControlPlane, binaries, control_plane, output, ports
from tests.controlplane.binaries import NAMES, BinariesError, Cache
from tests.controlplane.locks import locked
from tests.controlplane.processes import Process, identity

KUBERNETES, ETCD = binaries.kubernetes_version(), binaries.etcd_version()
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
ETCD_STEM = f"etcd-{ETCD}-linux-{ARCHITECTURE}"


def program(path: Path, says: str) -> Path:
    """Make an executable that only prints something."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def published(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The files of a release, as the two public servers lay them out."""
    site = tmp_path / "site"
    for name in ("kube-apiserver", "kube-controller-manager", "kubectl"):
        path = program(site / KUBERNETES / "bin" / "linux" / ARCHITECTURE / name, f"Kubernetes {KUBERNETES}")
        path.with_name(f"{name}.sha256").write_text(published(path))
    etcd = program(tmp_path / "etcd", f"etcd {ETCD}")
    archive = site / ETCD / f"{ETCD_STEM}.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as files:
        files.add(etcd, f"{ETCD_STEM}/etcd")
    sums = f"{'0' * 64}  another.tar.gz\n{published(archive)}  {archive.name}\n"
    (archive.parent / "SHA256SUMS").write_text(sums)
    return site


class Quiet(SimpleHTTPRequestHandler):
    """A file server that keeps no log."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def served(release: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(release))) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        for variable in ("KUBERNETES_RELEASE_URL", "ETCD_RELEASE_URL"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{server.server_port}")
        yield release
        server.shutdown()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it but what a test puts there."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return folder


def left_in(cache: Cache) -> list[Path]:
    return [path for path in cache.root.rglob("*") if path.is_file()]


def test_a_release_whose_checksums_agree_is_cached(served: Path, cache: Cache) -> None:
    taken = binaries.obtain("download", cache)
    assert {name: os.popen(str(taken[name])).read().strip() for name in NAMES} == {
        "etcd": f"etcd {ETCD}",
        **{name: f"Kubernetes {KUBERNETES}" for name in NAMES if name.startswith("kube")},
    }
    assert cache.get("download") == taken


def test_a_cached_release_needs_no_server(served: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = binaries.obtain("download", cache)
    monkeypatch.setenv("KUBERNETES_RELEASE_URL", "http://127.0.0.1:9")
    assert binaries.obtain("download", cache) == taken


@pytest.mark.parametrize(
    "damaged", [f"{KUBERNETES}/bin/linux/{ARCHITECTURE}/kubectl", f"{ETCD}/{ETCD_STEM}.tar.gz"], ids=["kubectl", "etcd"]
)
def test_a_wrong_checksum_is_refused_and_leaves_nothing(served: Path, cache: Cache, damaged: str) -> None:
    file = served / damaged
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(BinariesError, match=rf"(?s){file.name}: its SHA-256 is .* refused"):
        binaries.obtain("download", cache)
    assert left_in(cache) == []


def test_an_archive_without_a_published_checksum_is_refused(served: Path, cache: Cache) -> None:
    (served / ETCD / "SHA256SUMS").write_text(f"{'0' * 64}  another.tar.gz\n")
    with pytest.raises(BinariesError, match="refused"):
        binaries.obtain("download", cache)
    assert left_in(cache) == []


def test_a_missing_file_is_named(served: Path, cache: Cache) -> None:
    (served / KUBERNETES / "bin" / "linux" / ARCHITECTURE / "kube-apiserver").unlink()
    with pytest.raises(BinariesError, match=r"http://127.0.0.1:\d+/\S+/kube-apiserver: HTTP Error 404"):
        binaries.obtain("download", cache)
    assert left_in(cache) == []


def test_a_refused_download_leaves_the_earlier_programs(served: Path, cache: Cache) -> None:
    taken = binaries.obtain("download", cache)
    origin = cache.directory / "origin.json"
    origin.write_text(json.dumps({"way": "download", "pins": "of last year"}))
    (served / ETCD / "SHA256SUMS").unlink()
    with pytest.raises(BinariesError, match="SHA256SUMS"):
        binaries.obtain("download", cache)
    assert all(path.exists() for path in taken.values())


def test_programs_from_other_pins_are_not_used(served: Path, cache: Cache) -> None:
    binaries.obtain("download", cache)
    (cache.directory / "origin.json").write_text(json.dumps({"way": "download", "pins": "of last year"}))
    assert cache.get() is None


def test_a_forced_way_does_not_take_what_came_by_another(served: Path, cache: Cache) -> None:
    binaries.obtain("download", cache)
    assert cache.get("build") is None
    assert cache.get() is not None


def test_programs_on_path_come_first(bare_path: Path, cache: Cache) -> None:
    for name in NAMES:
        program(bare_path / name, "Kubernetes v1.33.1")
    assert binaries.obtain(cache=cache) == {name: bare_path / name for name in NAMES}


def test_assets_come_before_path(bare_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        program(bare_path / name, "Kubernetes v1.33.1")
    asset = program(tmp_path / "assets" / "kube-apiserver", "Kubernetes v1.33.2")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(asset.parent))
    found, _ = binaries.installed()
    assert found == {**{name: bare_path / name for name in NAMES}, "kube-apiserver": asset}


@pytest.mark.parametrize(("server", "manager"), [("v1.31.9", "v1.31.9"), ("v1.34.0", "v1.33.0")])
def test_old_or_mixed_programs_on_path_are_passed_over(bare_path: Path, server: str, manager: str) -> None:
    for name in NAMES:
        program(bare_path / name, f"Kubernetes {manager if name == 'kube-controller-manager' else server}")
    found, why = binaries.installed()
    assert found is None
    assert str(binaries.minor(server)) in why


def test_without_go_the_release_is_downloaded(bare_path: Path, served: Path, cache: Cache) -> None:
    binaries.obtain(cache=cache)
    assert cache.get("download") is not None


def test_the_way_that_is_taken_is_said_and_why(
    bare_path: Path, served: Path, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(way: str | None = None) -> str:
        binaries.obtain(way, cache)
        return capsys.readouterr().err.splitlines()[0].removeprefix("control plane: ")

    nowhere = f"not in KUBEBUILDER_ASSETS or on PATH: {', '.join(NAMES)}"
    assert said() == f"download, because {nowhere}, nothing is cached and there is no go on PATH"
    assert said() == f"from the cache {cache.directory}; {nowhere}"
    assert said("download") == (
        f"from the cache {cache.directory}, where an earlier download put it: CONTROL_PLANE=download"
    )
    shutil.rmtree(cache.root)
    assert said("download") == "download, because CONTROL_PLANE=download and the cache holds none"
    for name in NAMES:
        program(bare_path / name, "Kubernetes v1.33.1")
    assert said() == f"found in KUBEBUILDER_ASSETS or on PATH: {bare_path / 'kube-apiserver'}"


def test_what_takes_long_is_told_of_again_and_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "PERIOD", 0.01)
    told = ""
    with output.progress("building etcd"):
        while len(re.findall(r"building etcd: \d+ s\n", told)) < 2:
            told += capsys.readouterr().err
    told += capsys.readouterr().err
    assert told.startswith("control plane: building etcd\n")
    assert re.search(r"control plane: building etcd: done in \d+ s\n\Z", told)


@pytest.mark.parametrize(("version", "is_enough"), [("go1.21.5", False), ("go1.26.8", True), ("go1.100.0", True)])
def test_go_must_be_new_enough(bare_path: Path, version: str, is_enough: bool) -> None:
    program(bare_path / "go", version)
    assert binaries.go_is_new_enough()[0] is is_enough


def test_a_forced_build_without_go_says_so(bare_path: Path, cache: Cache) -> None:
    with pytest.raises(BinariesError, match="CONTROL_PLANE=build, but there is no go on PATH"):
        binaries.obtain("build", cache)


def test_a_given_kubeconfig_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTROL_PLANE", raising=False)
    monkeypatch.setenv("KUBECONFIG_GIVEN", "/some/config")
    plane = control_plane("any")
    assert isinstance(plane, GivenControlPlane)
    assert plane.kubeconfig == Path("/some/config")


def test_a_forced_build_ignores_a_given_kubeconfig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_PLANE", "build")
    plane = control_plane("any", kubeconfig="/some/config")
    assert isinstance(plane, ControlPlane)
    assert plane.way == "build"


@pytest.mark.parametrize("way", ["given", "magic"])
def test_a_way_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("CONTROL_PLANE", way)
    monkeypatch.delenv("KUBECONFIG_GIVEN", raising=False)
    with pytest.raises(BinariesError, match=f"CONTROL_PLANE={way}"):
        control_plane("any")


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Process]:
    process = Process("sleeper", tmp_path)
    process.start(["/bin/sleep", "60"])
    yield process
    process.kill()


def test_a_recorded_process_is_ended(sleeper: Process) -> None:
    pid = sleeper.pid
    assert pid is not None
    sleeper.kill()
    assert identity(pid) is None
    assert not sleeper.record.exists()


def test_a_process_is_started_once(sleeper: Process) -> None:
    pid = sleeper.pid
    sleeper.start(["/bin/sleep", "60"])
    assert sleeper.pid == pid


def test_a_recycled_pid_is_never_ended(sleeper: Process) -> None:
    pid, recorded = sleeper.pid, sleeper.record.read_text()
    boot, _, born = recorded.split()[1].rpartition(":")
    sleeper.record.write_text(f"{pid} {boot}:{int(born) - 1}")
    sleeper.kill()
    assert pid is not None
    assert identity(pid) is not None
    sleeper.record.write_text(recorded)


def test_a_dead_child_does_not_count_as_alive(sleeper: Process) -> None:
    pid = sleeper.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    assert sleeper.pid is None


def test_siblings_get_different_ports_and_keep_them(tmp_path: Path) -> None:
    roles = ("apiserver", "etcd")
    given = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        given[name] = ports.allocate(tmp_path / name, roles)
    assert len({port for taken in given.values() for port in taken.values()}) == 4
    assert ports.allocate(tmp_path / "a", roles) == given["a"]


def test_a_port_in_use_is_not_given(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    first = ports.allocate(tmp_path / "a", ("apiserver",))["apiserver"]
    (tmp_path / "a" / ports.FILE).unlink()
    with socket.create_server(("127.0.0.1", first)):
        assert ports.allocate(tmp_path / "a", ("apiserver",))["apiserver"] != first


def test_a_directory_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    entered = threading.Event()

    def enter() -> None:
        with locked(tmp_path / "held"):
            entered.set()

    with locked(tmp_path / "held"):
        waiter = threading.Thread(target=enter)
        waiter.start()
        assert not entered.wait(0.2)
    assert entered.wait(10)
    waiter.join()


def test_a_lock_on_a_removed_directory_is_worth_nothing(tmp_path: Path) -> None:
    existed: list[bool] = []

    def enter() -> None:
        with locked(tmp_path / "held"):
            existed.append((tmp_path / "held").exists())

    with locked(tmp_path / "held"):
        waiter = threading.Thread(target=enter)
        waiter.start()
        waiter.join(0.2)
        (tmp_path / "held").rmdir()
    waiter.join(10)
    assert existed == [True]
