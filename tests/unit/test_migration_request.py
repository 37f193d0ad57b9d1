# SPDX-License-Identifier: Apache-2.0
"""What libvirt is asked for by a request to migrate, and what its errors say."""

from __future__ import annotations

import libvirt
import pytest

from homeostat.api import actions as act
from homeostat.hosts.driver import HostError, HostUnreachable
from homeostat.hosts.jobs import flags, parameters
from homeostat.hosts.migration import (
    MigrationAborted,
    MigrationRefused,
    MigrationRequest,
    PeerUnreachable,
    PostCopyRefused,
    classified,
)
from homeostat.hosts.perform import request

pytestmark = pytest.mark.unit

PEER = "qemu+tls://198.51.100.2/system"
ALWAYS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
)
DISKS = """<domain><devices>
<disk><target dev='vda'/><alias name='ua-root'/></disk><disk><target dev='vdb'/><alias name='ua-data'/></disk>
</devices></domain>"""


def test_what_is_not_asked_for_is_left_out() -> None:
    assert flags(MigrationRequest(PEER)) == ALWAYS
    assert parameters(MigrationRequest(PEER)) == {}


def test_everything_that_is_asked_for_is_there() -> None:
    request = MigrationRequest(
        PEER, "tcp://198.51.100.2", tls=True, post_copy=True, auto_converge=True, connections=4,
        compression="zstd", bandwidth_mib_s=100, post_copy_mib_s=50, start_paused=True, copy="Incremental",
        copy_disks=("ua-data",), unsafe=True,
    )  # fmt: skip
    assert flags(request) == ALWAYS | (
        libvirt.VIR_MIGRATE_TLS
        | libvirt.VIR_MIGRATE_POSTCOPY
        | libvirt.VIR_MIGRATE_AUTO_CONVERGE
        | libvirt.VIR_MIGRATE_PARALLEL
        | libvirt.VIR_MIGRATE_COMPRESSED
        | libvirt.VIR_MIGRATE_PAUSED
        | libvirt.VIR_MIGRATE_NON_SHARED_INC
        | libvirt.VIR_MIGRATE_UNSAFE
    )
    assert parameters(request, DISKS) == {
        "migrate_uri": "tcp://198.51.100.2",
        "parallel.connections": 4,
        "compression": "zstd",
        "bandwidth": 100,
        "bandwidth.postcopy": 50,
        "migrate_disks": ["vdb"],
    }


def test_the_bandwidth_of_a_policy_holds_in_post_copy_too() -> None:
    asked = request(act.Migrate("a", "u", PEER, post_copy=True, bandwidth_mib=4))
    assert parameters(asked) == {"bandwidth": 4, "bandwidth.postcopy": 4}


def test_a_disk_that_is_not_there_is_not_copied() -> None:
    with pytest.raises(HostError, match="no disk ua-other"):
        parameters(MigrationRequest(PEER, copy="Full", copy_disks=("ua-other",)), DISKS)


@pytest.mark.parametrize("copy", ["Full", "Incremental"])
def test_a_copy_of_no_disk_would_copy_all_and_is_no_request(copy: str) -> None:
    with pytest.raises(ValueError, match="storage copy"):
        MigrationRequest(PEER, copy=copy)
    with pytest.raises(ValueError, match="storage copy"):
        MigrationRequest(PEER, copy_disks=("vda",))


# In the words of libvirt 9.0.
@pytest.mark.parametrize(
    ("code", "domain", "message", "kind"),
    [
        (81, 10, "Unsafe migration: Migration without shared storage is unsafe", MigrationRefused),
        (38, 7, "unable to connect to server at '198.51.100.250:16509': Connection refused", PeerUnreachable),
        (38, 7, "Unable to resolve address 'x' service '16509': Name or service not known", PeerUnreachable),
        (38, 7, "Cannot read CA certificate '/etc/pki/CA/cacert.pem': No such file or directory", PeerUnreachable),
        (38, 7, "The client certificate /etc/pki/libvirt/clientcert.pem has expired", PeerUnreachable),
        (45, 7, "authentication failed: Failed to verify peer's certificate", PeerUnreachable),
        (45, 7, "authentication failed: TLS handshake failed Error in the pull function.", PeerUnreachable),
        (27, 5, "XML error: expecting root element of 'domain', not 'none'", HostError),
        (55, 10, "Requested operation is not valid: another migration job is already running for domain 'x'",
         MigrationRefused),
        (1, 10, "internal error: Attempt to migrate guest to the same host c7abae74", MigrationRefused),
        (1, 10, "internal error: unable to execute QEMU command 'migrate-set-capabilities': Postcopy is not supported",
         PostCopyRefused),
        (1, 10, "internal error: unable to execute QEMU command 'migrate-set-capabilities': Postcopy is not supported: "
                "Userfaultfd not available: Operation not permitted", PostCopyRefused),  # QEMU 8.1 and later
        (78, 10, "operation aborted: job 'migration out' canceled by client", MigrationAborted),
        (55, 10, "Requested operation is not valid: domain is not running", HostError),
        (1, 7, "internal error: client socket is closed", HostError),
        (38, 7, "Cannot recv data: Connection reset by peer", HostError),
        (38, 7, "End of file while reading data: Input/output error", HostError),
        (9, 10, "operation failed: job 'migration out' unexpectedly failed", HostError),
    ],
)  # fmt: skip
def test_only_what_says_that_nothing_was_begun_is_a_refusal(
    code: int, domain: int, message: str, kind: type[HostError]
) -> None:
    assert type(classified(HostError(code, message, domain))) is kind


def test_a_lost_source_says_nothing_whatever_its_words() -> None:
    lost = HostUnreachable(38, "unable to connect to server at '198.51.100.1:16509': Connection refused", 7)
    assert classified(lost) is lost
