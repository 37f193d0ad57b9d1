# SPDX-License-Identifier: Apache-2.0
"""Carrying out one action on one host: one mutating call, no decision."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from homeostat.api import actions
from homeostat.api.observed import HostFacts
from homeostat.hosts.domain_xml import owner_element, render
from homeostat.hosts.driver import NO_CONNECT, Connection, HostUnreachable
from homeostat.hosts.migration import MigrationRequest
from homeostat.hosts.volume_xml import render_volume


async def perform(action: actions.HostAction, connection: Connection, facts: HostFacts | None) -> None:
    """Carry out `action` on the host that `connection` leads to and `facts` describe.

    HostError with libvirt's words; HostUnreachable when the connection was lost. Neither, nor a return, is proof:
    each action's post-condition is looked for in the next pass.
    """
    match action:
        case actions.CreateVolume():
            await _create_volume(action, connection, facts)
        case actions.DeleteVolume(pool=pool, name=name):
            await connection.delete_volume(pool, name)
        case actions.Define():
            await _define(action, connection)
        case actions.Mark(uuid=uuid, owner=owner, live=live):
            await connection.set_metadata(uuid, owner_element(owner), live=live)
        case actions.Start(uuid=uuid, paused=paused):
            await connection.create(uuid, paused=paused)
        case actions.Shutdown(uuid=uuid, agent=agent):
            await connection.shutdown(uuid, agent=agent)
        case actions.Destroy(uuid=uuid):
            await connection.destroy(uuid)
        case actions.Suspend(uuid=uuid):
            await connection.suspend(uuid)
        case actions.Resume(uuid=uuid):
            await connection.resume(uuid)
        case actions.DiscardManagedSave(uuid=uuid):
            await connection.remove_managed_save(uuid)
        case actions.Undefine(uuid=uuid):
            await connection.undefine(uuid)
        case _:
            assert_never(action)


async def perform_migration(
    action: actions.MigrationAction, connection: Connection, facts: HostFacts | None = None
) -> None:
    """Carry out an action of a migration on the host that `connection` leads to: see perform.

    Migrate and ResumePostCopy return when libvirt's call does, which may take hours; given up on, they go on.
    """
    match action:
        case actions.Migrate(uuid=uuid):
            await connection.migrate(uuid, request(action))
        case actions.ResumePostCopy(request=asked):
            await connection.resume_post_copy(asked.uuid, replace(request(asked), post_copy_mib_s=0))
        case actions.AbortMigration(uuid=uuid):
            await connection.abort_job(uuid)
        case actions.SetMaxDowntime(uuid=uuid, milliseconds=milliseconds):
            await connection.set_max_downtime(uuid, milliseconds)
        case actions.StartPostCopy(uuid=uuid):
            await connection.start_post_copy(uuid)
        case actions.DestroyStale(uuid=uuid):
            await connection.destroy(uuid)
        case actions.UndefineStale(uuid=uuid):
            await connection.undefine(uuid)
        case actions.RedefineCheckpoint(uuid=uuid, xml=xml):
            await connection.redefine_checkpoint(uuid, xml)
        case actions.PersistTarget(uuid=uuid):
            await _persist(uuid, connection)
        case _:
            await perform(action, connection, facts)


def request(action: actions.Migrate) -> MigrationRequest:
    """What libvirt is asked for."""
    address = f"[{action.address}]" if ":" in action.address else action.address
    port = f":{action.port}" if action.port else ""
    return MigrationRequest(
        peer=action.peer,
        migrate_uri=f"tcp://{address}{port}" if address else "",
        tls=action.tls,
        post_copy=action.post_copy,
        auto_converge=action.auto_converge,
        connections=action.connections,
        compression=action.compression,
        bandwidth_mib_s=action.bandwidth_mib,
        post_copy_mib_s=action.bandwidth_mib,
        max_downtime_ms=action.max_downtime_ms,
        start_paused=action.start_paused,
        copy=action.copy,
        copy_disks=action.copy_disks,
        unsafe=action.unsafe,
    )


async def _persist(uuid: str, connection: Connection) -> None:
    """Define a transient domain as it runs. Gone meanwhile: what is defined then is off, and seen as such."""
    xml = await connection.xml(uuid, inactive=True)
    if xml is not None:
        await connection.define(xml)


async def _create_volume(action: actions.CreateVolume, connection: Connection, facts: HostFacts | None) -> None:
    if facts is None:
        raise HostUnreachable(NO_CONNECT, "the host has not said yet which user its disks have to belong to")
    owner = facts.disk_owner
    xml = render_volume(action.name, action.format, action.capacity, action.backing, owner=owner)
    await connection.create_volume(action.pool, xml)


async def _define(action: actions.Define, connection: Connection) -> None:
    carried = await connection.xml(action.uuid, inactive=True)
    await connection.define(render(action.uuid, action.name, action.config, action.owner, carried))
