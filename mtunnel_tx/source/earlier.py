"""What an earlier program left that was to send a VM and was killed: found, told, and ended by the handover rule."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from mtunnel_tx.errors import NotFound, TunnelError, WrongState
from mtunnel_tx.source.asking import Inquiry
from mtunnel_tx.source.departure import Departure
from mtunnel_tx.source.host import SourceHost
from mtunnel_tx.source.journal import DepartureJournal
from mtunnel_tx.source.owner import Owner, describe
from mtunnel_tx.source.settling import Settling
from mtunnel_tx.source.target import TargetApi


async def finish_earlier(host: SourceHost, vmid: int, target: TargetApi) -> Departure | None:
    """To be called before a VM is sent again. Args: target: is asked, where only the target knows whose the VM is.

    Returns: what was ended, where the VM is this host's. Raises: WrongState: it is the target's, nobody knows whose it
    is, or a program works on it. TunnelError: what was begun cannot be ended.
    """
    journal = await DepartureJournal.take(host, vmid)
    if journal is None:
        return None
    host.progress.say(tell(journal.departure))
    inquiry = Inquiry(host, journal, target)
    await inquiry.run()
    if await Settling(host, journal).end() is Owner.THERE:
        raise WrongState(f"VM {vmid} is VM {journal.departure.target_vmid} at {journal.departure.host} since then")
    await inquiry.tell_kept()
    return journal.departure


async def abandon_earlier(target: TargetApi, departure: Departure) -> None:
    """Tell the target that nobody comes back for that tunnel: it may be waiting, and keep the VMID meanwhile."""
    if (departure.host, departure.token) != (target.host, target.token) or not departure.upid:
        return
    path = ("nodes", "localhost", "qemu", str(departure.target_vmid), "mtunnelabandon")
    with suppress(TunnelError):  # it is over by now, or the target knows no such call
        await target.post(*path, upid=departure.upid)


async def settle(host: SourceHost, vmid: int, decision: Owner | None = None, target: TargetApi | None = None) -> None:
    """Finish or undo what was begun.

    Args: decision: whose the VM is, where somebody says so. target: else it is asked, where only it can know.

    Raises: NotFound: there is nothing to be settled; else what `finish_earlier` raises.
    """
    journal = await DepartureJournal.take(host, vmid)
    if journal is None:
        raise NotFound(f"nothing is to be settled for VM {vmid} as one that was sent from here")
    host.progress.say(tell(journal.departure))
    inquiry = Inquiry(host, journal, target) if target is not None and decision is None else None
    if inquiry is not None:
        if not inquiry.can_be_made:
            sent = f"the VM was sent to {journal.departure.host} by token {journal.departure.token}"
            host.progress.say(f"{inquiry.target.host} is not asked by token {inquiry.target.token}: {sent}")
        await inquiry.run()
    settling = Settling(host, journal)
    if decision is not None:
        await settling.decide(decision)
    elif await settling.end() is Owner.HERE and inquiry is not None:
        await inquiry.tell_kept()


def tell(departure: Departure) -> str:
    """What happened, in one sentence."""
    began = f"{datetime.fromtimestamp(departure.at_s, UTC):%Y-%m-%d %H:%M} UTC"
    return f"VM {departure.vmid} {describe(departure)}; the program that sent it ({began}) has ended before it was done"
