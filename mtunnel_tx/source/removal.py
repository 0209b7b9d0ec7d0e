"""What is removed here once the target has a VM: its config first, so that nobody starts it again, then its volumes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mtunnel_tx.errors import BackendFailed, NotFound, TunnelError, WrongState
from mtunnel_tx.pve.guestconf import GuestConfig, format_guest_config
from mtunnel_tx.source.departure import Departure
from mtunnel_tx.source.host import LOCK_S, SourceHost
from mtunnel_tx.source.journal import DepartureJournal
from mtunnel_tx.source.leftcopy import mark_copy
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
        """Remove config, firewall file and volumes; a config that was changed since stays, marked, with its volumes.

        Raises: TunnelError: what is left, and why; the journal stands.
        """
        async with self._host.guests.locked(self._vmid, LOCK_S):
            if await self._leave_changed():
                return
        reasons = [reason for volid in self._journal.departure.volumes if (reason := await self._free(volid))]
        if reasons:
            raise BackendFailed(f"these volumes are left here: {'; '.join(reasons)}")
        self._host.progress.say(f"VM {self._vmid} was removed here")

    async def _leave_changed(self) -> bool:
        """Remove the config if it is the one that was announced. Returns: whether it is another by now, and marked."""
        guests, departure = self._host.guests, self._journal.departure
        conf = find_locked(guests, self._vmid)
        if conf is not None and _digest(conf) == departure.config:
            await guests.remove(self._vmid)
            await guests.remove_firewall(self._vmid)
            return False
        if not self._is_there() or is_another(self._host, departure):
            return False
        await mark_copy(self._host, departure)
        await name_kept(self._host, departure)
        return True

    def _is_there(self) -> bool:
        try:
            self._host.guests.read(self._vmid)
        except NotFound:
            return False
        return True

    async def _free(self, volid: str) -> str | None:
        """Returns: why the volume is still there."""
        users = [entry.vmid for entry in self._host.guests.naming(volid) if entry.vmid != self._vmid]
        if users:
            self._host.progress.warn(f"'{volid}' stays here: VM {users[0]} uses it")
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
        """Raises: WrongState: there is a VM of this number by now, whose volumes have the same names."""
        if self._is_there():
            raise WrongState(f"a config of VM {self._vmid} is there")

    async def _remove_volume(self, volid: str) -> None:
        """One that is gone already is as good as freed."""
        try:
            await self._host.storage.free(volid)
        except TunnelError:
            if await self._host.storage.size_bytes(volid) is not None:
                raise


def is_another(host: SourceHost, departure: Departure) -> bool:
    """Whether the config here is no longer that of the VM that is being removed, but a new one's of its number.

    One that names a volume of the old VM is not: it may be the old config, edited.
    """
    try:
        conf = host.guests.read(departure.vmid)
    except NotFound:
        return False
    conf.options.pop("lock", None)
    users = {entry.vmid for volid in departure.volumes for entry in host.guests.naming(volid)}
    return _digest(conf) != departure.config and departure.vmid not in users


async def name_left(host: SourceHost, departure: Departure) -> None:
    """Say which volumes stay beside a new VM, whose own have such names, too."""
    text = f"VM {departure.vmid} here is another one by now, and is left alone"
    if names := await _names_left(host, departure):
        text += f"; these volumes of the VM that was moved stay here, to be removed by hand: {names}"
    host.progress.warn(text)


async def name_kept(host: SourceHost, departure: Departure) -> None:
    """Say that the VM was not removed, which of its volumes stay, and what removes it."""
    vmid = departure.vmid
    names = await _names_left(host, departure)
    command = f"'mtunnel vm destroy {vmid}'" if host.marks_moves else f"'qm unlock {vmid} && qm destroy {vmid}'"
    host.progress.warn(
        f"VM {vmid} was NOT removed here: its config was changed while it was to be removed; "
        f"it is left with {f'its volumes {names}' if names else 'no volumes'}; {command} removes it"
    )


async def _names_left(host: SourceHost, departure: Departure) -> str:
    left = [volid for volid in departure.volumes if await _may_be_there(host, volid)]
    return ", ".join(f"'{volid}'" for volid in left)


async def _may_be_there(host: SourceHost, volid: str) -> bool:
    try:
        return await host.storage.size_bytes(volid) is not None
    except TunnelError:
        return True
