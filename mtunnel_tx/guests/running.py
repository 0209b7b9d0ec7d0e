"""What runs and what does not: list, start, stop, resume, unlock, status."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from mtunnel_tx.errors import BackendFailed, NotFound, TimedOut, WrongState
from mtunnel_tx.guests.changing import settle_earlier
from mtunnel_tx.guests.plainhost import LOCK_S, PlainHost
from mtunnel_tx.guests.settings import with_pending
from mtunnel_tx.pve.moved import find_move, forget_move

SHUTDOWN_S = 180.0
"""How long a guest may take to shut down where its config does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRow:
    """One line of the list.

    `status`: `running`, `stopped`, or `orphan` for a QEMU whose config was removed. `lock`: the config's mark, else an
    empty text. `onboot`: started after a boot. `note`: what there is to know or to do about it.
    """

    vmid: int
    name: str
    status: str
    lock: str = ""
    onboot: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestStatus:
    """`status` as QEMU says it, `stopped` where there is none; `reason`: what it said when it ended.

    `accelerator`: `kvm`, `tcg` (emulated), or an empty text where it is not known.
    """

    vmid: int
    status: str
    accelerator: str = ""
    reason: str = ""
    note: str = ""


def list_guests(host: PlainHost) -> list[GuestRow]:
    """Every VM that has a config, every QEMU that runs without one, and what interrupted commands left, by VMID."""
    named = host.vmids()
    lost = {*host.machines.recorded(), *host.changes.standing()} - named.keys()
    rows = [row for vmid, name in named.items() if (row := _row(host, vmid, name)) is not None]
    return sorted([*rows, *(_lost_row(host, vmid) for vmid in lost)], key=lambda row: row.vmid)


def _row(host: PlainHost, vmid: int, name: str) -> GuestRow | None:
    """None: its config went away meanwhile."""
    with suppress(NotFound):
        conf = host.guests.read(vmid)
        status = "running" if host.machines.running(vmid) else "stopped"
        onboot = conf.options.get("onboot") == "1"
        note = host.change_note(vmid) or (f"locked ({conf.lock})" if conf.lock else find_move(conf) or "")
        return GuestRow(vmid=vmid, name=name, status=status, lock=conf.lock or "", onboot=onboot, note=note)
    return None


def _lost_row(host: PlainHost, vmid: int) -> GuestRow:
    if vmid in host.machines.recorded():
        note = f"it runs, but its config was removed; end it: mtunnel vm stop {vmid}"
        return GuestRow(vmid=vmid, name="", status="orphan", note=note)
    return GuestRow(vmid=vmid, name="", status="stopped", note=host.change_note(vmid))


async def start(host: PlainHost, vmid: int, *, force: bool = False) -> None:
    """Start a VM, with the changes that waited for that.

    Args: force: also where it was moved to another host. Raises: TunnelError: why it cannot be.
    """
    await settle_earlier(host, vmid)
    async with host.guests.locked(vmid, LOCK_S):
        conf = host.unlocked(vmid)
        if host.machines.running(vmid):
            raise WrongState(f"VM {vmid} already running")
        if conf.pending is not None:
            conf = with_pending(conf)
            await host.guests.write(vmid, conf)
        await host.machines.local_start(vmid, forget_move(conf) if force else conf, host.note)


async def stop(host: PlainHost, vmid: int) -> None:
    """End a VM at once; one whose config was removed is ended by its record. Raises: NotFound: neither is there."""
    async with host.guests.locked(vmid, LOCK_S):
        if not (vmid in host.machines.recorded() and not host.has_config(vmid)):
            host.unlocked(vmid)
        await host.machines.stop(vmid)


async def shut_down(host: PlainHost, vmid: int, wait_s: float) -> None:
    """Press a VM's power button. Raises: TimedOut: it runs on after so long; WrongState: it does not run."""
    async with host.guests.locked(vmid, LOCK_S):
        host.unlocked(vmid)
    if not await host.machines.shutdown(vmid, wait_s):
        raise TimedOut(f"VM {vmid} did not shut down within {wait_s:g} s; 'mtunnel vm stop {vmid}' ends it at once")


async def shut_down_leaving(host: PlainHost, vmid: int, wait_s: float) -> None:
    """Press the power button of a VM whose move from here is not over, and ends with this host.

    Raises: WrongState: it stands still, as it may be the target's; TimedOut: it runs on after so long.
    """
    if (await host.machines.state(vmid)).status != "running":
        raise WrongState(f"VM {vmid} was on its way to another host and stands still: run 'mtunnel settle {vmid}'")
    if not await host.machines.shutdown(vmid, wait_s):
        raise TimedOut(f"VM {vmid}, on its way to another host, did not shut down within {wait_s:g} s")


async def resume(host: PlainHost, vmid: int) -> None:
    """Let a paused VM run on. Raises: WrongState: it does not run."""
    async with host.guests.locked(vmid, LOCK_S):
        host.unlocked(vmid)
        await host.machines.resume(vmid)


async def unlock(host: PlainHost, vmid: int) -> None:
    """Clean up after an interrupted command, and remove the mark of a program that has ended.

    Raises: WrongState: the program works on, or only `mtunnel settle` knows what else there is to do.
    """
    had_change = host.changes.read(vmid) is not None
    await settle_earlier(host, vmid)
    if had_change and not host.has_config(vmid):
        return
    async with host.guests.locked(vmid, LOCK_S):
        if vmid in host.journal.standing():
            raise WrongState(f"VM {vmid} came from another host: mtunnel status, mtunnel settle")
        if vmid in host.departures.standing():
            raise WrongState(f"VM {vmid} is on its way to another host, or was: run 'mtunnel settle {vmid}'")
        conf = host.guests.read(vmid)
        if conf.options.pop("lock", None) is not None:
            await host.guests.write(vmid, conf)


async def forget(host: PlainHost, vmid: int) -> None:
    """Remove the mark of a VM that was moved away: this copy is the VM again. Raises: WrongState: it has none."""
    async with host.guests.locked(vmid, LOCK_S):
        conf = host.guests.read(vmid)
        if find_move(conf) is None:
            raise WrongState(f"VM {vmid} was not moved")
        await host.guests.write(vmid, forget_move(conf))


async def status(host: PlainHost, vmid: int) -> GuestStatus:
    """What a VM does now. Raises: NotFound: there is neither a config nor a QEMU."""
    note = ""
    if vmid in host.machines.recorded() and not host.has_config(vmid):
        note = "its config was removed"
    else:
        note = find_move(host.guests.read(vmid)) or ""
    with suppress(TimedOut, BackendFailed):  # the daemon talks to it now, or nobody can; it runs in any case
        state = await host.machines.state(vmid)
        shown = "stopped" if state.status == "off" else state.status
        return GuestStatus(vmid=vmid, status=shown, accelerator=state.accelerator, reason=state.dirty_end, note=note)
    return GuestStatus(vmid=vmid, status="running", note=note)
