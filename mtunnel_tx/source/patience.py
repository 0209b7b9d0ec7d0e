"""What a running VM may take on its way, as whoever moves it says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MAX_DOWNTIME_S = 10.0
"""Up to which the downtime is raised where nobody says."""
SWITCH_S = 10.0
"""How long it stands still for a network that is lost, where nobody says."""


class OnTimeout(Enum):
    """What becomes of a VM whose time is up."""

    ABORT = "abort"
    PAUSE = "pause"
    POSTCOPY = "postcopy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long disks and memory may take.

    `switch_s`: from when the VM stands still, its disks have so long to become level, and the rest of its memory so
    long beyond the downtime to be sent; then it runs on here.
    `max_downtime_s`: how long the VM may stand still for the rest of its memory, where that changes too fast.
    `auto_converge`: QEMU may slow the guest down until it does not. `timeout_s`: for disks and memory together; None:
    no limit. `on_timeout`: the move is given up, the VM stands still until it is there, or it runs there before all of
    its memory is.
    """

    max_downtime_s: float = MAX_DOWNTIME_S
    switch_s: float = SWITCH_S
    auto_converge: bool = False
    timeout_s: float | None = None
    on_timeout: OnTimeout = OnTimeout.ABORT

    @property
    def may_split(self) -> bool:
        """Whether it may come to post-copy."""
        return self.timeout_s is not None and self.on_timeout is OnTimeout.POSTCOPY


PATIENCE = Patience()
"""Where nobody says anything."""
