"""Who owns the VM when a tunnel has ended? The handover rule, as one table (docs/states.md).

Until QEMU here has the whole state, the source owns the VM; from then on we do. Where neither is proven, nothing is
touched until somebody decides.
"""

from __future__ import annotations

from enum import Enum

from mtunnel_tx.ports.machines import MachineState
from mtunnel_tx.tunnel.ledger import Owed

ANOTHERS = MachineState(status="off", dirty_end="a QEMU that this tunnel has not started runs under its number")
"""The tunnel's own has ended."""


class Verdict(Enum):
    """What becomes of what a tunnel made; the value is the word for people.

    ROLL_BACK: the source owns the VM. KEEP: it is ours. HOLD: nobody knows. LEAVE: nothing is done about it, as its
    source left without cleanup, or somebody else took the VMID over.
    """

    ROLL_BACK = "rolled back"
    KEEP = "kept"
    HOLD = "held"
    LEAVE = "left as it is"


def judge(owed: Owed, machine: MachineState) -> Verdict:
    """Decide.

    Args: owed: the fold of the journal. machine: what QEMU says now; `off` where none was started.
    """
    if is_in_parts(owed, machine):
        return Verdict.HOLD
    if owed.handed_over or owed.resumed:
        return Verdict.KEEP
    if owed.rolling_back:
        return Verdict.ROLL_BACK
    if owed.resuming:
        return Verdict.KEEP if machine.status == "running" else Verdict.HOLD
    if owed.whole or machine.whole:
        return Verdict.HOLD
    never_ran = not owed.started or machine.status in ("off", "inmigrate")
    return Verdict.ROLL_BACK if never_ran else Verdict.HOLD


def is_in_parts(owed: Owed, machine: MachineState) -> bool:
    """Whether it ran here by post-copy, and a part of its memory never came."""
    return owed.is_in_parts and not machine.whole


def explain(owed: Owed, machine: MachineState) -> str:
    """Why it is held, for logs and `mtunnel status`."""
    if is_in_parts(owed, machine):
        state = "its QEMU here is gone" if machine.status == "off" else "it stands still where it needs that"
        return f"VM {owed.vmid} was told to run here before all of its memory came (post-copy), and {state}"
    if machine.partly:
        return f"VM {owed.vmid} has a part of its memory here and was never told to run; the source has the rest"
    mark = "was told to run" if owed.resuming else "has its whole state"
    other = f", and {machine.dirty_end}" if machine == ANOTHERS else ""
    return f"VM {owed.vmid} {mark} here and is {machine.status}{other}; the source may run it too"
