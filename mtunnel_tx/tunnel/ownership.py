"""The volumes of one tunnel: which it made, which a child may have made, and how they are freed."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger

from mtunnel_tx.errors import BackendFailed, TunnelError, WrongState
from mtunnel_tx.ports.journal import TaskLog
from mtunnel_tx.ports.storage import Volume
from mtunnel_tx.pve.volume import parse_volume_id
from mtunnel_tx.tunnel.ledger import Ledger
from mtunnel_tx.tunnel.services import Services

log = Logger()


class Ownership:
    """Frees only volumes that this tunnel made.

    A child chooses a volume's name itself. So the VMID's volumes on a storage are recorded before its first use; what
    is there later and was not there then was made by this tunnel.
    """

    def __init__(self, services: Services, ledger: Ledger, task: TaskLog) -> None:
        self._storage = services.storage
        self._guests = services.guests
        self._ledger = ledger
        self._task = task

    @property
    def volumes(self) -> tuple[str, ...]:
        """The volumes that this tunnel made and still has, oldest first."""
        return self._ledger.owed.volumes

    async def will_make(self, storage: str) -> None:
        """Write down that a child is about to make a volume."""
        if storage not in self._ledger.owed.before:
            await self._ledger.write("storage", storage=storage, before=sorted(await self._listed(storage)))
        await self._ledger.write("making", storage=storage)

    async def has_made(self, storage: str, volid: str) -> None:
        """Write down what the child made, and how large it is. Raises: TunnelError: it is not there."""
        size_bytes = await self._storage.size_bytes(volid)
        if size_bytes is None:
            raise BackendFailed(f"volume '{volid}' is not there, though it was made")
        await self._ledger.write("made", storage=storage, volid=volid, size_bytes=size_bytes)

    async def made_nothing(self, storage: str) -> None:
        """A child failed: free what it left, if anything."""
        if storage in self._ledger.owed.making:
            for volid in await self._strays(storage):
                await self._free(volid)
            await self._ledger.write("made_nothing", storage=storage)

    async def give_back(self, volid: str) -> None:
        """Free one volume while the tunnel goes on."""
        await self._free(volid)
        await self._ledger.write("freed", volid=volid)

    async def check_whole(self) -> None:
        """Ask the storages for every volume.

        Raises: WrongState: one is gone, or has not the size that it was made with.
        """
        volumes = self._ledger.owed.volumes
        found: dict[str, int] = {}
        for storage in sorted({parse_volume_id(volid).storage for volid in volumes}):
            found |= {volume.volid: volume.size_bytes for volume in await self._list(storage)}
        for volid in volumes:
            expected_bytes = self._ledger.owed.sizes_bytes.get(volid)
            if volid not in found:
                raise WrongState(f"volume '{volid}' is not there any more")
            if expected_bytes not in (None, found[volid]):
                raise WrongState(f"volume '{volid}' has {found[volid]} bytes instead of {expected_bytes}")

    async def free_all(self, but: Sequence[str] = ()) -> None:
        """Free everything but some, newest first, as far as it goes; what another guest's config names stays.

        Raises: TunnelError: the first reason why not all went.
        """
        problems: list[TunnelError] = []
        strays = [volid for storage in set(self._ledger.owed.making) for volid in await self._strays(storage)]
        for volid in [*strays, *reversed(self._ledger.owed.volumes)]:
            if volid not in but:
                await self._attempt(volid, problems)
        if problems:
            raise problems[0]

    async def left(self) -> list[str]:
        """What this tunnel made, and what a child of it may have made; nothing is freed."""
        strays = [volid for storage in self._ledger.owed.making for volid in await self._strays(storage)]
        return sorted({*self._ledger.owed.volumes, *strays})

    async def _strays(self, storage: str) -> list[str]:
        owed = self._ledger.owed
        known = owed.before[storage] | frozenset(owed.volumes)
        return sorted(await self._listed(storage) - known)

    async def _listed(self, storage: str) -> frozenset[str]:
        return frozenset(volume.volid for volume in await self._list(storage))

    async def _list(self, storage: str) -> list[Volume]:
        return await self._storage.volumes(storage, self._ledger.owed.vmid)

    async def _attempt(self, volid: str, problems: list[TunnelError]) -> None:
        self._task.line(f"freeing volume '{volid}' as part of cleanup")
        try:
            if await self._free(volid) and volid in self._ledger.owed.volumes:
                await self._ledger.write("freed", volid=volid)
        except TunnelError as error:
            log.warn("volume could not be freed: {reason}", reason=error.text)
            problems.append(error)

    async def _free(self, volid: str) -> bool:
        """A volume that is gone already is as good as freed. Returns: it is gone; else others use it, and it stays."""
        if self.is_named(volid):
            self._task.warn(f"volume '{volid}' stays: the config of another guest names it")
            return False
        try:
            await self._storage.free(volid)
        except TunnelError:
            if await self._storage.size_bytes(volid) is not None:
                raise
            self._task.warn(f"volume '{volid}' is not where it was made, and counts as freed")
        return True

    def is_named(self, volid: str, *, also_by_own: bool = False) -> bool:
        """Whether the config of another guest names a volume; or of this VMID, whose config may be another's by now."""
        own = None if also_by_own else (self._ledger.owed.vmid, self._guests.node)
        return any((entry.vmid, entry.node) != own for entry in self._guests.naming(volid))
