# SPDX-License-Identifier: Apache-2.0
"""Hosts over TLS: credentials that are missing, wrong, expired, rotated; the VMs there run on through all of it."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from tests.lab.rig import Rig
from tests.operator_process import NAMESPACE

pytestmark = pytest.mark.usefixtures("_no_secret")
FILES = {"ca.crt": "cacert.pem", "tls.crt": "clientcert.pem", "tls.key": "clientkey.pem"}


def secret(rig: Rig, kind: str, *without: str) -> None:
    """Make the Secret `h1` what a folder of the lab's certificates holds."""
    files = {key: (rig.lab.pki / kind / name).read_bytes() for key, name in FILES.items() if key not in without}
    data = {key: base64.b64encode(text).decode() for key, text in files.items()}
    rig.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "h1", "namespace": NAMESPACE}, "data": data})


@pytest.fixture(autouse=True, scope="module")
def _silent(session_rig: Rig) -> Iterator[None]:
    """Nothing that is tried here leaves a key, a traceback, or a warning that is not a sentence, in the log."""
    before = len(session_rig.operator.log)
    yield
    log = session_rig.operator.log[before:]
    assert not session_rig.unreadable(log)
    for key in (session_rig.lab.pki / "client" / "clientkey.pem").read_text().splitlines():
        assert key not in log
        assert base64.b64encode(key.encode()).decode().rstrip("=") not in log


@pytest.fixture
def _no_secret(rig: Rig) -> Iterator[None]:
    yield
    rig.kubectl("delete", "secret", "h1", "-n", NAMESPACE, "--ignore-not-found")


def over_tls(rig: Rig) -> None:
    """Have h1 spoken to over TLS, with the Secret `h1`."""
    spec = {"uri": rig.lab.hosts[0].uri_tls, "credentials": {"secretRef": {"name": "h1"}}}
    rig.patch("hv", "h1", {"spec": spec})


def refused(rig: Rig, reason: str, *words: str) -> None:
    """Wait until h1 is refused for this reason; its message has these words."""

    def told() -> bool:
        status = rig.status("hv", "h1")
        (ready,) = [each for each in status["conditions"] if each["type"] == "Ready"]
        said = all(word in ready["message"] for word in words)
        return (status["state"], status["reason"], said) == ("Refused", reason, True)

    rig.until(told, f"{reason} with {words}")


def ready(rig: Rig) -> None:
    rig.known("hv", "h1")
    rig.until(lambda: rig.state("hv", "h1") == "Ready", "h1 to be Ready")


def running_vm(rig: Rig) -> tuple[str, int | None]:
    uuid = rig.vm("web", placement={"host": "h1"})
    rig.running("web")
    return uuid, rig.lab.hosts[0].qemu_pid(uuid)


def test_credentials_come_lack_expire_and_rotate_without_a_restart_and_a_vm_runs_on(rig: Rig) -> None:
    uuid, pid = running_vm(rig)
    over_tls(rig)
    refused(rig, "CredentialsMissing", f"Secret {NAMESPACE}/h1 does not exist")
    rig.until(lambda: rig.state("vm", "web") == "Unknown", "its VM to be unknown")
    secret(rig, "client", "tls.key")
    refused(rig, "CredentialsMissing", f"Secret {NAMESPACE}/h1 lacks tls.key")
    secret(rig, "client")
    ready(rig)
    rig.running("web")
    secret(rig, "client-expired")
    refused(rig, "TLSFailed", "tls.crt", "expired")
    secret(rig, "client")
    ready(rig)
    secret(rig, "client-wrong-ca")
    refused(rig, "TLSFailed", "certificate")
    secret(rig, "client")
    ready(rig)
    rig.running("web")
    assert rig.lab.hosts[0].qemu_pid(uuid) == pid


def test_a_host_whose_certificate_has_expired_is_refused_until_it_has_a_good_one(rig: Rig) -> None:
    host = rig.lab.hosts[0]
    over_tls(rig)
    secret(rig, "client")
    ready(rig)
    uuid, pid = running_vm(rig)
    try:
        host.use_certificate("expired")
        refused(rig, "TLSFailed", "certificate has expired")
        rig.until(lambda: rig.state("vm", "web") == "Unknown", "its VM to be unknown")
    finally:
        host.use_certificate("good")
    rig.running("web")
    assert host.qemu_pid(uuid) == pid


def test_a_vm_is_deleted_when_the_secret_of_its_hypervisor_is_gone(rig: Rig) -> None:
    over_tls(rig)
    secret(rig, "client")
    ready(rig)
    uuid, _ = running_vm(rig)
    rig.kubectl("delete", "secret", "h1", "-n", NAMESPACE)
    rig.stays(lambda: rig.state("hv", "h1") == "Ready", "a connection that is there needs no Secret", 3)
    rig.delete("vm", "web")
    rig.gone("vm", "web")
    assert not any(domain.uuid == uuid for domain in rig.lab.hosts[0].domains())
