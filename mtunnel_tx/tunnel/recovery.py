"""What a crash left behind: every standing journal is folded and ended by the handover rule, before the port opens."""

from __future__ import annotations

from twisted.logger import Logger

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.tunnel.ledger import Ledger, fold
from mtunnel_tx.tunnel.lifecycle import Keeper
from mtunnel_tx.tunnel.ownership import Ownership
from mtunnel_tx.tunnel.world import World

log = Logger()


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

    def __init__(self, world: World) -> None:
        self._world = world

    async def run(self) -> dict[int, str]:
        """Returns: the VMIDs that could not be settled, each with the reason."""
        held = {}
        for vmid in self._world.journal.standing():
            try:
                await self._settle(vmid)
            except TunnelError as error:
                held[vmid] = error.text
                log.error("VM {vmid} is held: {reason}", vmid=vmid, reason=error.text)
        return held

    async def _settle(self, vmid: int) -> None:
        owed = fold(vmid, self._world.journal.read(vmid) or [])
        await self.end(Ledger(self._world.journal, owed, standing=True))

    async def end(self, ledger: Ledger) -> None:
        """End a tunnel that nobody serves. Raises: TunnelError: why not everything could be undone."""
        keeper = Keeper(self._world)
        if ledger.closed:
            return
        if ledger.owed.ours:
            await keeper.keep(ledger)
            return
        await ledger.write("undo")
        await keeper.undo(ledger, Ownership(self._world.storage, ledger, QuietTask()))
