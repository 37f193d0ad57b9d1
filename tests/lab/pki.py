# SPDX-License-Identifier: Apache-2.0
"""Certificates of a lab: an authority of its own, hosts, clients, and the wrong ones that drills need."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.lab.processes import run

VALID = 'expiration_days = 3650\nactivation_date = "2020-01-01 00:00:00 UTC"\n'
EXPIRED = 'activation_date = "2020-01-01 00:00:00 UTC"\nexpiration_date = "2020-02-01 00:00:00 UTC"\n'


def _key(path: Path) -> None:
    # RSA: libvirt wants a key that may encipher keys, which an elliptic one cannot.
    run("certtool", "--generate-privkey", "--key-type=rsa", "--bits=2048", "--no-text", "--outfile", path)
    path.chmod(0o600)


def authority(folder: Path, name: str) -> None:
    """Make an authority: cacert.pem and cakey.pem in `folder`."""
    folder.mkdir(parents=True)
    _key(folder / "cakey.pem")
    template = folder / "cacert.template"
    template.write_text(f'cn = "{name}"\nca\ncert_signing_key\n{VALID}')
    run("certtool", "--generate-self-signed", "--load-privkey", folder / "cakey.pem",
        "--template", template, "--no-text", "--outfile", folder / "cacert.pem")


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
    key, file = folder / f"{kind}key.pem", folder / f"{kind}.template"
    _key(key)
    file.write_text(template + "signing_key\nencryption_key\n" + (EXPIRED if expired else VALID))
    run("certtool", "--generate-certificate", "--load-privkey", key, "--load-ca-certificate", ca / "cacert.pem",
        "--load-ca-privkey", ca / "cakey.pem", "--template", file, "--no-text", "--outfile", folder / f"{kind}cert.pem")
