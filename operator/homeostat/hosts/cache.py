# SPDX-License-Identifier: Apache-2.0
"""What is known of the domains of one host. A newer read is never overwritten by one that was begun before it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from itertools import count
from xml.etree.ElementTree import ParseError

from homeostat.api.observed import ACTIVE_STATES, Checkpoint, Domain, Traits
from homeostat.hosts.domain_xml import ParsedDomain, parse
from homeostat.hosts.driver import Connection, DomainRow

log = logging.getLogger(__name__)


class DomainCache:
    """Domains by UUID. `domains` is replaced on a change, never altered: who holds it holds a snapshot."""

    def __init__(self) -> None:
        self.domains: dict[str, Domain] = {}
        self._begun = count(1)
        self._read: dict[str, int] = {}  # the number of the read that an entry, or its absence, comes from

    def begin(self) -> int:
        """The number of a read that begins now."""
        return next(self._begun)

    def put(self, number: int, seen: Mapping[str, Domain | None]) -> set[str]:
        """Take in what read `number` saw, None for absent; the UUIDs for which that is news."""
        fresh = {uuid: one for uuid, one in seen.items() if self._read.get(uuid, 0) < number}
        self._read.update(dict.fromkeys(fresh, number))
        changed = {uuid for uuid, one in fresh.items() if self.domains.get(uuid) != one}
        if changed:
            merged = {**self.domains, **{uuid: fresh[uuid] for uuid in changed}}
            self.domains = {uuid: one for uuid, one in merged.items() if one is not None}
        return changed

    def missing(self, number: int, listed: Iterable[str]) -> dict[str, Domain | None]:
        """Entries that a complete list, begun as read `number`, does not have."""
        gone = self.domains.keys() - set(listed)
        self._read = {uuid: read for uuid, read in self._read.items() if uuid in self.domains or read > number}
        return dict.fromkeys(gone)

    def changed_rows(self, rows: Iterable[DomainRow]) -> list[DomainRow]:
        """Rows that say something else than the cache, or that it does not have: their XML has to be read."""
        return [row for row in rows if not _agrees(self.domains.get(row.uuid), row)]


def _agrees(domain: Domain | None, row: DomainRow) -> bool:
    return domain is not None and DomainRow(
        domain.uuid, domain.name, domain.state, domain.reason, domain.persistent, domain.managed_save,
        domain.autostart, domain.snapshots, bool(domain.checkpoints),
    ) == row  # fmt: skip


async def read_domain(connection: Connection, uuid: str) -> Domain | None:
    """One domain, asked for now, with its definitions; None when the host says that it has none."""
    row = await connection.domain(uuid)
    return await read_definitions(connection, row) if row is not None else None


async def read_definitions(connection: Connection, row: DomainRow) -> Domain | None:
    """The domain of a row with its definitions, which are read now; None when it is gone meanwhile."""
    active = row.state in ACTIVE_STATES
    live = await connection.xml(row.uuid, inactive=False) if active else None
    inactive = await connection.xml(row.uuid, inactive=True) if row.persistent else None
    checkpoints = await connection.checkpoints(row.uuid) if row.checkpoints else ()
    if (active and live is None) or (row.persistent and inactive is None) or checkpoints is None:
        return None
    return _domain(row, _parsed(row, live), _parsed(row, inactive), checkpoints)


def bare(row: DomainRow) -> Domain:
    """The domain of a row whose definitions could not be read: nothing shows that it is ours."""
    return _domain(row, None, None)


def _domain(
    row: DomainRow, live: ParsedDomain | None, inactive: ParsedDomain | None, checkpoints: tuple[Checkpoint, ...] = ()
) -> Domain:
    lasting, shown = inactive or live, live or inactive
    return Domain(
        uuid=row.uuid,
        name=row.name,
        state=row.state,
        reason=row.reason,
        persistent=row.persistent,
        managed_save=row.managed_save,
        autostart=row.autostart,
        snapshots=row.snapshots,
        checkpoints=checkpoints,
        owner=lasting.owner if lasting else None,
        live_owner=live.owner if live else None,
        live=live.config if live else None,
        inactive=inactive.config if inactive else None,
        agent_connected=live.agent_connected if live else None,
        chains=shown.chains if shown else (),
        traits=shown.traits if shown else Traits(),
    )


def _parsed(row: DomainRow, text: str | None) -> ParsedDomain | None:
    try:
        return parse(text) if text is not None else None
    except (ParseError, ValueError) as error:
        log.info("the definition of domain %s cannot be read, it counts as somebody else's: %s", row.name, error)
        return None
