"""Every guest kind that tunnels can receive."""

from __future__ import annotations

from mtunnel_tx.tunnel.qemu.kind import QEMU

KINDS = {kind.layout.word: kind for kind in (QEMU,)}
"""By the word in URLs."""
