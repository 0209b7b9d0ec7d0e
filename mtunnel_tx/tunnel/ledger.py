"""The one place through which every effect of a tunnel goes: written down first, then done.

The journal's records fold into `Owed`: what a rollback must undo, and who owns the VM. The live tunnel and the recovery
after a crash read the same fold, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from twisted.internet.defer import DeferredLock

from mtunnel_tx.errors import WrongState
from mtunnel_tx.ports.journal import Journal

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """What stands because of one tunnel.

    `marks` are the states of the config that are our doing: its lock, or `absent`; `before` maps a used storage to
    the volumes that the VMID had there first; `unsettled` are storages where a child may have made a volume that was
    not named yet; `started`: there may be a QEMU; `whole`: it has the whole state; `ran`: it was told to run, `runs`:
    and does; `ours`: the source gave the VM up; `undo`: a rollback was begun.
    """

    vmid: int
    token: str = ""
    marks: frozenset[str] = frozenset()
    before: Mapping[str, frozenset[str]] = field(default_factory=dict)
    unsettled: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    firewall: bool = False
    started: bool = False
    whole: bool = False
    ran: bool = False
    runs: bool = False
    ours: bool = False
    undo: bool = False

    @property
    def given_up(self) -> bool:
        """The VM may have run here, or the source has given it up: nothing may be deleted any more."""
        return self.ran or self.ours


def apply(owed: Owed, record: Mapping[str, Any]) -> Owed:
    """One step of the fold. Raises: WrongState: a record that this version does not know."""
    change = _CHANGES.get(str(record.get("do")))
    if change is None:
        raise WrongState(f"journal of VM {owed.vmid}: unknown record {record.get('do')!r}")
    try:
        return change(replace(owed, marks=owed.marks - {"absent"}), record)
    except (LookupError, TypeError, ValueError) as error:
        raise WrongState(f"journal of VM {owed.vmid}: damaged record {record.get('do')!r}") from error


def fold(vmid: int, records: Iterable[Mapping[str, Any]]) -> Owed:
    """What is owed after all these records."""
    owed = Owed(vmid=vmid)
    for record in records:
        owed = apply(owed, record)
    return owed


class Ledger:
    """A live tunnel's journal. Every method writes first; the caller does the effect afterwards."""

    def __init__(self, journal: Journal, owed: Owed, *, standing: bool) -> None:
        self._journal = journal
        self.owed = owed
        self.closed = not standing
        # The watch for the whole state writes beside the command in work: neither may lose the other's record.
        self._writing = DeferredLock()

    async def open(self, token: str, at: float) -> None:
        """The claim. Raises: WrongState: a journal stands already."""
        record = {"version": VERSION, "do": "claim", "token": token, "at": int(at)}
        await self._journal.open(self.owed.vmid, record)
        self.owed = apply(self.owed, record)
        self.closed = False

    async def write(self, do: str, **values: object) -> None:
        """Add one record; `do` is a key of the table at the end of this module. Nothing where no journal is open."""
        async with self._writing:
            if self.closed:
                return
            record = {"do": do, **values}
            owed = apply(self.owed, record)
            await self._journal.append(owed.vmid, record)
            self.owed = owed

    async def close(self) -> None:
        """Nothing is owed any more."""
        async with self._writing:
            if not self.closed:
                self.closed = True
                await self._journal.close(self.owed.vmid)


def _claim(owed: Owed, record: Mapping[str, Any]) -> Owed:
    return replace(owed, token=record["token"], marks=frozenset({"absent", "create"}))


def _storage(owed: Owed, record: Mapping[str, Any]) -> Owed:
    return replace(owed, before={**owed.before, record["storage"]: frozenset(record["before"])})


def _making(owed: Owed, record: Mapping[str, Any]) -> Owed:
    return replace(owed, unsettled=(*owed.unsettled, record["storage"]))


def _made(owed: Owed, record: Mapping[str, Any]) -> Owed:
    return replace(_settled(owed, record), volumes=(*owed.volumes, record["volid"]))


def _settled(owed: Owed, record: Mapping[str, Any]) -> Owed:
    rest = list(owed.unsettled)
    rest.remove(record["storage"])
    return replace(owed, unsettled=tuple(rest))


def _freed(owed: Owed, record: Mapping[str, Any]) -> Owed:
    return replace(owed, volumes=tuple(volid for volid in owed.volumes if volid != record["volid"]))


_CHANGES: Mapping[str, Callable[[Owed, Mapping[str, Any]], Owed]] = {
    "claim": _claim,
    "storage": _storage,  # before the first use of a storage: the volumes that were there
    "making": _making,  # before a child that makes a volume
    "made": _made,  # it made this one
    "settled": _settled,  # it made none
    "freed": _freed,  # after a volume was freed: the next one of its name is not ours
    "firewall": lambda owed, _: replace(owed, firewall=True),
    "config": lambda owed, _: replace(owed, marks=frozenset({"create", "migrate"})),
    "configured": lambda owed, _: replace(owed, marks=frozenset({"migrate"})),
    "starting": lambda owed, _: replace(owed, started=True),
    "whole": lambda owed, _: replace(owed, whole=True),
    "ran": lambda owed, _: replace(owed, ran=True),
    "runs": lambda owed, _: replace(owed, runs=True),
    "ours": lambda owed, _: replace(owed, ours=True),
    "unlocked": lambda owed, _: replace(owed, marks=frozenset()),  # after it: the next lock is not ours
    "undo": lambda owed, _: replace(owed, undo=True, marks=owed.marks | {"absent"}),  # it removes the config itself
}
