"""A carrier: the connection that moves a flow's bytes: TCP, TLS and websocket frames.

It can end before its flow does, and another carrier take its place. Nothing here knows the flow; `running.RunningFlow`
joins both.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from types import ModuleType

from mtunnel_tx.stream.engine import MakeEngine, StreamEnded, StreamFailed
from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.stream.mask import Unmask
from mtunnel_tx.stream.native import NativeSide
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.stream.sides import (
    Blocks,
    Side,
    is_peer_dead,
    is_reset,
    keep_alive,
    make_side,
    map_memory,
    receive,
    reset_on_close,
)
from mtunnel_tx.wire.frames import Decoder, Role
from mtunnel_tx.wire.kept import Chunks

PINGS = 64
"""Unanswered pings that are remembered; older ones are forgotten."""

DISCARDS = 2
"""Reads in a row while a carrier lingers, before another flow gets its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadTools:
    """What all flows of one thread share.

    engine, unmask: of the pure Python path. native: the module that is used instead (native.py), or None. now: seconds,
    of any origin. chunks: where resumable flows keep what is not acknowledged.
    """

    blocks: Blocks
    unmask: Unmask
    engine: MakeEngine
    now: Callable[[], float]
    native: ModuleType | None = None
    chunks: Chunks = field(default_factory=lambda: Chunks(map_memory))


class CarrierPhase(Enum):
    """TALKING; then FLUSHING our last bytes; then LINGERING until the peer has ended; then CLOSED."""

    TALKING = auto()
    FLUSHING = auto()
    LINGERING = auto()
    CLOSED = auto()


def _make_side(peer: PeerConnection, tools: ThreadTools) -> Side:
    if tools.native is not None and peer.connection is not None:
        return NativeSide(tools.native, peer.sock, peer.leftover, tools.blocks, peer.connection)
    return make_side(peer.sock, peer.leftover, tools.blocks, peer.connection, tools.engine)


class Carrier:
    """One carrier. `pings`: payloads of pings that are to be answered. The owner of `peer` closes its socket.

    Args: records: its text frames are records.
    `sweep_due_s`: when to look whether the peer is dead. `ping_due_s`: when a ping may be due. `linger_due_s`: when the
    peer has had enough time to see our last bytes; None: it does not have them yet.
    """

    def __init__(
        self, peer: PeerConnection, role: Role, limits: FlowLimits, tools: ThreadTools, *, records: bool = False
    ) -> None:
        self.peer = peer
        self.sock: socket.socket = peer.sock
        self.side = _make_side(peer, tools)
        self.decoder = Decoder(role, limits.frame_bytes, records=records)
        self.pings: deque[bytes] = deque(maxlen=PINGS)
        self.phase = CarrierPhase.TALKING
        self.linger_due_s: float | None = None
        self._limits = limits
        self._scratch = tools.blocks.scratch
        self._sweep_s = limits.dead_peer_s / 4
        self.sweep_due_s = tools.now() + self._sweep_s
        self.ping_due_s = tools.now() + limits.ping_s
        self._sent_bytes = 0
        self._is_replaceable = records
        if records:
            keep_alive(self.sock, limits.dead_peer_s / 3)

    def sweep(self, now_s: float, *, is_read: bool) -> str | None:
        """`sweep_due_s` has come. Returns: why the connection is lost; None: it is not.

        Args: is_read: whoever reads it sees its end, after what came before. While the UNIX socket takes nothing it is
        not read; for a resumable flow the end comes then as soon as the kernel knows of it.
        """
        self.sweep_due_s = now_s + self._sweep_s
        if self.phase is not CarrierPhase.TALKING:
            return None
        if is_peer_dead(self.sock, self._limits.dead_peer_s):
            return "peer is gone: it acknowledges nothing"
        is_lost = self._is_replaceable and not is_read and is_reset(self.sock)
        return "the connection was reset" if is_lost else None

    def is_silent(self, now_s: float) -> bool:
        """Whether nothing was sent for `ping_s`; then it is asked again after as long."""
        if self.side.sent_bytes == self._sent_bytes and now_s < self.ping_due_s:
            return False
        silent = self.side.sent_bytes == self._sent_bytes
        self._sent_bytes = self.side.sent_bytes
        self.ping_due_s = now_s + self._limits.ping_s
        return silent

    # The end: to close a socket with unread bytes inside would reset the connection, and a reset may overtake our last
    # bytes. So the peer is told the end, and what it still sends is thrown away until it has ended too.

    def flush(self, now_s: float) -> None:
        """Nothing more will be written but what waits already."""
        self.phase = CarrierPhase.FLUSHING
        self.linger_due_s = now_s + self._limits.linger_s

    def linger(self) -> None:
        """Everything was written: send a FIN, and wait for that of the peer."""
        self.phase = CarrierPhase.LINGERING
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def discard(self) -> None:
        """Throw away what the peer still sends, up to its end."""
        try:
            for _ in range(DISCARDS):
                if receive(self.sock, self._scratch) == 0:
                    return
        except (StreamEnded, StreamFailed):
            self.phase = CarrierPhase.CLOSED

    def drop(self) -> None:
        """End at once: closing the socket will reset the connection."""
        reset_on_close(self.sock)
        self.side.drop()
        self.phase = CarrierPhase.CLOSED
