"""Undoing a websocket mask in place: by autobahn's native masker where it is there, else by big integers.

The native one does 23 GB/s, the other about 0.5.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from mtunnel_tx.wire.frames import unmask_bytes

log = Logger()

Unmask = Callable[[memoryview, bytes], None]
"""XORs a writable view in place with a mask of four bytes."""

CHUNK_BYTES = 32 * 1024


def unmask_slowly(view: memoryview, mask: bytes) -> None:
    """XOR in place, through integers."""
    for start in range(0, len(view), CHUNK_BYTES):
        piece = view[start : start + CHUNK_BYTES]
        piece[:] = unmask_bytes(bytes(piece), mask)


def find_native() -> Unmask | None:
    """Autobahn's masker, called on our own buffer (its Python wrapper copies); None where it was not built."""
    try:
        from _nvx_xormasker import ffi, lib
    except ImportError:
        return None
    if not all(hasattr(lib, f"nvx_xormask_{name}") for name in ("new", "process", "free")):
        return None

    def unmask(view: memoryview, mask: bytes) -> None:
        masker = lib.nvx_xormask_new(mask)
        try:
            # Released here and now: see NativeEngine.
            with ffi.from_buffer("uint8_t[]", view) as base:
                lib.nvx_xormask_process(masker, base, len(view))
        finally:
            lib.nvx_xormask_free(masker)

    return unmask


def best_unmask(*, is_spare: bool = False) -> Unmask:
    """The fastest way there is; logs a warning where that is the slow one.

    Args: is_spare: the project's native module undoes the masks, and this one is not used; nothing is logged then.
    """
    native = find_native()
    if native is None and not is_spare:
        log.warn("autobahn's native masker is missing: masked streams will be slow")
    return native or unmask_slowly
