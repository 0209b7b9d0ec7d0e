"""Why a move failed at first: a connection that was lost makes one program after the other fail, and they complain."""

from __future__ import annotations

from dataclasses import dataclass

from twisted.internet.defer import Deferred

from mtunnel_tx.checks import clean
from mtunnel_tx.ports.clock import Clock, Timer
from mtunnel_tx.source.links import JoinedSocket
from mtunnel_tx.stream.flow import CANCELLED
from mtunnel_tx.wire.socketkinds import COMMANDS, MEMORY, SocketKind

LOOK_EVERY_S = 5.0
SILENT_S = 10.0
"""A shorter silence is worth no word."""
_SAID_BY_PEER = ("peer gave up", "peer closed with", "peer closed before", "the peer has ended")
"""Whoever says this has another reason, and it comes by the tunnel's commands."""


@dataclass(slots=True)
class _Watched:
    """A connection. moved_s: when its count of bytes was last seen to change; ended_s: when it was over."""

    kind: SocketKind
    link: JoinedSocket
    moved_s: float
    moved_bytes: int = 0
    ended_s: float | None = None

    def until_s(self, now_s: float) -> float:
        """When it was over, or now."""
        return now_s if self.ended_s is None else self.ended_s

    @property
    def is_lost(self) -> bool:
        """Whether neither side wanted its end."""
        reason = self.link.reason
        return reason is not None and reason != CANCELLED and not reason.startswith(_SAID_BY_PEER)

    @property
    def name(self) -> str:
        """What it is for, in a word."""
        return {COMMANDS: "command", MEMORY: "memory"}.get(self.kind, "disk")


class Causes:
    """Watches the connections of one tunnel, until `close`. Args: host: the target, for people."""

    def __init__(self, clock: Clock, host: str) -> None:
        self._clock = clock
        self._host = host
        self._watched: list[_Watched] = []
        self._timer: Timer | None = None

    def watch(self, kind: SocketKind, link: JoinedSocket) -> None:
        """One more connection."""
        watched = _Watched(kind, link, self._clock.seconds())
        self._watched.append(watched)
        Deferred.fromCoroutine(link.ended()).addCallback(lambda _: self._end(watched))
        if self._timer is None:
            self._timer = self._clock.callLater(LOOK_EVERY_S, self._look)

    def close(self) -> None:
        """Count no more; what was found stays."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def find(self) -> str | None:
        """The connection that was lost first, in a sentence; None: none was."""
        lost = [watched for watched in self._watched if watched.is_lost]
        if not lost:
            return None
        now_s = self._clock.seconds()
        first = min(lost, key=lambda watched: watched.until_s(now_s))
        silent_s = first.until_s(now_s) - first.moved_s
        after = f" after {silent_s:.0f} s without data" if silent_s >= SILENT_S else ""
        return f"the {first.name} connection to {self._host} was lost{after}: {clean(str(first.link.reason))}"

    def _end(self, watched: _Watched) -> None:
        self._count(watched)
        watched.ended_s = self._clock.seconds()

    def _look(self) -> None:
        for watched in self._watched:
            if watched.ended_s is None:
                self._count(watched)
        self._timer = self._clock.callLater(LOOK_EVERY_S, self._look)

    def _count(self, watched: _Watched) -> None:
        moved_bytes = watched.link.bytes_in + watched.link.bytes_out
        if moved_bytes != watched.moved_bytes:
            watched.moved_bytes, watched.moved_s = moved_bytes, self._clock.seconds()
