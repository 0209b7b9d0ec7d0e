"""Who owns a VM that was on its way? The handover rule as the source sees it, as one table (docs/states.md).

Until the rest of its memory is sent, the VM is this host's; once the target says that it runs there, or that it is its
own, it is the target's. In between nobody knows, and nothing is touched until somebody decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mtunnel_tx.source.departure import Departure, Power, Stage

MIGRATION_OVER = frozenset({"none", "completed", "failed", "cancelled"})
"""What `query-migrate` says where nothing is being sent."""
_NOT_SENT = frozenset({"pre-switchover", "failed", "cancelled"})
"""What `query-migrate` says where the target cannot have the whole state."""


class Owner(Enum):
    """Whose VM it is."""

    HERE = "this host"
    THERE = "the target"
    UNKNOWN = "nobody knows"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalMachine:
    """What QEMU says here: `status` as in query-status, `off` where there is none; `migration` as in query-migrate."""

    status: str = "off"
    migration: str = "none"


def judge(departure: Departure, machine: LocalMachine) -> Owner:
    """Decide; nobody sends this VM any more."""
    match departure.stage:
        case Stage.RESUMED | Stage.HANDED_OVER | Stage.REMOVING:
            return Owner.THERE
        case Stage.RESUMING | Stage.HANDING_OVER:
            return Owner.UNKNOWN
        case Stage.COMPLETING:
            # A QEMU that could not send everything goes on with the VM; one that is gone cannot tell.
            return Owner.HERE if machine.migration in _NOT_SENT else Owner.UNKNOWN
    return Owner.HERE


_DEEDS = {
    Stage.COMPLETING: "may have its whole state, and was never told to run it",
    Stage.RESUMING: "was told to run it, and did not answer",
    Stage.HANDING_OVER: "was told that it is its own, and did not answer",
}


def explain(departure: Departure, machine: LocalMachine) -> str:
    """Why nobody knows, and which command decides."""
    vmid, there = departure.vmid, departure.target_vmid
    state = machine.status if machine.status in ("off", "running") else "paused"
    discard = f" (and 'mtunnel settle {there} --discard' there)" if departure.power is not Power.OFF else ""
    deed = f"{departure.host} {_DEEDS[departure.stage]}"
    return (
        f"nobody here knows who owns VM {vmid}: {deed}; it is {state} here, and locked. "
        f"Look at VM {there} there; then decide here with 'mtunnel settle {vmid} --there' if the VM is the target's, "
        f"or 'mtunnel settle {vmid} --here' if it is not{discard}"
    )


def describe(departure: Departure) -> str:
    """Where it was to go, and how far it came; for `mtunnel status`."""
    where = f"{departure.host} as VM {departure.target_vmid}"
    match departure.stage:
        case Stage.KEPT:
            return f"was on its way to {where}, and stays here"
        case Stage.RESUMED:
            return f"runs at {where}"
        case Stage.HANDED_OVER:
            return f"was handed over to {where}"
        case Stage.REMOVING:
            return f"was handed over to {where}, and is being removed here"
        case Stage.COMPLETING | Stage.RESUMING | Stage.HANDING_OVER:
            return f"was on its way to {where}, which {_DEEDS[departure.stage]}"
    return f"was on its way to {where}"
