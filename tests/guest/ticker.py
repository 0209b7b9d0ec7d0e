"""ticker, the guest that the demo moves, too (README.md)."""

from mtunnel_tx.demo.ticker import BEAT, SECTOR_BYTES, is_unbroken, read_beats, read_ring, ticker

__all__ = ["BEAT", "SECTOR_BYTES", "is_unbroken", "read_beats", "read_ring", "ticker"]
