"""What is removed here once the target has a VM: its config first, so that nobody starts it again, then its volumes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mtunnel_tx.errors import BackendFailed, NotFound, TunnelError, WrongState
from mtunnel_tx.pve.guestconf import GuestConfig, format_guest_config
from mtunnel_tx.source.host import LOCK_S, SourceHost
from mtunnel_tx.source.journal import DepartureJournal
from mtunnel_tx.source.marking import find_locked


async def announce_removal(host: SourceHost, journal: DepartureJournal, volumes: Sequence[str]) -> None:
    """From now on these volumes are to be freed. Raises: WrongState: somebody changed the config's lock."""
    vmid = journal.departure.vmid
    async with host.guests.locked(vmid, LOCK_S):
        conf = find_locked(host.guests, vmid)
        if conf is None:
            raise WrongState(f"the lock of VM {vmid} was changed meanwhile; nothing was deleted here")
        await journal.announce("removing", volumes=list(volumes), config=_digest(conf))


def _digest(conf: GuestConfig) -> str:
    """By which a config is known again: after a crash there may be another one with such a lock."""
    return hashlib.sha256(format_guest_config(conf).encode("utf-8", "surrogateescape")).hexdigest()


class Removal:
    """Does what was announced, or the rest of it after a crash."""

    def __init__(self, host: SourceHost, journal: DepartureJournal) -> None:
        self._host = host
        self._journal = journal
        self._vmid = journal.departure.vmid

    async def run(self) -> None:
        """Remove config, firewall file and volumes. Raises: TunnelError: what is left, and why; the journal stands."""
        guests = self._host.guests
        async with guests.locked(self._vmid, LOCK_S):
            conf = find_locked(guests, self._vmid)
            if conf is not None and _digest(conf) == self._journal.departure.config:
                await guests.remove(self._vmid)
                await guests.remove_firewall(self._vmid)
        reasons = [reason for volid in self._journal.departure.volumes if (reason := await self._free(volid))]
        if reasons:
            raise BackendFailed(f"these volumes are left here: {'; '.join(reasons)}")
        self._host.progress.say(f"VM {self._vmid} was removed here")

    async def _free(self, volid: str) -> str | None:
        """Returns: why the volume is still there."""
        users = [entry.vmid for entry in self._host.guests.naming(volid)]
        if users:
            self._host.progress.say(f"'{volid}' stays here: VM {users[0]} uses it")
            await self._journal.note("spared", volid=volid)
            return None
        try:
            async with self._host.guests.locked(self._vmid, LOCK_S):
                self._check_alone()
                await self._remove_volume(volid)
        except TunnelError as error:
            return f"'{volid}' ({error.text})"
        await self._journal.note("freed", volid=volid)
        return None

    def _check_alone(self) -> None:
        """Raises: WrongState: there is a new VM of this number, whose volumes have the same names."""
        try:
            self._host.guests.read(self._vmid)
        except NotFound:
            return
        raise WrongState(f"a new VM {self._vmid} is there")

    async def _remove_volume(self, volid: str) -> None:
        """One that is gone already is as good as freed."""
        try:
            await self._host.storage.free(volid)
        except TunnelError:
            if await self._host.storage.size_bytes(volid) is not None:
                raise
