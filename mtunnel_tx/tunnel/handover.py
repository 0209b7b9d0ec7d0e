"""Commands with which a source ends its part: unlock, which gives the VM to this node, and quit."""

from __future__ import annotations

from twisted.logger import Logger

from mtunnel_tx.errors import TunnelError, WrongState
from mtunnel_tx.tunnel.claim import Claim, marked
from mtunnel_tx.tunnel.common import DONE, Result
from mtunnel_tx.tunnel.ending import announce_rollback, roll_back
from mtunnel_tx.tunnel.sockets import WORKING_KINDS
from mtunnel_tx.tunnel.tunnel import Guest, State, Tunnel
from mtunnel_tx.tunnel.verdict import Verdict
from mtunnel_tx.wire.args import NoArgs, QuitArgs

log = Logger()
WHOLE_S = 4.0
"""How long `unlock` waits for the rest of the state of a VM that stays paused; a source waits 10 s for the reply."""


async def unlock(guest: Guest, _args: NoArgs) -> Result:
    """Give the VM to this node: it must be whole, and on disk; then the mark, then the lock goes.

    The source may delete its copy as soon as it has the reply. Once the lock is gone, the next one is somebody else's.
    """
    tunnel, conf = guest.tunnel, guest.conf
    if conf.lock not in tunnel.ledger.owed.marks:
        raise TunnelError("no lock found trying to remove any lock")
    await _check_whole(tunnel)
    await _end_exports(tunnel)
    await tunnel.services.storage.sync(tunnel.own.volumes)
    await tunnel.ledger.write("handed_over")
    await tunnel.services.guests.write(tunnel.vmid, marked(conf, None))
    await tunnel.ledger.note("unlocked")
    return DONE


async def _check_whole(tunnel: Tunnel) -> None:
    """Raises: WrongState: something of the VM is missing, so its source must not give it up."""
    job = tunnel.disk_import
    if job is not None and not job.over:
        raise WrongState(f"disk import still running as PID '{job.pid}'")
    if tunnel.watch is not None:
        await tunnel.watch.wait(tunnel.services.clock, WHOLE_S)
    await _check_machine(tunnel.claim)
    await tunnel.own.check_whole()


async def _check_machine(claim: Claim) -> None:
    """A QEMU that was started must have the whole state; one that ran here may have ended since, with its guest."""
    if claim.owed.resumed and not claim.owed.is_in_parts:
        return
    machine = await claim.machine_state()
    if not claim.owed.started or machine.whole:
        return
    if machine.status == "off":
        raise WrongState(f"VM {claim.vmid} not running{machine.dirty_end and f': {machine.dirty_end}'}")
    raise WrongState(f"the state of VM {claim.vmid} has not arrived in full")


async def _end_exports(tunnel: Tunnel) -> None:
    """The source writes to no disk any more; a regular one has ended its exports before, by `nbdstop`."""
    if tunnel.claim.runs():
        await tunnel.services.hypervisor.stop_nbd(tunnel.vmid)
    for kind in WORKING_KINDS:
        tunnel.sockets.drop(kind)
    tunnel.sockets.abort_streams()


async def leave(guest: Guest, args: QuitArgs) -> Result:
    """`quit`: undo everything if asked to, then exit mode."""
    tunnel = guest.tunnel
    try:
        await (_clean_up(tunnel) if args.cleanup else _keep(tunnel))
    finally:
        tunnel.state = State.LEAVING
        tunnel.task.line("switching to exit-mode, waiting for client to disconnect")
    return DONE


async def _clean_up(tunnel: Tunnel) -> None:
    owed = tunnel.ledger.owed
    if owed.is_given_up:
        why = "already unlocked" if owed.handed_over else "running here"
        raise WrongState(f"refusing cleanup: VM {owed.vmid} is {why}")
    await announce_rollback(tunnel.claim)
    await tunnel.end_children()
    await roll_back(tunnel.claim)


async def _keep(tunnel: Tunnel) -> None:
    if tunnel.disk_import is not None and not tunnel.disk_import.over:
        await tunnel.disk_import.cancel()
    if not tunnel.ledger.owed.handed_over:
        log.warn("VM {vmid} is left locked and as it is: its source quit without cleanup", vmid=tunnel.vmid)
    await tunnel.claim.discharge(Verdict.KEEP if tunnel.ledger.owed.is_given_up else Verdict.LEAVE)
