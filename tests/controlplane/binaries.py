# SPDX-License-Identifier: Apache-2.0
"""Where the control plane's programs come from: given ones, the cache, a build, a download; in this order."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests.controlplane.download import DownloadError, download
from tests.controlplane.locks import locked
from tests.controlplane.output import progress, say

NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
OLDEST = (1, 32)
MODULE = Path(__file__).parent / "gomod"
PACKAGES = {
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "etcd": "go.etcd.io/etcd/server/v3",
}


class BinariesError(Exception):
    """There is no control plane to be had; the message says what was tried and what would help."""


Binaries = dict[str, Path]
"""The path of each program in NAMES."""


def _pinned(pattern: str) -> str:
    found = re.search(pattern, (MODULE / "go.mod").read_text(), re.MULTILINE)
    if not found:
        raise BinariesError(f"{MODULE / 'go.mod'} has no line like {pattern}")
    return found[1]


def kubernetes_version() -> str:
    """Return the pinned version of Kubernetes, such as v1.36.3."""
    return _pinned(r"k8s\.io/kubernetes (v[\d.]+)")


def etcd_version() -> str:
    """Return the version of etcd that goes with it, such as v3.6.8."""
    return _pinned(r"go\.etcd\.io/etcd/server/v3 (v[\d.]+)")


def minor(version: str) -> tuple[int, int]:
    """Return (1, 36) for any text that names a version 1.36; raises ValueError where there is none."""
    found = re.search(r"v?(\d+)\.(\d+)", version)
    if not found:
        raise ValueError(f"no version in {version!r}")
    return int(found[1]), int(found[2])


def _reported_minor(program: Path) -> tuple[int, int]:
    return minor(subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout)


def installed() -> tuple[Binaries | None, str]:
    """Return the programs in KUBEBUILDER_ASSETS or on PATH, if all are there and new enough, and why."""
    search = os.pathsep.join(filter(None, (os.environ.get("KUBEBUILDER_ASSETS"), os.environ.get("PATH"))))
    found = {name: Path(path) for name in NAMES if (path := shutil.which(name, path=search))}
    if missing := [name for name in NAMES if name not in found]:
        return None, f"not in KUBEBUILDER_ASSETS or on PATH: {', '.join(missing)}"
    server, manager = (_reported_minor(found[name]) for name in ("kube-apiserver", "kube-controller-manager"))
    if server != manager or server < OLDEST:
        return None, f"on PATH: kube-apiserver {server}, kube-controller-manager {manager}; wanted: equal, >= {OLDEST}"
    return found, f"found in KUBEBUILDER_ASSETS or on PATH: {found['kube-apiserver']}"


def go_is_new_enough() -> tuple[bool, str]:
    """Return whether the Go on PATH can build the module as it is, and why."""
    wanted = _pinned(r"^go ([\d.]+)")
    if not shutil.which("go"):
        return False, "there is no go on PATH"
    # Elsewhere than in the module, and local: an older go would otherwise go and fetch a newer one.
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    asked = subprocess.run(["go", "env", "GOVERSION"], cwd="/", env=environment, capture_output=True, text=True)
    if asked.returncode != 0:
        return False, f"go does not answer: {asked.stderr.strip()}"
    is_new_enough = minor(asked.stdout.removeprefix("go")) >= minor(wanted)
    return is_new_enough, f"{asked.stdout.strip()} is {'new enough' if is_new_enough else 'too old'}: {wanted} needed"


def _go(*arguments: str) -> None:
    environment = {**os.environ, "GOFLAGS": "-mod=readonly -buildvcs=false", "GOTOOLCHAIN": "local"}
    done = subprocess.run(["go", *arguments], cwd=MODULE, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        advice = "CONTROL_PLANE=download takes the official release instead"
        raise BinariesError(f"go {arguments[0]} failed; {advice}\n{done.stderr[-2000:]}")


def _link_flags() -> str:
    version = kubernetes_version()
    values = {
        "k8s.io/component-base/version.gitVersion": version,
        "k8s.io/component-base/version.gitMajor": str(minor(version)[0]),
        "k8s.io/component-base/version.gitMinor": str(minor(version)[1]),
        "k8s.io/client-go/pkg/version.gitVersion": version,
    }
    return " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in values.items())])


def build(directory: Path) -> None:
    """Compile the programs into the directory; about five minutes on two cores, seconds with Go's cache warm."""
    with progress("fetching the Go modules that go.sum names"):
        _go("mod", "download")
    for number, (name, package) in enumerate(PACKAGES.items(), start=1):
        with progress(f"building {name} ({number} of {len(PACKAGES)})"):
            _go("build", "-trimpath", "-ldflags", _link_flags(), "-o", str(directory / name), package)


def download_release(directory: Path) -> None:
    """Download the official programs into the directory, each checked against its published checksum."""
    try:
        download(directory, kubernetes_version(), etcd_version())
    except DownloadError as error:
        raise BinariesError(f"download: {error}") from error


WAYS: dict[str, Callable[[Path], None]] = {"build": build, "download": download_release}


def _pins() -> str:
    return sha256((MODULE / "go.mod").read_bytes() + (MODULE / "go.sum").read_bytes()).hexdigest()


@dataclass(frozen=True)
class Cache:
    """The project's cache of programs: one directory per version, with a note of where they came from."""

    root: Path

    @classmethod
    def default(cls) -> "Cache":
        """Return the one in the user's cache directory."""
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(base) / "homeostat" / "controlplane")

    @property
    def directory(self) -> Path:
        """Where the programs of the pinned version are."""
        return self.root / kubernetes_version() / "bin"

    def get(self, way: str | None = None) -> Binaries | None:
        """Return the programs if they are cached, made from today's pins, and came by this way if one is named."""
        binaries = {name: self.directory / name for name in NAMES}
        try:
            origin = json.loads((self.directory / "origin.json").read_text())
        except FileNotFoundError:
            return None
        fits = origin["pins"] == _pins() and way in (None, origin["way"])
        return binaries if fits and all(map(Path.exists, binaries.values())) else None

    def fill(self, way: str) -> Binaries:
        """Obtain the programs by this way, unless another process did so meanwhile, and return them."""
        with locked(self.root):
            if (cached := self.get(way)) is not None:
                return cached
            partial = self.directory.with_name("bin.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                WAYS[way](partial)
                (partial / "origin.json").write_text(json.dumps({"way": way, "pins": _pins()}))
                shutil.rmtree(self.directory, ignore_errors=True)
                partial.rename(self.directory)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            return {name: self.directory / name for name in NAMES}


def _forced(way: str, cache: Cache) -> Binaries:
    if (cached := cache.get(way)) is not None:
        say(f"from the cache {cache.directory}, where an earlier {way} put it: CONTROL_PLANE={way}")
        return cached
    if way == "build" and not (go := go_is_new_enough())[0]:
        raise BinariesError(f"CONTROL_PLANE=build, but {go[1]}")
    say(f"{way}, because CONTROL_PLANE={way} and the cache holds none")
    return cache.fill(way)


def obtain(way: str | None = None, cache: Cache | None = None) -> Binaries:
    """Return the programs, made or fetched if need be; `way` forces "build" or "download". Raises BinariesError."""
    cache = cache or Cache.default()
    if way is not None:
        return _forced(way, cache)
    found, why = installed()
    if found is not None:
        say(why)
        return found
    if (cached := cache.get()) is not None:
        say(f"from the cache {cache.directory}; {why}")
        return cached
    is_new_enough, go = go_is_new_enough()
    chosen = "build" if is_new_enough else "download"
    say(f"{chosen}, because {why}, nothing is cached and {go}")
    return cache.fill(chosen)
