"""What the handover rule says about each cell (docs/states.md), and the words for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum

HOLE_S = float(os.environ.get("MATRIX_HOLE_S", "20"))
"""For how long nothing arrives. 20 s is longer than the 15 s after which a silent connection counts as lost."""
HOLE = f"black hole for {HOLE_S:g} s"
HOLE_IN_POSTCOPY = f"black hole in post-copy, for {HOLE_S:g} s"


class End(Enum):
    """Who owns the VM once everything has come to rest."""

    SOURCE = "source, runs on there"
    SOURCE_OFF = "source, off: its QEMU was killed"
    TARGET = "target, runs there"
    TARGET_OFF = "target, off: its QEMU was killed"
    TARGET_FULL = "target, waits for room on its disk (`io-error`)"
    HELD = "held: whole at the target, never told to run"
    PARTS = "held: runs at the target, in two parts"


_S, _SX, _T, _TX, _TF, _H, _P = End
NEVER_THERE = (_S, _S, _S, _H, _T, _T)
"""In every phase the same, whatever ends the tunnel: the source's, until the whole state is there; then ours."""
ASKED_THERE = (_S, _S, _S, _T, _T, _T)
"""The same, where the source is alive and can ask the target what became of the VM."""
ALWAYS_THERE = (_T,) * 6
"""A connection, or a daemon, that is lost and comes back changes nothing."""
RULES: Mapping[str, tuple[End | None, ...]] = {
    "source QEMU killed": (_SX, _SX, _SX, _T, None, None),
    "target QEMU killed": (None, _S, _S, _S, _TX, _TX),
    "daemon SIGTERM, back after 0 s": ALWAYS_THERE,
    "daemon SIGTERM, back after 5 s": ALWAYS_THERE,
    "daemon SIGKILL, back after 0 s": ALWAYS_THERE,
    "daemon SIGKILL, back after 5 s": ALWAYS_THERE,
    "daemon SIGKILL, its journal torn": ALWAYS_THERE,
    "daemon SIGKILL, back too late": ASKED_THERE,
    "daemon SIGTERM, `workers = 0`": ASKED_THERE,
    "memory stream cut": (None, None, _T, None, None, None),
    "NBD stream cut": (None, _T, _T, None, None, None),
    "command connection cut": ALWAYS_THERE,
    "all cut, for good": NEVER_THERE,
    "all cut, back after 3 s": ALWAYS_THERE,
    "all cut, back after 30 s": ALWAYS_THERE,
    HOLE: ALWAYS_THERE,
    "source address changes": ALWAYS_THERE,
    "one stream cut every 2 s": ALWAYS_THERE,
    "target disk full": (_S, _S, _S, _TF, _TF, _TF),
    "20 s stall": (_T, _T, _T, _T, _T, _T),
    "never gets there (--timeout 20)": (None, _S, _S, None, None, None),
    "never gets there, then post-copy": (None, None, _T, None, None, None),
    "all cut in post-copy, back after 3 s": (None, None, _T, None, None, None),
    HOLE_IN_POSTCOPY: (None, None, _T, None, None, None),
    "daemon SIGTERM in post-copy, back after 3 s": (None, None, _T, None, None, None),
    "daemon SIGKILL in post-copy, back after 3 s": (None, None, _T, None, None, None),
    "daemon SIGTERM in post-copy, `workers = 0`": (None, None, _P, None, None, None),
    "daemon SIGKILL in post-copy, `workers = 0`": (None, None, _P, None, None, None),
    "target machine rebooted": (_S, _S, _S, _S, _TX, _TX),
    "source program killed": NEVER_THERE,
    "commands after the hand-over": (None, None, None, None, None, _T),
    "commands after the hand-over, user disabled": (None, None, None, None, None, _T),
    "68 s without a command, behind nginx": (None, _T, _T, None, None, None),
}
