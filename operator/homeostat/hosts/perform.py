# SPDX-License-Identifier: Apache-2.0
"""Carrying out one action on one host: one mutating call, no decision."""

from __future__ import annotations

from typing import assert_never

from homeostat.api import actions
from homeostat.api.observed import HostFacts
from homeostat.hosts.domain_xml import owner_element, render
from homeostat.hosts.driver import NO_CONNECT, Connection, HostUnreachable
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


async def _create_volume(action: actions.CreateVolume, connection: Connection, facts: HostFacts | None) -> None:
    if facts is None:
        raise HostUnreachable(NO_CONNECT, "the host has not said yet which user its disks have to belong to")
    owner = facts.disk_owner
    xml = render_volume(action.name, action.format, action.capacity, action.backing, owner=owner)
    await connection.create_volume(action.pool, xml)


async def _define(action: actions.Define, connection: Connection) -> None:
    carried = await connection.xml(action.uuid, inactive=True)
    await connection.define(render(action.uuid, action.name, action.config, action.owner, carried))
