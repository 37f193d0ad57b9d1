# SPDX-License-Identifier: Apache-2.0
"""The official release programs, each taken only if its published checksum agrees."""

import os
import platform
import tarfile
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from tests.controlplane.output import progress

KUBERNETES_URL = "https://dl.k8s.io/release"
ETCD_URL = "https://github.com/etcd-io/etcd/releases/download"
KUBERNETES_NAMES = ("kube-apiserver", "kube-controller-manager", "kubectl")
SILENCE_SECONDS = 60
CHUNK = 1 << 20


class DownloadError(Exception):
    """A file is missing, cut short or not what its checksum says; the message names its address."""


def _architecture() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _fetch(url: str, target: Path) -> str:
    """Write what is at the address to the file and return its SHA-256."""
    digest = sha256()
    try:
        with urlopen(url, timeout=SILENCE_SECONDS) as response, target.open("wb") as file:
            while chunk := response.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
    except (OSError, HTTPException) as error:
        raise DownloadError(f"{url}: {error}") from error
    return digest.hexdigest()


def _read(url: str) -> str:
    try:
        with urlopen(url, timeout=SILENCE_SECONDS) as response:
            return str(response.read().decode())
    except (OSError, HTTPException) as error:
        raise DownloadError(f"{url}: {error}") from error


def _fetch_checked(url: str, target: Path, published: str) -> None:
    with progress(f"downloading {url}"):
        actual = _fetch(url, target)
    if actual != published:
        target.unlink()
        raise DownloadError(f"{url}: its SHA-256 is {actual}, but {published!r} is published; refused")


def _kubernetes(directory: Path, version: str) -> None:
    base = os.environ.get("KUBERNETES_RELEASE_URL", KUBERNETES_URL)
    for name in KUBERNETES_NAMES:
        url = f"{base}/{version}/bin/linux/{_architecture()}/{name}"
        _fetch_checked(url, directory / name, _read(f"{url}.sha256").strip())
        (directory / name).chmod(0o755)


def _published(sums: str, name: str) -> str:
    """Return the checksum of one file in the format of sha256sum, or an empty text, which equals none."""
    rows = (line.split() for line in sums.splitlines())
    return next((row[0] for row in rows if len(row) == 2 and row[1].lstrip("*") == name), "")


def _etcd(directory: Path, version: str) -> None:
    base = os.environ.get("ETCD_RELEASE_URL", ETCD_URL)
    stem = f"etcd-{version}-linux-{_architecture()}"
    archive = directory / f"{stem}.tar.gz"
    published = _published(_read(f"{base}/{version}/SHA256SUMS"), archive.name)
    _fetch_checked(f"{base}/{version}/{archive.name}", archive, published)
    (directory / "etcd").write_bytes(_member(archive, f"{stem}/etcd"))
    (directory / "etcd").chmod(0o755)
    archive.unlink()


def _member(archive: Path, name: str) -> bytes:
    try:
        with tarfile.open(archive) as files:
            return b"".join(files.extractfile(name) or ())
    except (KeyError, tarfile.TarError) as error:
        raise DownloadError(f"{archive.name}: {error}") from error


def download(directory: Path, kubernetes: str, etcd: str) -> None:
    """Fetch all programs of these versions into the directory. Raises DownloadError."""
    _kubernetes(directory, kubernetes)
    _etcd(directory, etcd)
