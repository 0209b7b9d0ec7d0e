"""What somebody decides about a tunnel that was held: `mtunnel settle VMID --resume` or `--discard`."""

from __future__ import annotations

from mtunnel_tx.tunnel.claim import Claim
from mtunnel_tx.tunnel.ending import end_machine, is_left_to_us, keep, remove_traces


async def settle(claim: Claim, *, discard: bool) -> list[str]:
    """Do what was decided.

    Args: discard: free what the tunnel made; else the VM is ours: let it run if QEMU has it, keep all, take the
        tunnel's lock from the config. What ran here or was given up is never freed.
    Returns: the volumes that stay. Raises: TunnelError: why not everything went.
    """
    if discard and not claim.owed.is_given_up:
        return await _discard(claim)
    left = await claim.own.left()
    if not discard:
        await claim.services.storage.sync(left)
        await _resume(claim)
    await keep(claim)
    return left


async def _resume(claim: Claim) -> None:
    machine = await claim.machine_state()
    if machine.status == "paused" and machine.whole:
        await claim.ledger.write("resuming")
        await claim.services.hypervisor.resume(claim.vmid)
        await claim.ledger.note("resumed")


async def _discard(claim: Claim) -> list[str]:
    """Where somebody else has the config, it may name volumes as any other may; it stays, and its firewall file."""
    await claim.ledger.write("rolling_back")
    ours = await is_left_to_us(claim)
    stay = [volid for volid in await claim.own.left() if claim.own.is_named(volid, also_by_own=not ours)]
    await end_machine(claim)
    await claim.own.free_all(but=stay)
    if ours:
        await remove_traces(claim)
    await claim.ledger.discharge()
    return stay
