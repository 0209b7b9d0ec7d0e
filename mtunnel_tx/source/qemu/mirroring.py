"""The start of a mirror.

QEMU connects to the target's export by itself. Until that has answered, it stands still as a whole, and the guest with
it: it must never wait for a network that is lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.ports.clock import Clock
from mtunnel_tx.source.links import Running
from mtunnel_tx.source.qemu.forwards import Forwards

ANSWERS_S = (2.0, 4.0, 8.0, 16.0)
"""How long QEMU may wait for the export, at the first try and at further ones. Each begins when the target has just
been reached; a good network takes a few round trips.
"""


class _Limit:
    """Ends QEMU's connection where that takes too long; one that has not come yet keeps nobody waiting."""

    def __init__(self, forwards: Forwards, path: Path, clock: Clock, answer_s: float) -> None:
        self.is_over = False
        self._forwards, self._path = forwards, path
        self._look = LoopingCall(self._cut)
        self._look.clock = cast("IReactorTime", clock)
        self._look.start(answer_s, now=False)

    def _cut(self) -> None:
        self.is_over |= self._forwards.cut_fresh(self._path)

    def stop(self) -> None:
        if self._look.running:
            self._look.stop()


async def start_mirror(
    running: Running, forwards: Forwards, clock: Clock, drive: str, path: Path, export: str, *, limit_bytes_s: int
) -> None:
    """Begin to copy a disk. Args: path: the socket here that leads there. Raises: TunnelError."""
    for answer_s in ANSWERS_S:
        await forwards.prepare(path)
        limit = _Limit(forwards, path, clock, answer_s)
        try:
            await running.start_mirror(drive, path, export, limit_bytes_s=limit_bytes_s, connected=limit.stop)
        except BackendFailed:
            if not limit.is_over:
                raise
        else:
            return
        finally:
            limit.stop()
    raise BackendFailed(f"the target's export of {drive} did not answer within {ANSWERS_S[-1]:g} s")
