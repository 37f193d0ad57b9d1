# SPDX-License-Identifier: Apache-2.0
"""URIs of hosts, and the files that TLS needs while a connection is being opened."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from homeostat.hosts.driver import INVALID_ARG, Credentials, HostUnreachable
from homeostat.hosts.sockets import Peer

# Other transports of libvirt run a command in the place where the operator runs (ext, ssh with ?command=).
SCHEMES = {"qemu": 16514, "qemu+tls": 16514, "qemu+tcp": 16509, "qemu+unix": 0}
_PKI = {"ca.crt": "cacert.pem", "tls.crt": "clientcert.pem", "tls.key": "clientkey.pem"}
_UNIX_SOCKETS = ("/run/libvirt/libvirt-sock", "/var/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock",
                 "/var/run/libvirt/virtqemud-sock")  # fmt: skip


def check(uri: str) -> None:
    """Raise HostUnreachable with a sentence for a URI that is not one of a libvirt host."""
    try:
        parts = urlsplit(uri)
        known = parts.scheme in SCHEMES and parts.path == "/system" and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise HostUnreachable(INVALID_ARG, f"{uri!r} is not a URI of a libvirt host: expected qemu+tls://HOST/system, "
                              "qemu+tcp://HOST/system or qemu:///system")  # fmt: skip


def peers(uri: str) -> set[Peer]:
    """What a socket of a connection to this URI is connected to; empty when the name cannot be resolved."""
    parts = urlsplit(uri)
    if not parts.hostname:
        return {dict(parse_qsl(parts.query)).get("socket", _UNIX_SOCKETS[0]), *_UNIX_SOCKETS}
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or SCHEMES[parts.scheme], type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {(str(address[0]), int(address[1])) for *_, address in found}


@dataclass(frozen=True, slots=True)
class Address:
    """A URI as libvirt is given it; `directory` is where its credentials are for the moment, "" without any."""

    uri: str
    directory: str = ""

    def plain(self, message: str) -> str:
        """A message with the keys of the Secret in place of paths, which are others each time."""
        for key, name in _PKI.items():
            message = message.replace(f"{self.directory}/{name}", key) if self.directory else message
        return message


@contextlib.contextmanager
def with_pki(uri: str, credentials: Credentials | None) -> Iterator[Address]:
    """The URI to open, with the credentials in a private directory for as long as the context lasts.

    libvirt reads the files while it opens a connection and never again.
    """
    files = {_PKI[name]: data for name, data in (credentials.files if credentials else {}).items() if name in _PKI}
    if not files:
        yield Address(uri)
        return
    with tempfile.TemporaryDirectory(prefix=_prefix(os.getpid())) as directory:  # created with mode 0700
        for name, data in files.items():
            _write_private(Path(directory, name), data)
        yield Address(_with_query(uri, pkipath=directory), directory)


def remove_credentials() -> None:
    """Remove the files of attempts that are under way: a process that ends without waiting for them leaves no key."""
    _remove(lambda pid: pid == os.getpid())


def remove_leftovers() -> None:
    """Remove the files of processes that were killed, before this one has any: an earlier one may have had its pid."""
    _remove(lambda pid: pid == os.getpid() or not Path("/proc", str(pid)).exists())


def _prefix(pid: int) -> str:
    return f"homeostat-{pid}-"


def _remove(whose: Callable[[int], bool]) -> None:
    with contextlib.suppress(OSError):  # there is no place for files, so there are none
        for path in Path(tempfile.gettempdir()).glob("homeostat-*-*"):
            pid = path.name.split("-")[1]
            with contextlib.suppress(OSError):  # it was removed meanwhile
                if pid.isdecimal() and whose(int(pid)) and path.lstat().st_uid == os.geteuid():
                    shutil.rmtree(path)


def certificate_fault(uri: str, address: Address) -> str:
    """What is wrong with the certificate the host shows; "" when nothing is, or it cannot be found out.

    libvirt only says that it was not accepted. Blocks for some seconds at most.
    """
    parts = urlsplit(uri)
    host, port = parts.hostname or "", parts.port or SCHEMES[parts.scheme]
    try:
        context = ssl.create_default_context(cafile=f"{address.directory}/{_PKI['ca.crt']}")
        with (
            socket.create_connection((host, port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except (OSError, ValueError):
        return ""


def _write_private(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def _with_query(uri: str, **values: str) -> str:
    parts = urlsplit(uri)
    query = urlencode({**dict(parse_qsl(parts.query, keep_blank_values=True)), **values})
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, parts.fragment))
