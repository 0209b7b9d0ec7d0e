"""What is settled at a boot: a move from this host that its restart broke off, where the VM is surely this host's."""

from __future__ import annotations

import time

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.journal import LEAVING, FileJournal
from mtunnel_tx.backends.programs import HostPrograms
from mtunnel_tx.config import Settings
from mtunnel_tx.errors import WrongState
from mtunnel_tx.local import make_guests
from mtunnel_tx.ports.storage import Report, Storage
from mtunnel_tx.source.earlier import settle
from mtunnel_tx.source.host import LinesOnly, SourceHost
from mtunnel_tx.source.journal import check_abandoned, find_departure
from mtunnel_tx.source.owner import LocalMachine, Owner, describe, judge


async def settle_kept(threads: ReactorThreads, settings: Settings, storage: Storage, note: Report, vmid: int) -> None:
    """End a VM's way out that came to nothing; the VM is off.

    Raises: WrongState: a program works on it, or it is not surely this host's. TunnelError: the journal is damaged, or
    not everything could be done; each names `mtunnel settle`.
    """
    host = _make_source(threads, settings, storage, note)
    departure = find_departure(host, vmid)
    if departure is None:
        return
    check_abandoned(host, departure)
    if judge(departure, LocalMachine()) is not Owner.HERE:
        raise WrongState(f"VM {vmid} {describe(departure)}: run 'mtunnel settle {vmid}'")
    await settle(host, vmid)


def _make_source(threads: ReactorThreads, settings: Settings, storage: Storage, note: Report) -> SourceHost:
    return SourceHost(
        reactor=threads.reactor,
        guests=make_guests(threads, settings),
        storage=storage,
        running=lambda _: False,
        machines=None,  # it is off
        marks_moves=True,
        runtime_dir=settings.runtime_dir,
        journal=FileJournal(threads, settings.state_dir, LEAVING),
        programs=HostPrograms(),
        progress=LinesOnly(note, note),
        wall_s=time.time,
    )
