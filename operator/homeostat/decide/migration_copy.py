# SPDX-License-Identifier: Apache-2.0
"""The volumes of a storage copy: made ready before libvirt is asked, and put in order when the attempt has ended.

Which copy of a disk counts is read from the world: a volume beside which its pool has a mark, a small volume named
after it, is not the VM's disk, and nothing is started from it (`mark_on`). The source's volume is marked *stale* before
the copy begins, and the target's *incoming* before it is made. So at no point, whoever dies there, can anything but the
process that runs use either of them. When the VM is on the target, its mark goes and the source's stays; when it has
stayed on the source, what the attempt made goes, and then its marks.

Of the target's volumes only those are removed that this attempt made, or that an earlier migration of this very VM left
marked: while the VM runs from another volume, which is proved to be on another storage, for the target does not show
the source's mark. All others are in the way, and the attempt ends.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from homeostat.api import actions as act
from homeostat.api.migration import DiskCopyStatus, IntentStatus, MarksStatus
from homeostat.api.observed import Unknown
from homeostat.decide import wanted
from homeostat.decide.migratable import Move, pools_of
from homeostat.decide.view import Say

MARK_BYTES = 512
_MARK = r"\.(?:stale|incoming)-([0-9a-f]{8})-[0-9a-f]{8}"
Names = frozenset[str] | Unknown


def mark_on(volume: str, names: Iterable[str]) -> str | None:
    """The mark that says that a volume is not its VM's disk, whichever VM's; None when there is none."""
    return next(_marks(volume, names), None)


def stale_mark(volume: str, intent: IntentStatus) -> str:
    """Name of the mark on the source's volume: with a digest of the domain's UUID, and one of the migration's UID."""
    return f"{volume}.stale-{_digest(intent.domain_uuid)}-{_digest(intent.attempt)}"


def incoming_mark(volume: str, intent: IntentStatus) -> str:
    """Name of the mark on the target's volume."""
    return f"{volume}.incoming-{_digest(intent.domain_uuid)}-{_digest(intent.attempt)}"


def _digest(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def _marks(volume: str, names: Iterable[str], domain_uuid: str | None = None) -> Iterator[str]:
    """The marks on a volume, of one VM or of any."""
    pattern = re.compile(re.escape(volume) + _MARK)
    for name in sorted(names):
        found = pattern.fullmatch(name)
        if found and (domain_uuid is None or found[1] == _digest(domain_uuid)):
            yield name


# Before there is an intent
# ------------------------------------------------------------------------------------------------------------


def pools(move: Move) -> dict[str, tuple[str, ...]]:
    """The pools of disks that are to be copied, by Hypervisor."""
    pairs = [pools_of(move, disk.pool) for disk in move.vm.spec.disks if disk.name in move.copied]
    return {
        move.source.name: tuple(sorted({here.pool for here, _ in pairs if here})),
        move.target.name: tuple(sorted({there.pool for _, there in pairs if there})),
    }


def sources(move: Move) -> tuple[tuple[str, str], ...]:
    """(pool, volume) of each disk that is to be copied, on the source."""
    disks = [disk for disk in move.vm.spec.disks if disk.name in move.copied]
    pairs = ((pools_of(move, disk.pool)[0], wanted.volume_name(move.vm, disk)) for disk in disks)
    return tuple((pool.pool, volume) for pool, volume in pairs if pool)


def planned(move: Move) -> tuple[DiskCopyStatus, ...] | Say:
    """What is to be copied, or what is in the way. The pools and sizes have to have been looked at."""
    here, there = wanted.volumes(move.vm, move.source), wanted.volumes(move.vm, move.target)
    pairs = [(a, b) for a, b in zip(here, there, strict=True) if a.kind != "File" and a.disk in move.copied]
    for a, b in pairs:
        if (say := _in_the_way(move, a, b)) is not None:
            return say
    return tuple(_copy(move, a, b) for a, b in pairs)


def _in_the_way(move: Move, a: wanted.WantedVolume, b: wanted.WantedVolume) -> Say | None:
    size = move.source.sizes.get((a.pool, a.name))
    if not _runs_from(move, a):
        return Say(
            "NotMigratable", f"disk {a.disk!r} is not just volume {a.name!r} and its image on {move.source.name}"
        )
    if not isinstance(size, int):
        return Say("NotMigratable", f"volume {a.name!r} of pool {a.pool!r} cannot be read on {move.source.name}")
    names = move.target.volumes.get(b.pool, Unknown("PoolUnavailable", "it was not looked at"))
    if isinstance(names, Unknown):
        return Say("NotMigratable", f"pool {b.pool!r} on Hypervisor {move.target.name}: {names.message}")
    if b.name in names and not any(_marks(b.name, names, wanted.domain_uuid(move.vm))):
        return Say("VolumeInTheWay", _in_way(b.name, b.pool, move.target.name))
    return None


def _runs_from(move: Move, volume: wanted.WantedVolume) -> bool:
    """Whether the guest's disk is the volume that the spec means, with nothing but the disk's image under it."""
    alias = f"ua-disk-{volume.disk}"
    meant = wanted.config(move.vm, move.source, move.domain)
    (disk,) = [each for each in meant.disks if each.alias == alias]
    files = (disk.path, *(path for path, _ in disk.backing))
    chain = dict(move.domain.chains).get(alias, ())
    return chain[: len(files)] == files and (bool(disk.backing) or len(chain) == 1)


def _in_way(volume: str, pool: str, host: str) -> str:
    return f"pool {pool!r} on Hypervisor {host} has {volume!r}, which no migration of this VM left there"


def _copy(move: Move, a: wanted.WantedVolume, b: wanted.WantedVolume) -> DiskCopyStatus:
    size = move.source.sizes[a.pool, a.name]
    return DiskCopyStatus(
        disk=a.disk,
        volume=a.name,
        source_pool=a.pool,
        target_pool=b.pool,
        format=a.format,
        size_bytes=size if isinstance(size, int) else 0,
        backing=b.backing[0] if b.backing else None,
        backing_format=b.backing[1] if b.backing else None,
    )


# With an intent
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Volumes:
    """An attempt, and what is known of its volumes: the names in each (Hypervisor, pool), seen just now.

    `silent` are hosts that cannot be asked: nothing is done there. `source_counts`: the source's copy of the disks is
    the VM's. `discard`: the target's never was.
    """

    intent: IntentStatus
    marks: MarksStatus
    names: Mapping[tuple[str, str], Names]
    now: datetime
    grace: float
    silent: frozenset[str] = frozenset()
    source_counts: bool = True
    discard: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done about a volume next, or waited for. `refused`: nothing can be done, and the attempt ends."""

    detail: str
    action: act.CreateVolume | act.DeleteVolume | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class _Disk:
    """One disk of an attempt: what its two pools have."""

    known: Volumes
    copy: DiskCopyStatus
    here: frozenset[str]
    there: frozenset[str]

    @property
    def volume(self) -> str:
        return self.copy.volume

    @property
    def stale(self) -> str:
        return stale_mark(self.volume, self.known.intent)

    @property
    def incoming(self) -> str:
        return incoming_mark(self.volume, self.known.intent)

    @property
    def earlier(self) -> list[str]:
        """Marks that earlier migrations of this VM left on the target's volume."""
        own = _marks(self.volume, self.there, self.known.intent.domain_uuid)
        return [name for name in own if name not in (self.incoming, self.stale)]

    def mark_source(self) -> Step:
        return self._make(self.known.intent.source, self.copy.source_pool, self.stale)

    def mark_target(self) -> Step:
        return self._make(self.known.intent.target, self.copy.target_pool, self.incoming)

    def make(self) -> Step:
        copy, host = self.copy, self.known.intent.target
        backing = (copy.backing, copy.backing_format or "raw") if copy.backing else None
        action = act.CreateVolume(host, copy.target_pool, copy.volume, copy.format, copy.size_bytes, backing)
        return Step(f"disk {copy.disk!r}: its volume is made on {host}", action)

    def _make(self, host: str, pool: str, name: str) -> Step:
        action = act.CreateVolume(host, pool, name, "raw", MARK_BYTES)
        return Step(f"disk {self.copy.disk!r}: its volume is marked on {host}", action)

    def remove(self, name: str, *, source: bool = False) -> Step:
        intent, copy = self.known.intent, self.copy
        host, pool = (intent.source, copy.source_pool) if source else (intent.target, copy.target_pool)
        return Step(f"disk {copy.disk!r}: {name} is removed from {host}", act.DeleteVolume(host, pool, name))


def prepare(known: Volumes) -> Step | None:
    """The next step before libvirt is asked; None when all is ready."""
    return _each(known, _prepare)


def clean(known: Volumes) -> Step | None:
    """The next step after an attempt that came to nothing; None when nothing of it is left that can be removed."""
    return _waited(known, known.marks.volume_made) or _each(known, _clean)


def complete(known: Volumes) -> Step | None:
    """The next step after the VM has come to the target; None when the target's copy alone can be started from."""
    return _waited(known, known.marks.volume_made) or _each(known, _complete)


def _each(known: Volumes, decide: Callable[[_Disk], Step | None]) -> Step | None:
    for copy in known.intent.copies:
        here = _names(known, known.intent.source, copy.source_pool)
        there = _names(known, known.intent.target, copy.target_pool)
        for names in (here, there):
            if isinstance(names, Unknown):
                return Step(names.message)
        assert not isinstance(here, Unknown) and not isinstance(there, Unknown)
        if (step := decide(_Disk(known, copy, here, there))) is not None:
            return step
    return None


def _names(known: Volumes, host: str, pool: str) -> Names:
    """What a pool has; nothing, if its host is silent: then nothing is found to be done there."""
    if host in known.silent:
        return frozenset()
    names = known.names.get((host, pool), Unknown("PoolUnavailable", "it was not looked at"))
    return Unknown(names.reason, f"pool {pool!r} on {host}: {names.message}") if isinstance(names, Unknown) else names


def _prepare(disk: _Disk) -> Step | None:
    intent, copy = disk.known.intent, disk.copy
    if disk.volume not in disk.here:
        return Step(f"pool {copy.source_pool!r} on {intent.source} has no {disk.volume!r}", refused=True)
    if disk.stale not in disk.here:
        return disk.mark_source()
    if disk.stale in disk.there:
        return Step(f"pool {copy.target_pool!r} on {intent.target} is the storage that the disk is on", refused=True)
    if disk.incoming not in disk.there:
        if disk.volume in disk.there and not disk.earlier:
            return Step(_in_way(disk.volume, copy.target_pool, intent.target), refused=True)
        return disk.mark_target()
    if disk.earlier:  # made for an earlier attempt: what is in it may shine through a copy
        return disk.remove(disk.volume if disk.volume in disk.there else disk.earlier[0])
    if disk.volume in disk.there:
        return None
    return _waited(disk.known, disk.known.marks.volume_removed) or disk.make()


def _clean(disk: _Disk) -> Step | None:
    known = disk.known
    if disk.incoming in disk.there and disk.stale not in disk.there:
        if disk.volume not in disk.there:
            return disk.remove((disk.earlier or [disk.incoming])[0])
        if disk.earlier:  # the volume is not this attempt's
            return disk.remove(disk.incoming)
        if known.discard:
            return disk.remove(disk.volume)
    return disk.remove(disk.stale, source=True) if disk.stale in disk.here and known.source_counts else None


def _waited(known: Volumes, mark: datetime | None) -> Step | None:
    """A call of an operator that has died since may still be carried out, and would make again what is removed."""
    if mark is None or (known.now - mark).total_seconds() >= known.grace:
        return None
    return Step("what was asked of the hosts last is given the grace period to be carried out")


def _complete(disk: _Disk) -> Step | None:
    if disk.volume in disk.here and disk.stale not in disk.here:
        return disk.mark_source()
    if disk.volume not in disk.there:
        return None
    own = next(_marks(disk.volume, disk.there, disk.known.intent.domain_uuid), None)
    return disk.remove(own) if own else None


def left(known: Volumes, *, moved: bool) -> str:
    """What is left on hosts and has to be known, in words; "" when nothing is."""
    intent, words = known.intent, list[str]()
    for copy in intent.copies if known.marks.volume_made else ():
        if intent.target in known.silent:
            words.append(f"{intent.target} was not asked, and may have volume {copy.volume!r}, marked")
        elif moved and copy.volume not in _there(known, copy):
            words.append(f"pool {copy.target_pool!r} on {intent.target} has no volume {copy.volume!r} any more")
        elif not moved and not known.discard and incoming_mark(copy.volume, intent) in _there(known, copy):
            words.append(f"{intent.target} keeps volume {copy.volume!r}, marked, which the VM may have run from")
        if not moved and (intent.source in known.silent or not known.source_counts):
            words.append(f"volume {copy.volume!r} on {intent.source} stays marked, and is not started from")
    return "; ".join(words)


def _there(known: Volumes, copy: DiskCopyStatus) -> frozenset[str]:
    names = known.names.get((known.intent.target, copy.target_pool))
    return names if isinstance(names, frozenset) else frozenset()
