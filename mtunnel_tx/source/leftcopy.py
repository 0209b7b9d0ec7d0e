"""The copy that stays here of a VM that the target has: it is marked, whatever somebody has done to its lock."""

from __future__ import annotations

from mtunnel_tx.errors import NotFound
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.moved import find_move, mark_moved
from mtunnel_tx.source.departure import Departure
from mtunnel_tx.source.host import SourceHost
from mtunnel_tx.source.marking import LOCK


async def mark_copy(host: SourceHost, departure: Departure) -> None:
    """It must not run beside the VM there: mark it and say so; the caller holds the config's flock."""
    try:
        conf = host.guests.read(departure.vmid)
    except NotFound:
        return
    lock = conf.lock
    if host.marks_moves:
        if lock == LOCK or find_move(conf) is None:  # with a mark and without our lock it was done before a crash
            await host.guests.write(departure.vmid, _marked(host, departure, conf))
        host.progress.say(f"{_there(departure)}; its copy stays here and does not start any more{_changed_lock(lock)}")
    elif lock == LOCK:
        host.progress.say(f"{_there(departure)}; its copy stays here, locked, as qm leaves it")
    else:
        host.progress.warn(
            f"WARNING: {_there(departure)}, and its copy here CAN START{_changed_lock(lock)}; never start it "
            f"while the VM is there: 'qm set {departure.vmid} --lock {LOCK}' locks it, "
            f"'qm destroy {departure.vmid}' removes it"
        )


def _there(departure: Departure) -> str:
    return f"VM {departure.vmid} is VM {departure.target_vmid} at {departure.host} now"


def _changed_lock(lock: str | None) -> str:
    if lock == LOCK:
        return ""
    return f" (its 'lock: {LOCK}' was {f'changed to {lock!r}' if lock else 'removed'} here meanwhile)"


def _marked(host: SourceHost, departure: Departure, conf: GuestConfig) -> GuestConfig:
    """The config with the mark, without our lock; one that is somebody else's stays."""
    marked = mark_moved(conf, host=departure.host, vmid=departure.target_vmid, at_s=host.wall_s())
    if marked.lock == LOCK:
        del marked.options["lock"]
    return marked
