"""What the handover rule says about each cell (docs/states.md), and the words for it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class End(Enum):
    """Who owns the VM once everything has come to rest."""

    SOURCE = "source, runs on there"
    SOURCE_OFF = "source, off: its QEMU was killed"
    TARGET = "target, runs there"
    TARGET_OFF = "target, off: its QEMU was killed"
    TARGET_FULL = "target, waits for room on its disk (`io-error`)"
    HELD = "held: whole at the target, never told to run"
    HELD_OFF = "held: was whole at the target, never told to run; its QEMU is gone"


_S, _SX, _T, _TX, _TF, _H, _HX = End
NEVER_THERE = (_S, _S, _S, _H, _T, _T)
"""In every phase the same, whatever ends the tunnel: the source's, until the whole state is there; then ours."""
ALWAYS_THERE = (_T,) * 6
"""A connection that is lost and comes back changes nothing."""
RULES: Mapping[str, tuple[End | None, ...]] = {
    "source QEMU killed": (_SX, _SX, _SX, _T, None, None),
    "target QEMU killed": (None, _S, _S, _S, _TX, _TX),
    "daemon SIGTERM": NEVER_THERE,
    "daemon SIGKILL": NEVER_THERE,
    "memory stream cut": (None, None, _T, None, None, None),
    "NBD stream cut": (None, _T, _T, None, None, None),
    "command connection cut": ALWAYS_THERE,
    "all cut, for good": NEVER_THERE,
    "all cut, back after 3 s": ALWAYS_THERE,
    "one stream cut every 2 s": ALWAYS_THERE,
    "target disk full": (_S, _S, _S, _TF, _TF, _TF),
    "20 s stall": (_T, _T, _T, _T, _T, _T),
    "never gets there (--timeout 20)": (None, _S, _S, None, None, None),
    "target machine rebooted": (_S, _S, _S, _HX, _TX, _TX),
    "source program killed": NEVER_THERE,
}
