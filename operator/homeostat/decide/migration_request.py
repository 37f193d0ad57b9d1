# SPDX-License-Identifier: Apache-2.0
"""What libvirt is asked for when a VM is moved, and why a VM is not to be moved on."""

from __future__ import annotations

from urllib.parse import urlsplit

from homeostat.api import actions as act
from homeostat.api.hypervisor import HypervisorSpec
from homeostat.api.migration import IntentStatus, StorageCopy
from homeostat.api.migration_policy import EffectivePolicy
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide.migration_policy import bandwidth_mib
from homeostat.decide.vm import deleting, runstrategy_wants_process


def request(
    intent: IntentStatus, policy: EffectivePolicy, copied: StorageCopy | None, target: HypervisorSpec
) -> act.Migrate:
    """The call for this intent. `target`: where its peers reach it is the target's to say."""
    peer = peer_uri(target)
    return act.Migrate(
        host=intent.source,
        uuid=intent.domain_uuid,
        target=intent.target,
        peer=peer,
        address=target.migration.address or urlsplit(peer).hostname or "",
        ports=(target.migration.ports.first, target.migration.ports.last) if target.migration.ports else None,
        tls=policy.tls == "Enabled",
        post_copy=intent.post_copy == "Enabled",
        auto_converge=policy.auto_converge == "Enabled",
        connections=policy.parallel_connections,
        compression=policy.compression,
        bandwidth_mib=bandwidth_mib(policy),
        max_downtime_ms=policy.max_downtime_milliseconds,
        start_paused=intent.started_paused == "Enabled",
        copy=copied.type if copied else "None",
        copy_disks=tuple(f"ua-disk-{name}" for name in copied.disks) if copied else (),
        # Asked for only after every disk that is not copied was proved to be on storage that both hosts share.
        unsafe=True,
    )


def peer_uri(target: HypervisorSpec) -> str:
    """Where the source's daemon reaches the target's; "" when the Hypervisor does not say."""
    uri = target.migration.peer_uri or target.uri
    return uri if urlsplit(uri).hostname else ""


def stops(vm: VirtualMachine | None) -> str:
    """Why the VM is not to run any more, or on this account not to be moved; "" when it is."""
    if vm is None:
        return "the VM is gone"
    if deleting(vm):
        return "the VM is being deleted"
    return "" if runstrategy_wants_process(vm) else "the VM is to be stopped"
