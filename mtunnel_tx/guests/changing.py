"""A command's work on one VM: what it makes is written down first, so that nothing is left when it fails or is killed.

The record of a killed command stays. `vm list` shows it, and the next command for the VM does first what
`recovery.recover` says.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from uuid import uuid4

from mtunnel_tx.errors import BackendFailed, TunnelError, WrongState
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.guests.recovery import recover
from mtunnel_tx.guests.volumes import free_name, full_name
from mtunnel_tx.ports.changes import Change
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.storagecfg import StorageEntry

FIRST_VMID = 100


class Work:
    """A change that goes on; what it makes is recorded before it is there."""

    def __init__(self, host: PlainHost, change: Change) -> None:
        self.host = host
        self.change = change

    async def add_volume(self, entry: StorageEntry, size_bytes: int, format: str, *, suffix: str = "") -> str:
        """Make an empty volume. Args: suffix: its name's end, for one that is no `disk-N`. Returns: its id."""
        vmid, change = self.change.vmid, self.change
        if suffix:
            volid = full_name(entry, vmid, f"vm-{vmid}-{suffix}.{format}")
        else:
            volid = await free_name(self.host, entry, vmid, format, change.volumes)
        await self._record(replace(change, volumes=(*change.volumes, volid)))
        name = volid.rpartition("/")[2] if "/" in volid else volid.partition(":")[2]
        try:
            return await self.host.storage.alloc(entry.id, vmid, size_bytes, format, lambda _: None, name=name)
        except BackendFailed:
            # It was not made; somebody else's of the same name is not ours to free.
            await self._record(change)
            raise

    async def add_file(self, path: str) -> None:
        """Record a file that is about to be made."""
        await self._record(replace(self.change, files=(*self.change.files, path)))

    async def give_up(self, *volids: str) -> None:
        """Record volumes that are to be freed once no config names them any more."""
        await self._record(replace(self.change, volumes=(*self.change.volumes, *volids)))

    async def write_marked(self, conf: GuestConfig, mark: str) -> None:
        """Lock the VM's config. Recorded before, so that nobody else's lock is ever taken for this one."""
        await self._record(replace(self.change, marked=True))
        conf.options["lock"] = mark
        await self.host.guests.write(self.change.vmid, conf)

    async def _record(self, change: Change) -> None:
        await self.host.changes.write(change)
        self.change = change


def new_change(host: PlainHost, vmid: int, action: str, *, claim: str = "", snapshot: str = "") -> Change:
    """A change of this command."""
    return Change(vmid=vmid, action=action, pid=os.getpid(), owner=host.owner, claim=claim, snapshot=snapshot)


@asynccontextmanager
async def changing(host: PlainHost, change: Change) -> AsyncIterator[Work]:
    """Work on a VM. First, what an earlier command left is undone or finished; so is this work where it fails.

    Raises: WrongState: another command works on the VM; and what the work raises.
    """
    with host.changes.locked(change.vmid):
        await _finish_earlier(host, change.vmid)
        await host.changes.write(change)
        work = Work(host, change)
        try:
            yield work
        except BaseException:
            await _undo(host, work.change)
            raise
        await host.changes.remove(change.vmid)


async def settle_earlier(host: PlainHost, vmid: int) -> None:
    """Undo or finish what a killed command left. Raises: WrongState: another command works on the VM."""
    if host.changes.read(vmid) is not None:
        with host.changes.locked(vmid):
            await _finish_earlier(host, vmid)


async def _finish_earlier(host: PlainHost, vmid: int) -> None:
    change = host.changes.read(vmid)
    if change is not None:
        host.note(f"'vm {change.action}' of VM {vmid} was interrupted; cleaning up after it")
        try:
            await recover(host, change)
        except (TunnelError, OSError) as error:
            raise WrongState(f"what 'vm {change.action}' left of VM {vmid} cannot be cleaned up: {error}") from error


async def _undo(host: PlainHost, change: Change) -> None:
    try:
        await recover(host, change)
    except (TunnelError, OSError) as error:
        host.note(f"not all of it could be undone, the next command for VM {change.vmid} tries again: {error}")


@asynccontextmanager
async def claiming(host: PlainHost, vmid: int | None, action: str) -> AsyncIterator[Work]:
    """Work on a VM that is to be made.

    Args: vmid: None: the first one that is free. Raises: WrongState: it is taken, or has an unsettled way out.
    """
    if vmid is not None:
        _check_settled(host, vmid)
    for candidate in [vmid] if vmid is not None else _free_vmids(host):
        try:
            with host.changes.locked(candidate):
                pass
        except WrongState:
            if vmid is not None:
                raise
            continue
        async with changing(host, new_change(host, candidate, action, claim=str(uuid4()))) as work:
            yield work
        return


def _check_settled(host: PlainHost, vmid: int) -> None:
    """Raises: WrongState: something is left to do for an earlier VM of this number, and would meet the new one."""
    if vmid in host.departures.standing():
        journal = f"its journal (journal/source-{vmid}.jsonl) stands"
        raise WrongState(f"VM {vmid} was on its way to another host, and {journal}: run 'mtunnel settle {vmid}' first")


def _free_vmids(host: PlainHost) -> list[int]:
    """Some VMIDs that nobody has: neither a guest of any node, nor a move, nor a command, nor a lost QEMU."""
    taken = {entry.vmid for entry in host.guests.entries()}
    taken |= {
        *host.journal.standing(),
        *host.departures.standing(),
        *host.changes.standing(),
        *host.machines.recorded(),
    }
    free = (vmid for vmid in count(FIRST_VMID) if vmid not in taken)
    return [next(free) for _ in range(16)]
