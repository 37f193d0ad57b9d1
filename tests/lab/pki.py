# SPDX-License-Identifier: Apache-2.0
"""Certificates of a lab: an authority of its own, hosts, clients, and the wrong ones that drills need."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.lab.processes import run

VALID = 'expiration_days = 3650\nactivation_date = "2020-01-01 00:00:00 UTC"\n'
EXPIRED = 'activation_date = "2020-01-01 00:00:00 UTC"\nexpiration_date = "2020-02-01 00:00:00 UTC"\n'


def _key(path: Path, *kind: str) -> None:
    run("certtool", "--generate-privkey", *kind, "--no-text", "--outfile", path)
    path.chmod(0o600)


def authority(folder: Path, name: str) -> None:
    """Make an authority in `folder`: cacert.pem, cakey.pem, and key.pem, the one key of all it certifies."""
    folder.mkdir(parents=True)
    _key(folder / "cakey.pem", "--key-type=ecdsa", "--bits=256")
    # RSA: libvirt wants a key that may encipher keys, which an elliptic one cannot.
    _key(folder / "key.pem", "--key-type=rsa", "--bits=2048")
    (folder / "cacert.template").write_text(f'cn = "{name}"\nca\ncert_signing_key\n{VALID}')
    _certificate(folder / "cacert", "--generate-self-signed", "--load-privkey", folder / "cakey.pem")


def server(ca: Path, folder: Path, name: str, address: str, *, expired: bool = False) -> None:
    """Make cacert.pem, servercert.pem and serverkey.pem in `folder` for a host of that name and IP address."""
    template = f'cn = "{name}"\ndns_name = "{name}"\nip_address = "{address}"\ntls_www_server\ntls_www_client\n'
    _issue(ca, folder, "server", template, expired=expired)


def client(ca: Path, folder: Path, name: str, *, expired: bool = False) -> None:
    """Make cacert.pem, clientcert.pem and clientkey.pem in `folder`: what libvirt's `?pkipath=` expects."""
    _issue(ca, folder, "client", f'cn = "{name}"\ntls_www_client\n', expired=expired)


def _issue(ca: Path, folder: Path, kind: str, template: str, *, expired: bool) -> None:
    folder.mkdir(parents=True)
    shutil.copy(ca / "cacert.pem", folder)
    key = shutil.copy2(ca / "key.pem", folder / f"{kind}key.pem")
    name = folder / f"{kind}cert"
    name.with_suffix(".template").write_text(f"{template}signing_key\nencryption_key\n{EXPIRED if expired else VALID}")
    authority = ("--load-ca-certificate", ca / "cacert.pem", "--load-ca-privkey", ca / "cakey.pem")
    _certificate(name, "--generate-certificate", "--load-privkey", key, *authority)


def _certificate(name: Path, *options: str | Path) -> None:
    template, out = name.with_suffix(".template"), name.with_suffix(".pem")
    run("certtool", *options, "--template", template, "--no-text", "--outfile", out)
