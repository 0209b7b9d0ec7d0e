"""A VM's journal on its way out, `STATE/journal/source-VMID.jsonl`, while a program works on it."""

from __future__ import annotations

from mtunnel_tx.errors import TunnelError, WrongState
from mtunnel_tx.ports.journal import Journal
from mtunnel_tx.ports.programs import Programs
from mtunnel_tx.source.departure import Departure, Record, apply, fold, program_fields
from mtunnel_tx.source.host import LOCK_S, SourceHost
from mtunnel_tx.source.owner import describe


class DepartureJournal:
    """What was written about one VM, and what it adds up to."""

    def __init__(self, host: SourceHost, departure: Departure) -> None:
        self._journal = host.journal
        self._warn = host.progress.warn
        self.departure = departure

    @classmethod
    async def open(cls, host: SourceHost, vmid: int, claim: Record) -> DepartureJournal:
        """Begin one. Raises: WrongState: one stands already."""
        await host.journal.open(vmid, claim)
        return cls(host, fold(vmid, [claim]))

    @classmethod
    async def take(cls, host: SourceHost, vmid: int) -> DepartureJournal | None:
        """Go on with the journal of a program that has ended. Returns: None: there is none.

        Raises: WrongState: the program is at work, or the journal cannot be understood.
        """
        async with host.guests.locked(vmid, LOCK_S):
            departure = find_departure(host, vmid)
            if departure is None:
                return None
            check_abandoned(host, departure)
            found = cls(host, departure)
            await found.announce("taken", **program_fields(host.programs.this()))
            return found

    async def announce(self, do: str, **values: object) -> None:
        """Add a record before its deed. Raises: TunnelError: it could not be written, so the deed must not be done."""
        record = {"do": do, **values}
        departure = apply(self.departure, record)
        await self._journal.append(departure.vmid, record)
        self.departure = departure

    async def note(self, do: str, **values: object) -> None:
        """Add a record after its deed: it counts even where it cannot be written, on a full disk for example."""
        record = {"do": do, **values}
        self.departure = apply(self.departure, record)
        try:
            await self._journal.append(self.departure.vmid, record)
        except TunnelError as error:
            self._warn(f"the journal cannot be written: {error.text}")

    async def close(self) -> None:
        """Nothing is to be settled any more."""
        await self._journal.remove(self.departure.vmid)


def find_departure(host: SourceHost, vmid: int) -> Departure | None:
    """What a standing journal says; None: there is none. Raises: WrongState: it cannot be understood."""
    records = host.journal.read(vmid)
    return None if records is None else fold(vmid, records)


def check_abandoned(host: SourceHost, departure: Departure) -> None:
    """Raises: WrongState: another program works on the VM."""
    if departure.program != host.programs.this() and host.programs.is_alive(departure.program):
        raise WrongState(
            f"VM {departure.vmid} is on its way to {departure.host} as VM {departure.target_vmid}: "
            f"process {departure.program.pid} works on it"
        )


def describe_standing(journal: Journal, programs: Programs) -> dict[int, str]:
    """Every VM that is on its way out or was, with what there is to know or to do about it; for `mtunnel status`.

    Raises: TunnelError: the journals cannot be listed.
    """
    return {vmid: describe_departure(journal, programs, vmid) for vmid in journal.standing()}


def describe_departure(journal: Journal, programs: Programs, vmid: int) -> str:
    """The same of one VM; empty: no journal of its way out stands."""
    try:
        if (records := journal.read(vmid)) is None:
            return ""
        departure = fold(vmid, records)
    except TunnelError as error:
        return f"is locked: {error.text}"
    if programs.is_alive(departure.program):
        where = f"{departure.host} as VM {departure.target_vmid}"
        return f"is on its way to {where}: process {departure.program.pid} works on it"
    return f"{describe(departure)}; its program has ended: run 'mtunnel settle {vmid}'"
