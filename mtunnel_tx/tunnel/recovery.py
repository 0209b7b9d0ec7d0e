"""What a crash left behind: every standing journal is folded and ended by the handover rule, before the port opens."""

from __future__ import annotations

from twisted.logger import Logger

from mtunnel_tx.errors import NotFound, TunnelError
from mtunnel_tx.tunnel.ledger import Ledger, fold
from mtunnel_tx.tunnel.lifecycle import Keeper
from mtunnel_tx.tunnel.ownership import Ownership
from mtunnel_tx.tunnel.services import Services
from mtunnel_tx.tunnel.sockets import remove_stale

log = Logger()
DIED = "the daemon ended before the tunnel did"


class QuietTask:
    """A task log for work that no task stands for: its lines go to the daemon's log."""

    upid = ""

    def line(self, text: str) -> None:
        """Log one line."""
        log.info("recovery: {text}", text=text)

    def finish(self, status: str) -> None:
        """Nothing to close."""


class Recovery:
    """Ends the tunnels of an earlier daemon."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def run(self) -> dict[int, str]:
        """What works on is ended first, so that nothing comes after what is freed.

        Returns: the VMIDs that could not be settled, each with the reason.
        """
        services = self._services
        await services.storage.end_orphans()
        remove_stale(services.runtime_dir)
        await services.journal.tidy()
        reasons = {vmid: await self._settle(vmid) for vmid in services.journal.standing()}
        services.tasks.close_orphans(DIED)
        return {vmid: reason for vmid, reason in reasons.items() if reason is not None}

    async def _settle(self, vmid: int) -> str | None:
        """Returns: why it is held, None if it is not. One tunnel that cannot be settled stops no other."""
        try:
            await self._services.guests.tidy(vmid)
            await self.end(self._ledger(vmid))
        except TunnelError as error:
            log.error("VM {vmid} is held: {reason}", vmid=vmid, reason=error.text)
            return error.text
        except Exception:
            log.failure("unexpected failure in the recovery of VM {vmid}", vmid=vmid)
            return "internal error, see the daemon's log"
        log.info("recovery: VM {vmid} is settled", vmid=vmid)
        return None

    def _ledger(self, vmid: int) -> Ledger:
        records = self._services.journal.read(vmid)
        if records is None:
            raise NotFound(f"nothing is to be settled for VM {vmid}")
        return Ledger(self._services.journal, fold(vmid, records), standing=True)

    async def settle(self, vmid: int, *, discard: bool) -> list[str]:
        """Do what somebody decided about a tunnel that was held.

        Args: discard: free what the tunnel made; else the VM is ours: let it run if QEMU has it, keep all, take the
            tunnel's lock from the config. What ran here or was given up is never freed.
        Returns: the volumes that stay.
        Raises: NotFound: no journal stands. TunnelError: why not everything went.
        """
        ledger = self._ledger(vmid)
        own = self._own(ledger)
        if discard and not ledger.owed.given_up:
            return await self._discard(ledger, own)
        left = await own.left()
        if not discard:
            await self._services.storage.sync(left)
            await self._resume(ledger)
        await Keeper(self._services).keep(ledger)
        return left

    async def _resume(self, ledger: Ledger) -> None:
        machine = await Keeper(self._services).machine(ledger)
        if machine.status == "paused" and machine.whole:
            await ledger.write("ran")
            await self._services.hypervisor.resume(ledger.owed.vmid)
            await ledger.write("runs")

    async def _discard(self, ledger: Ledger, own: Ownership) -> list[str]:
        keeper = Keeper(self._services)
        await ledger.write("undo")
        ours = keeper.is_ours(ledger)
        named = [volid for volid in await own.left() if self._named(volid, but=ledger.owed.vmid if ours else None)]
        if ours:
            await keeper.undo(ledger, own, but=named)
            return named
        if ledger.owed.started:
            await self._services.hypervisor.stop(ledger.owed.vmid)
        await own.free_all(but=named)
        await ledger.close()
        return named

    def _named(self, volid: str, but: int | None) -> bool:
        """Whether the config of any guest names a volume, except this node's guest `but`."""
        guests = self._services.guests
        return any((entry.vmid, entry.node) != (but, guests.node) for entry in guests.naming(volid))

    async def end(self, ledger: Ledger) -> None:
        """End a tunnel that nobody serves. Raises: TunnelError: why not everything could be undone."""
        await Keeper(self._services).settle(ledger, self._own(ledger))

    def _own(self, ledger: Ledger) -> Ownership:
        return Ownership(self._services.storage, ledger, QuietTask())
