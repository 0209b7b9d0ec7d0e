"""The one place through which every effect of a tunnel goes: written down first, then done.

The journal's records fold into `Owed`: what a rollback must undo, and who owns the VM. The live tunnel and the recovery
after a crash read the same fold, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from mtunnel_tx.errors import TunnelError, WrongState
from mtunnel_tx.ports.journal import Journal
from mtunnel_tx.ports.programs import Program
from mtunnel_tx.pve.guestlayout import QEMU_LAYOUT

log = Logger()

OLD_WORDS = {
    "ran": "resuming",
    "runs": "resumed",
    "ours": "handed_over",
    "undo": "rolling_back",
    "settled": "made_nothing",
}
"""What the records of journals of version 1 are called now; an older daemon may have left one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """What stands because of one tunnel.

    `upid`, `address`, `at_s`: of its task, where it was opened from, and when; empty, or 0, where an older daemon's
    journal does not say.
    `marks` are the states of the config that are our doing: its lock, or `absent`; `before` maps a used storage to
    the volumes that the VMID had there first; `making` are storages where a child may have made a volume that was not
    named yet; `sizes_bytes` tells how large a volume was when it was made; `configured`: the VM's config is written;
    `started`: there may be a QEMU; `process`: which one, None: that is not known; `whole`: it has the whole state;
    `resuming`: it is about to run, `split`: before all of its memory is here (post-copy), `resumed`: and does;
    `handed_over`: the source gave the VM up; `rolling_back`: a rollback was begun; `held`: nobody knew whose it is, or
    not everything could be undone, and that was told.
    """

    vmid: int
    kind: str = ""
    token: str = ""
    upid: str = ""
    address: str = ""
    at_s: int = 0
    marks: frozenset[str] = frozenset()
    before: Mapping[str, frozenset[str]] = field(default_factory=dict)
    making: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    sizes_bytes: Mapping[str, int] = field(default_factory=dict)
    firewall: bool = False
    configured: bool = False
    started: bool = False
    process: Program | None = None
    whole: bool = False
    resuming: bool = False
    split: bool = False
    resumed: bool = False
    handed_over: bool = False
    rolling_back: bool = False
    held: bool = False

    @property
    def is_in_parts(self) -> bool:
        """It may have run here while a part of its memory was at its source; QEMU knows whether all of it came."""
        return self.split and not self.whole and not self.handed_over

    @property
    def is_given_up(self) -> bool:
        """The VM may have run here, or the source has given it up: nothing may be deleted any more."""
        return self.resuming or self.handed_over


def apply(owed: Owed, record: Mapping[str, Any]) -> Owed:
    """One step of the fold.

    Raises: WrongState: a record that this version does not know, or that cannot stand in this place.
    """
    word = str(record.get("do"))
    word = OLD_WORDS.get(word, word)
    change = _CHANGES.get(word)
    if change is None:
        raise WrongState(f"journal of VM {owed.vmid}: unknown record {record.get('do')!r}")
    if (word == "claim") != (not owed.kind):
        raise WrongState(f"journal of VM {owed.vmid}: it must begin with its claim, and have one only")
    # That an end came to nothing changes nothing of the config.
    before = owed if word == "held" else replace(owed, marks=owed.marks - {"absent"})
    try:
        return change(before, record)
    except (LookupError, TypeError, ValueError) as error:
        raise WrongState(f"journal of VM {owed.vmid}: damaged record {record.get('do')!r}") from error


def fold(vmid: int, records: Iterable[Mapping[str, Any]]) -> Owed:
    """What is owed after all these records. Raises: WrongState: there are none, or as `apply`."""
    owed = Owed(vmid=vmid)
    for record in records:
        owed = apply(owed, record)
    if not owed.kind:
        raise WrongState(f"journal of VM {vmid}: it must begin with its claim, and have one only")
    return owed


class Ledger:
    """A tunnel's journal.

    `stands`: the file is there, and something may be owed. `written` is called with the word of each record. `count`:
    how many records there are.
    """

    def __init__(self, journal: Journal, owed: Owed, *, stands: bool, count: int = 0) -> None:
        self._journal = journal
        self.owed = owed
        self.stands = stands
        self.count = count
        self.written: Callable[[str], object] = _tell_nobody
        # The watch for the whole state writes beside the command in work: neither may lose the other's record.
        self._writing = DeferredLock()

    async def open(self, kind: str, token: str, at: float, *, upid: str = "", address: str = "") -> None:
        """The claim: a guest of this kind. Raises: WrongState: a journal stands already."""
        vmid = self.owed.vmid
        record = {"do": "claim", "vmid": vmid, "kind": kind, "token": token, "at": int(at)}
        record |= {"upid": upid, "address": address}
        await self._journal.open(vmid, record)
        self.owed = apply(self.owed, record)
        self.stands = True
        self.count = 1

    async def write(self, do: str, **values: object) -> None:
        """Add one record, before the deed; `do` is a key of the table at the end of this module.

        Nothing is written where no journal stands. Raises: TunnelError: it cannot be written; the fold is as before.
        """
        async with self._writing:
            if not self.stands:
                return
            record = {"do": do, **values}
            owed = apply(self.owed, record)
            await self._journal.append(owed.vmid, record)
            self.owed = owed
            self.count += 1
        self.written(do)

    async def note(self, do: str, **values: object) -> None:
        """Add one record, after a deed that is no failure even if the record cannot be written."""
        try:
            await self.write(do, **values)
        except TunnelError as error:
            log.error(
                "VM {vmid}: '{do}' is not in its journal: {reason}", vmid=self.owed.vmid, do=do, reason=error.text
            )

    async def discharge(self) -> None:
        """Nothing is owed any more: the journal goes."""
        async with self._writing:
            if self.stands:
                self.stands = False
                await self._journal.remove(self.owed.vmid)


def _tell_nobody(_word: str) -> None:
    """Recovery has no observers."""


def _claim(owed: Owed, record: Mapping[str, Any]) -> Owed:
    if record.get("vmid", owed.vmid) != owed.vmid:
        raise WrongState(f"journal of VM {owed.vmid}: it is that of VM {record['vmid']}")
    # Version 1 knew QEMU guests only.
    kind = str(record.get("kind", QEMU_LAYOUT.word))
    upid, address, at_s = str(record.get("upid", "")), str(record.get("address", "")), int(record.get("at", 0))
    marks = frozenset({"absent", "create"})
    return replace(owed, kind=kind, token=record["token"], upid=upid, address=address, at_s=at_s, marks=marks)


def _storage(owed: Owed, record: Mapping[str, Any]) -> Owed:
    return replace(owed, before={**owed.before, record["storage"]: frozenset(record["before"])})


def _making(owed: Owed, record: Mapping[str, Any]) -> Owed:
    return replace(owed, making=(*owed.making, record["storage"]))


def _made(owed: Owed, record: Mapping[str, Any]) -> Owed:
    volid, size_bytes = record["volid"], record.get("size_bytes")
    sizes = owed.sizes_bytes if size_bytes is None else {**owed.sizes_bytes, volid: int(size_bytes)}
    return replace(_made_nothing(owed, record), volumes=(*owed.volumes, volid), sizes_bytes=sizes)


def _made_nothing(owed: Owed, record: Mapping[str, Any]) -> Owed:
    rest = list(owed.making)
    rest.remove(record["storage"])
    return replace(owed, making=tuple(rest))


def _freed(owed: Owed, record: Mapping[str, Any]) -> Owed:
    return replace(owed, volumes=tuple(volid for volid in owed.volumes if volid != record["volid"]))


def _started(owed: Owed, record: Mapping[str, Any]) -> Owed:
    process = Program(boot=str(record["boot"]), pid=int(record["pid"]), started=int(record["since"]))
    return replace(owed, process=process)


_CHANGES: Mapping[str, Callable[[Owed, Mapping[str, Any]], Owed]] = {
    "claim": _claim,
    "storage": _storage,  # before the first use of a storage: the volumes that were there
    "making": _making,  # before a child that makes a volume
    "made": _made,  # it made this one, of this size
    "made_nothing": _made_nothing,  # it made none
    "freed": _freed,  # after a volume was freed: the next one of its name is not ours
    "firewall": lambda owed, _: replace(owed, firewall=True),
    "config": lambda owed, _: replace(owed, marks=frozenset({"create", "migrate"})),
    "configured": lambda owed, _: replace(owed, configured=True, marks=frozenset({"migrate"})),
    "starting": lambda owed, _: replace(owed, started=True, process=None),
    "started": _started,  # after it: as which process
    "whole": lambda owed, _: replace(owed, whole=True),
    "resuming": lambda owed, _: replace(owed, resuming=True),
    "resuming_partly": lambda owed, _: replace(owed, resuming=True, split=True),
    "resumed": lambda owed, _: replace(owed, resumed=True),
    "handed_over": lambda owed, _: replace(owed, handed_over=True),
    "unlocked": lambda owed, _: replace(owed, marks=frozenset()),  # after it: the next lock is not ours
    "rolling_back": lambda owed, _: replace(owed, rolling_back=True, marks=owed.marks | {"absent"}),  # it goes by us
    "held": lambda owed, _: replace(owed, held=True),  # after an end that left it to somebody
}
