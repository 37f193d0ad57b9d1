# SPDX-License-Identifier: Apache-2.0
"""Keys, certificates and kubeconfigs of one control plane."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

EC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
SERVER_NAMES = "IP:127.0.0.1,DNS:localhost,DNS:kubernetes.default.svc"


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def _certificate(directory: Path, name: str, subject: str, *options: str | Path) -> None:
    config = directory / "openssl.cnf"  # without one of our own, OpenSSL adds the extensions of the system's
    config.write_text("[req]\ndistinguished_name = dn\n[dn]\n")
    files = ("-keyout", directory / f"{name}.key", "-out", directory / f"{name}.crt")
    identifiers = ("-addext", "subjectKeyIdentifier=hash", "-addext", "authorityKeyIdentifier=keyid:always")
    request = ("req", "-x509", "-config", config, *EC_KEY, "-subj", subject, "-days", "3650")
    _openssl(*request, *files, *identifiers, *options)


def issue(directory: Path) -> None:
    """Make the authority, the server's certificate, the two clients' and the service accounts' key, once."""
    if (directory / "sa.key").exists():
        return
    authority = ("-CA", directory / "ca.crt", "-CAkey", directory / "ca.key")
    client = ("-addext", "extendedKeyUsage=clientAuth")
    server = ("-addext", "extendedKeyUsage=serverAuth", "-addext", f"subjectAltName={SERVER_NAMES}")
    signer = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    _certificate(directory, "ca", "/CN=local-ca", *signer)
    _certificate(directory, "server", "/CN=kube-apiserver", *authority, *server)
    _certificate(directory, "admin", "/O=system:masters/CN=admin", *authority, *client)
    _certificate(directory, "manager", "/O=system:masters/CN=system:kube-controller-manager", *authority, *client)
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", directory / "sa.key")


def _embedded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def client_certificate(directory: Path, name: str) -> dict[str, str]:
    """Return the kubeconfig user that presents this client's certificate."""
    return {
        "client-certificate-data": _embedded(directory / f"{name}.crt"),
        "client-key-data": _embedded(directory / f"{name}.key"),
    }


def write_kubeconfig(path: Path, server: str, authority: Path, user: dict[str, Any]) -> None:
    """Write a kubeconfig, readable by its owner only, for one user of one server."""
    cluster = {"server": server, "certificate-authority-data": _embedded(authority)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": cluster}],
        "users": [{"name": path.stem, "user": user}],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": path.stem}}],
        "current-context": "local",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=2))
