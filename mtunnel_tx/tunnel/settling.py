"""What is decided about a tunnel that was held: by `mtunnel settle`, or by its source, which has come back."""

from __future__ import annotations

from mtunnel_tx.errors import TunnelError, WrongState
from mtunnel_tx.ports.machines import MachineState
from mtunnel_tx.ports.tunnels import Decision, LateAnswer
from mtunnel_tx.tunnel.claim import Claim
from mtunnel_tx.tunnel.ending import end_machine, is_left_to_us, keep, remove_traces
from mtunnel_tx.tunnel.verdict import ANOTHERS, Verdict, is_in_parts

ANOTHERS_WORD = "another QEMU's"


async def settle(claim: Claim, decision: Decision) -> list[str]:
    """Do what somebody decided. What ran here or was given up is never freed, whatever that is.

    Returns: the volumes that stay. Raises: WrongState: it cannot be ours, as it is not whole here; nothing was done.
    TunnelError: why not everything went.
    """
    if decision is not Decision.DISCARD:
        try:
            await _check_disks(claim)
        except WrongState as error:
            raise WrongState(f"{error.text}. {_ways_on(claim)}") from error
    return await _settle(claim, decision)


def _ways_on(claim: Claim) -> str:
    what = "lets go of it and frees nothing" if claim.owed.is_given_up else "frees what was made for it"
    return f"Put that right by hand and settle again; or 'mtunnel settle {claim.vmid} --discard', which {what}"


async def _settle(claim: Claim, decision: Decision) -> list[str]:
    if foresee(claim, decision) is Verdict.ROLL_BACK:
        return await _discard(claim)
    left = await claim.own.left()
    if await _is_in_parts(claim):
        await end_machine(claim)  # which does not run without the rest of its memory
        await _keep(claim, decision)
        return left
    if decision is not Decision.DISCARD:
        await claim.services.storage.sync(left)
    if decision is Decision.RUN:
        await _resume(claim)
    await _keep(claim, decision)
    return left


async def _keep(claim: Claim, decision: Decision) -> None:
    if decision is not Decision.DISCARD:
        await claim.ledger.write("handed_over")
    await keep(claim, foresee(claim, decision))


def foresee(claim: Claim, decision: Decision) -> Verdict:
    """What becomes of the VM."""
    if decision is not Decision.DISCARD:
        return Verdict.KEEP
    # What may have run here stays, and a source that comes late must not take that for ours: it has the VM.
    return Verdict.LEAVE if claim.owed.is_given_up else Verdict.ROLL_BACK


async def _is_in_parts(claim: Claim) -> bool:
    """Raises: WrongState: QEMU does not say; one that waits for a page of its guest's memory may answer nobody."""
    if not claim.owed.is_in_parts:
        return False
    try:
        return is_in_parts(claim.owed, await claim.machine_state())
    except TunnelError as error:
        raise WrongState(
            f"{error.text}: it is busy, or waits for the rest of its memory. Where that never comes, kill this QEMU "
            "and settle again"
        ) from error


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
    await claim.discharge(Verdict.ROLL_BACK)
    return stay


# A source that comes late


async def look(claim: Claim) -> LateAnswer:
    """What a source has to know before it can decide. Raises: TunnelError: QEMU does not answer."""
    machine, owed = await claim.machine_state(), claim.owed
    is_whole = machine.whole and not owed.rolling_back
    return LateAnswer(
        verdict=Verdict.HOLD.value,
        # Not `off`: a source that heard this would let the VM run, which somebody may have started here by hand.
        machine=ANOTHERS_WORD if machine == ANOTHERS else machine.status,
        is_whole=is_whole,
        is_given_up=owed.is_given_up,
    )


async def decide(claim: Claim, decision: Decision) -> Verdict:
    """Do what its source says, which may be the only one to know; nothing that could make two VMs of one.

    Raises: WrongState: the VM is not all here, or may be more than what the source has; nothing was done.
    TunnelError: why not everything went.
    """
    machine = await claim.machine_state()
    if decision is Decision.DISCARD:
        _check_worthless(claim, machine)
    else:
        _check_machine(claim, machine)
        await _check_disks(claim)
        await claim.services.hypervisor.stop_nbd(claim.vmid)
    verdict = foresee(claim, decision)
    await _settle(claim, decision)
    return verdict


def _check_worthless(claim: Claim, machine: MachineState) -> None:
    if machine == ANOTHERS:
        raise WrongState(f"VM {claim.vmid}: {machine.dirty_end}: somebody has to decide")
    if claim.owed.is_given_up or machine.status == "running":
        raise WrongState(f"VM {claim.vmid} may have run here: somebody has to decide")


def _check_machine(claim: Claim, machine: MachineState) -> None:
    """Its QEMU waits with the whole state, or runs already."""
    waits_or_runs = machine.status == "paused" or (machine.status == "running" and claim.owed.resuming)
    if claim.owed.rolling_back or not (machine.whole and waits_or_runs):
        raise WrongState(f"VM {claim.vmid} is not whole here, but {machine.status}")


async def _check_disks(claim: Claim) -> None:
    """Nothing of it was freed, its config is as it was, and no volume is missing: whoever is told so gives it up."""
    if claim.owed.rolling_back:
        raise WrongState(f"VM {claim.vmid} is not whole here: its rollback was begun")
    was_unlocked = claim.owed.handed_over and claim.config_state() == "unlocked"
    if not was_unlocked and not await is_left_to_us(claim):
        raise WrongState(f"the config of VM {claim.vmid} is no longer ours")
    await claim.own.check_whole()
