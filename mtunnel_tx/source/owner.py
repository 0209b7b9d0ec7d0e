"""Who owns a VM that was on its way? The handover rule as the source sees it, as one table (docs/states.md).

Until the rest of its memory is sent, the VM is this host's; once the target says that it runs there, or that it is its
own, it is the target's. In between nobody knows, and nothing is touched until somebody decides. The same holds for a VM
that runs there by post-copy, until all of its memory is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mtunnel_tx.source.departure import Departure, Power, Stage

MIGRATION_OVER = frozenset({"none", "completed", "failed", "cancelled"})
"""What `query-migrate` says where nothing is being sent."""
POSTCOPY_BROKEN_OFF = "postcopy-paused"
POSTCOPY = frozenset({"postcopy-active", POSTCOPY_BROKEN_OFF, "postcopy-recover"})
"""What it says where the target can run the VM, and a part of its memory is still here."""
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
        case Stage.RESUMED:
            return Owner.UNKNOWN if is_in_parts(departure, machine) else Owner.THERE
        case Stage.HANDED_OVER | Stage.REMOVING:
            return Owner.THERE
        case Stage.RESUMING | Stage.HANDING_OVER:
            return Owner.UNKNOWN
        case Stage.OPENED if departure.asked:
            return Owner.UNKNOWN
        case Stage.COMPLETING:
            # A QEMU that could not send everything goes on with the VM; one that is gone cannot tell.
            # One that was asked to run the VM may have done it, whatever it said; it is gone where it cleans up.
            return Owner.HERE if machine.migration in _NOT_SENT and not departure.asked else Owner.UNKNOWN
    return Owner.HERE


def is_in_parts(departure: Departure, machine: LocalMachine) -> bool:
    """Whether a part of its memory is here, and another one there."""
    return departure.is_in_parts and machine.migration != "completed"


_DEEDS = {
    Stage.OPENED: "was told that it is its own, and said no",
    Stage.COMPLETING: "may have its whole state, and was never told to run it",
    Stage.RESUMING: "was told to run it, and did not answer",
    Stage.RESUMED: "runs it",
    Stage.HANDING_OVER: "was told that it is its own, and did not answer",
}


def explain(departure: Departure, machine: LocalMachine) -> str:
    """Why nobody knows, and which command decides."""
    if is_in_parts(departure, machine):
        return _explain_parts(departure, machine)
    vmid, there = departure.vmid, departure.target_vmid
    state = machine.status if machine.status in ("off", "running") else "paused"
    discard = f" (and 'mtunnel settle {there} --discard' there)" if departure.power is not Power.OFF else ""
    deed = f"{departure.host} {_DEEDS[departure.stage]}"
    return (
        f"nobody here knows who owns VM {vmid}: {deed}; it is {state} here, and locked. "
        f"'mtunnel settle {vmid} ENDPOINT' asks it, if it is an mtunnel-tx. Else look at VM {there} there; "
        f"then decide here with 'mtunnel settle {vmid} --there' if the VM is the target's, "
        f"or 'mtunnel settle {vmid} --here' if it is not{discard}"
    )


_PART_DEEDS = {**_DEEDS, Stage.COMPLETING: "was never told to run it"}


def _explain_parts(departure: Departure, machine: LocalMachine) -> str:
    vmid, there, host = departure.vmid, departure.target_vmid, departure.host
    what = f"VM {vmid} is in two parts (post-copy): {host} has a part of its memory, and {_PART_DEEDS[departure.stage]}"
    if machine.status == "off":
        rest = "QEMU here, which had the rest, is gone. One part has to go"
    else:
        rest = "QEMU here has the rest, and waits. While both run, they may be joined again (docs/states.md); else"
        rest += " one part has to go"
    ways = (
        f"'mtunnel settle {vmid} --there' here and 'mtunnel settle {there} --resume' there keep the disks of {host}, "
        f"with all that it has written there; 'mtunnel settle {vmid} --here' here and 'mtunnel settle {there} "
        "--discard' there keep the disks here, as they were when it left. Its memory is lost either way"
    )
    return f"{what}; {rest}: {ways}"


def describe(departure: Departure) -> str:
    """Where it was to go, and how far it came; for `mtunnel status`."""
    where = f"{departure.host} as VM {departure.target_vmid}"
    match departure.stage:
        case Stage.KEPT:
            return f"was on its way to {where}, and stays here"
        case Stage.RUNS_ON:
            return f"was on its way to {where}, and was let run on here"
        case Stage.RESUMED:
            return f"runs at {where}{', and a part of its memory may be here' if departure.is_in_parts else ''}"
        case Stage.HANDED_OVER:
            return f"was handed over to {where}"
        case Stage.REMOVING:
            return f"was handed over to {where}, and is being removed here"
        case Stage.COMPLETING | Stage.RESUMING | Stage.HANDING_OVER:
            return f"was on its way to {where}, which {_DEEDS[departure.stage]}"
    return f"was on its way to {where}"
