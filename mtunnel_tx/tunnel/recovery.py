"""What a crash left behind: every standing journal is folded and ended by the handover rule, before the port opens."""

from __future__ import annotations

from collections.abc import Collection

from twisted.logger import Logger

from mtunnel_tx.errors import NotFound, TunnelError, WrongState
from mtunnel_tx.tunnel.claim import Claim
from mtunnel_tx.tunnel.ending import end
from mtunnel_tx.tunnel.kinds import KINDS
from mtunnel_tx.tunnel.ledger import Ledger, fold
from mtunnel_tx.tunnel.services import Services
from mtunnel_tx.tunnel.sockets import remove_stale

log = Logger()
DIED = "the daemon ended before the tunnel did"


class QuietTask:
    """A task log for work that no task stands for: its lines go to the daemon's log."""

    upid = ""
    warnings = 0

    def line(self, text: str) -> None:
        """Log one line."""
        log.info("recovery: {text}", text=text)

    def warn(self, text: str) -> None:
        """Log a warning."""
        log.warn("recovery: {text}", text=text)

    def finish(self, status: str) -> None:
        """Nothing to close."""


def find_claim(services: Services, vmid: int) -> Claim:
    """What a standing journal says of a VMID that no live tunnel has.

    Raises: NotFound: no journal stands. WrongState, BackendFailed: it cannot be understood, and is never followed.
    """
    records = services.journal.read(vmid)
    if records is None:
        raise NotFound(f"nothing is to be settled for VM {vmid}")
    owed = fold(vmid, records)
    if owed.kind not in KINDS:
        raise WrongState(f"journal of VM {vmid}: guests of kind {owed.kind!r} are not known here")
    return Claim(services, Ledger(services.journal, owed, stands=True), QuietTask())


async def recover(services: Services, but: Collection[int] = ()) -> dict[int, str]:
    """End the tunnels of an earlier daemon, but those that go on; what works for the others has been ended before.

    Returns: the VMIDs that could not be settled, each with the reason.
    """
    remove_stale(services.runtime_dir, but)
    await services.journal.tidy()
    reasons = {vmid: await _recover(services, vmid) for vmid in services.journal.standing() if vmid not in but}
    for vmid in services.notes.standing():
        if vmid not in but:
            services.notes.remove(vmid)
    services.tasks.finish_orphans(DIED)
    return {vmid: reason for vmid, reason in reasons.items() if reason is not None}


async def _recover(services: Services, vmid: int) -> str | None:
    """Returns: why it is held, None if it is not. One tunnel that cannot be settled stops no other."""
    try:
        await services.guests.tidy(vmid)
        problem = (await end(find_claim(services, vmid))).problem
    except TunnelError as error:
        problem = error.text
    except Exception:
        log.failure("unexpected failure in the recovery of VM {vmid}", vmid=vmid)
        problem = "internal error, see the daemon's log"
    if problem is None:
        log.info("recovery: VM {vmid} is settled", vmid=vmid)
    else:
        log.error("VM {vmid} is held: {reason}", vmid=vmid, reason=problem)
    return problem
