"""The end of a tunnel, by the handover rule (verdict.py, docs/states.md).

Rolled back, newest effect first; kept, without our lock; or held, untouched, until somebody decides. Where somebody
else has taken the config over, nothing of it is touched either, nor a QEMU that may be theirs: the journal stays and
names what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from twisted.logger import Logger

from mtunnel_tx.errors import TunnelError, WrongState
from mtunnel_tx.ports.machines import MachineState
from mtunnel_tx.tunnel.claim import Claim, marked
from mtunnel_tx.tunnel.verdict import ANOTHERS, Verdict, explain, judge
from mtunnel_tx.wire.socketkinds import MEMORY, NBD

log = Logger()
MISSING = MachineState(status="running", partly=True)
"""A QEMU that waits for a page of its guest's memory may answer nobody."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What was done about a tunnel, by which verdict; `problem`: why it waits for `mtunnel settle`, or None."""

    verdict: Verdict
    problem: str | None = None

    @property
    def outcome(self) -> str:
        """What became of the VM, in a word or two."""
        return (self.verdict if self.problem is None else Verdict.HOLD).value


async def end(claim: Claim) -> Ending:
    """End a tunnel that nobody serves any more; alike after the end of a connection and after a crash."""
    ending = await _end(claim)
    if ending.problem is not None and not claim.owed.held:
        await claim.ledger.note("held")
    return ending


async def _end(claim: Claim) -> Ending:
    if not claim.ledger.stands:
        return Ending(_decided(claim))
    verdict = Verdict.HOLD
    try:
        machine = await claim.machine_state()
        verdict = judge(claim.owed, machine)
        if verdict is Verdict.HOLD:
            return Ending(verdict, explain(claim.owed, machine))
        return Ending(await (keep(claim) if verdict is Verdict.KEEP else roll_back(claim)))
    except TunnelError as error:
        return Ending(
            verdict, f"{explain(claim.owed, MISSING)}: {error.text}" if claim.owed.is_in_parts else error.text
        )
    except Exception:
        log.failure("unexpected failure at the end of the tunnel of VM {vmid}", vmid=claim.vmid)
        return Ending(verdict, "internal error, see the daemon's log")


def _decided(claim: Claim) -> Verdict:
    """What a `quit` that was answered has done already."""
    if claim.owed.rolling_back:
        return Verdict.ROLL_BACK
    return Verdict.KEEP if claim.owed.is_given_up else Verdict.LEAVE


async def keep(claim: Claim, verdict: Verdict = Verdict.KEEP) -> Verdict:
    """The VM is ours: finish an `unlock` that was announced, and forget the journal. Raises: TunnelError.

    Args: verdict: what a source that comes late is told; it is returned.
    """
    guests = claim.services.guests
    async with guests.locked(claim.vmid, claim.services.limits.command_lock_s):
        if claim.config_state() in claim.owed.marks - {"absent"}:
            await guests.write(claim.vmid, marked(guests.read(claim.vmid), None))
    await claim.discharge(verdict)
    return verdict


async def roll_back(claim: Claim) -> Verdict:
    """Undo everything, newest effect first; where somebody else has the config, only what is surely ours and runs.

    Raises: TunnelError: why not everything went; the journal stands.
    """
    await announce_rollback(claim)
    await end_machine(claim)
    if not await is_left_to_us(claim):
        return await _step_back(claim)
    await claim.own.free_all()
    await remove_traces(claim)
    return Verdict.ROLL_BACK


async def announce_rollback(claim: Claim) -> None:
    """Once announced, a missing config was removed by us; before, by somebody who may need the volumes."""
    if not claim.owed.rolling_back and claim.is_config_untouched():
        await claim.ledger.write("rolling_back")


async def end_machine(claim: Claim) -> None:
    """End QEMU where this tunnel may have started one; one that was killed leaves its sockets behind.

    Raises: WrongState: it may be somebody else's. TimedOut: somebody is at work at the config.
    """
    if not claim.owed.started:
        return
    async with claim.services.guests.locked(claim.vmid, claim.services.limits.command_lock_s):
        if await _is_machine_ours(claim):
            await claim.stop_machine()
            for kind in (MEMORY, NBD):
                (claim.services.machine_dir / f"{claim.vmid}{kind.suffix}").unlink(missing_ok=True)


async def _is_machine_ours(claim: Claim) -> bool:
    """Whether the QEMU of this VMID is the one that this tunnel has started.

    A journal that does not know which that was: under our lock nobody starts another.
    Raises: WrongState: nobody knows, or it is another one and uses what is ours.
    """
    if claim.is_machine_anothers():
        if claim.is_config_untouched():
            raise WrongState(f"VM {claim.vmid}: {ANOTHERS.dirty_end}: end it and settle again")
        return False
    if claim.config_state() in claim.owed.marks - {"absent"}:
        return True
    machine = await claim.machine_state()
    if machine.status in ("off", "inmigrate") or machine.partly:
        return True
    if machine.status == "running" and not claim.owed.resuming:
        return False  # ours was never told to run
    raise WrongState(
        f"the config of VM {claim.vmid} is no longer ours, and its QEMU, which is {machine.status}, may be somebody "
        "else's: where it is not needed, end it and settle again"
    )


async def remove_traces(claim: Claim) -> None:
    """Remove firewall file and config, and forget the journal."""
    guests = claim.services.guests
    if claim.owed.firewall:
        await guests.remove_firewall(claim.vmid)
    async with guests.locked(claim.vmid, claim.services.limits.command_lock_s):
        if claim.is_config_untouched():
            await guests.remove(claim.vmid)
    await claim.discharge(Verdict.ROLL_BACK)


async def is_left_to_us(claim: Claim) -> bool:
    """Whoever restores a VM of this number has a config like ours, and volumes of the same names, under its lock.

    Raises: TimedOut: somebody is at work there.
    """
    async with claim.services.guests.locked(claim.vmid, claim.services.limits.command_lock_s):
        return claim.is_config_untouched()


async def _step_back(claim: Claim) -> Verdict:
    """Somebody else has the config now: what we made is theirs to judge. Raises: WrongState: something is left."""
    left = await claim.own.left()
    if left:
        raise WrongState(f"the config of VM {claim.vmid} is no longer ours; volumes left: {', '.join(left)}")
    await claim.discharge(Verdict.LEAVE)
    return Verdict.LEAVE
