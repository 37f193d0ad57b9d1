# SPDX-License-Identifier: Apache-2.0
"""What real hosts say, before and after a migration, of what is in its way and of what it cost."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from homeostat.hosts.driver import OPERATION_INVALID, HostError
from homeostat.hosts.migration import PostCopyRefused
from tests.lab import Lab
from tests.lab.moving import RUNS, Move, drilled

pytestmark = pytest.mark.lab
HOSTS = 3

STOCK = 2
"""The host whose QEMU does not run as root."""
SNAPSHOT = "<domainsnapshot><name>before</name></domainsnapshot>"


def test_a_domain_with_snapshots_shows_them_and_is_refused_by_libvirt(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        virt = libvirt.open(move.hosts[0].uri_tcp)
        one = virt.lookupByUUIDString(move.one.uuid)
        try:
            snapshot = await asyncio.to_thread(one.snapshotCreateXML, SNAPSHOT, 0)
            assert await _shown(move)
            with pytest.raises(HostError, match="snapshots") as caught:
                await move.source.connection.migrate(move.one.uuid, move.request)
            assert caught.value.code == OPERATION_INVALID
            await asyncio.to_thread(snapshot.delete, libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
            assert not await _shown(move)
        finally:
            virt.close()

    drilled(lab, drill)


async def _shown(move: Move) -> bool:
    """Whether the host shows snapshots, in its list and when asked for the one domain alike."""
    listed = {row.uuid: row.snapshots for row in await move.source.connection.domains()}
    alone = await move.source.connection.domain(move.one.uuid)
    assert alone is not None
    assert alone.snapshots == listed[move.one.uuid]
    return alone.snapshots


def test_the_mtu_of_a_bridge_is_that_of_its_device(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        before = {(kind, name): mtu for kind, name, mtu in move.source.facts.mtus}
        assert before["Bridge", "br0"] == 1500
        await asyncio.to_thread(move.hosts[0].execute, "ip", "link", "set", "br0", "mtu", "1400")
        try:
            facts = await move.source.connection.facts()
            assert ("Bridge", "br0", 1400) in facts.mtus
        finally:
            await asyncio.to_thread(move.hosts[0].execute, "ip", "link", "set", "br0", "mtu", "1500")

    drilled(lab, drill)


def test_a_target_without_userfaultfd_refuses_post_copy_before_anything_is_copied(lab: Lab) -> None:
    assert Path("/proc/sys/vm/unprivileged_userfaultfd").read_text() == "0\n"

    async def drill(move: Move) -> None:
        user = move.target.facts.disk_owner
        assert user[0] != 0
        os.chown(move.hosts[1].pool_path("shared") / move.one.volume("root"), *user)  # root opens it as well
        with pytest.raises(PostCopyRefused):
            await move.source.connection.migrate(move.one.uuid, replace(move.request, post_copy=True))
        await move.until((RUNS, None))
        assert move.qemus() == (True, False)

    drilled(lab, drill, target=STOCK)


def test_the_target_knows_for_a_while_what_it_cost(lab: Lab) -> None:
    async def drill(move: Move) -> None:
        assert await move.target.connection.cost(move.one.uuid) is None
        await move.begin()
        assert await move.source.connection.cost(move.one.uuid) is None
        await move.switch()
        assert await move.outcome() is None
        told = await move.target.connection.cost(move.one.uuid)
        assert told is not None
        assert told.transferred > 1 << 20
        assert told.downtime is not None
        assert 0 < told.downtime < 60_000
        assert await move.target.connection.cost(move.one.uuid) == told
        assert await move.source.connection.cost(move.one.uuid) is None

    drilled(lab, drill)
