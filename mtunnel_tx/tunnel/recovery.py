"""What a crash left behind: every standing journal is folded and ended by the handover rule, before the port opens."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from twisted.logger import Logger

from mtunnel_tx.errors import NotFound, TunnelError, WrongState
from mtunnel_tx.ports.events import ByteCount, TunnelEnded, TunnelFacts, TunnelOpened
from mtunnel_tx.tunnel.claim import Claim
from mtunnel_tx.tunnel.ending import Ending, end
from mtunnel_tx.tunnel.kinds import KINDS
from mtunnel_tx.tunnel.ledger import Ledger, Owed, fold
from mtunnel_tx.tunnel.services import Services
from mtunnel_tx.tunnel.sockets import remove_stale
from mtunnel_tx.tunnel.verdict import Verdict

log = Logger()
DIED = "the daemon ended before the tunnel did"
NOTHING = ByteCount(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """A tunnel that had begun to go on here: observers have heard of it. reason: why it does not."""

    reason: str
    traffic: ByteCount


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


async def recover(
    services: Services, but: Collection[int] = (), undone: Mapping[int, Undone] | None = None
) -> dict[int, str]:
    """End the tunnels of an earlier daemon, but those that go on; what works for the others has been ended before.

    Args: undone: those of the others that had begun to go on, by VMID.
    Returns: the VMIDs that could not be settled, each with the reason.
    """
    remove_stale(services.runtime_dir, but)
    await services.journal.tidy()
    others = [vmid for vmid in services.journal.standing() if vmid not in but]
    reasons = {vmid: await _recover(services, vmid, (undone or {}).get(vmid)) for vmid in others}
    for vmid in services.notes.standing():
        if vmid not in but:
            services.notes.remove(vmid)
    services.tasks.finish_orphans(DIED)
    return {vmid: reason for vmid, reason in reasons.items() if reason is not None}


async def _recover(services: Services, vmid: int, undone: Undone | None) -> str | None:
    """Returns: why it is held, None if it is not. One tunnel that cannot be settled stops no other."""
    owed = Owed(vmid=vmid)
    try:
        await services.guests.tidy(vmid)
        claim = find_claim(services, vmid)
        owed = claim.owed
        ending = await end(claim)
    except TunnelError as error:
        ending = Ending(Verdict.HOLD, error.text)
    except Exception:
        log.failure("unexpected failure in the recovery of VM {vmid}", vmid=vmid)
        ending = Ending(Verdict.HOLD, "internal error, see the daemon's log")
    if ending.problem is None:
        log.info("recovery: VM {vmid} is settled", vmid=vmid)
    else:
        log.error("VM {vmid} is held: {reason}", vmid=vmid, reason=ending.problem)
    if undone is not None:
        tell_end(services, owed, ending, undone.reason, is_known=True, traffic=undone.traffic)
    elif ending.problem is None or not owed.held:
        tell_end(services, owed, ending, DIED)
    return ending.problem


def tell_end(
    services: Services,
    owed: Owed,
    ending: Ending,
    reason: str,
    *,
    is_known: bool = False,
    traffic: ByteCount = NOTHING,
) -> None:
    """Tell the observers of the end of a tunnel that no session of this daemon stands for.

    Args: owed: what its journal said before. reason: why it ended. is_known: they have heard of the tunnel.
    """
    since_s = float(owed.at_s) or services.wall()
    facts = TunnelFacts(
        vmid=owed.vmid,
        kind=owed.kind,
        token=owed.token,
        address=owed.address,
        upid=owed.upid,
        since_s=since_s,
        traffic=lambda: traffic,
    )
    if not is_known:
        services.observers.tell(TunnelOpened(tunnel=facts))
    services.observers.tell(
        TunnelEnded(
            tunnel=facts,
            reason=reason,
            outcome=ending.outcome,
            problem=ending.problem,
            traffic=facts.traffic(),
            duration_s=max(0.0, services.wall() - since_s),
        )
    )
