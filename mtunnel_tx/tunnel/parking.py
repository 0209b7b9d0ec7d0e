"""The parked flows of one tunnel: which, since when, and how long there was any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mtunnel_tx.ports.tunnels import ParkedFlow
from mtunnel_tx.wire.socketkinds import COMMANDS, SocketKind

MOST_TOLD = 200
"""Losses of one tunnel that are told; a source that loses connections again and again must not fill a log."""


class _Parkable(Protocol):
    kind: SocketKind


class Parking:
    """Args: seconds: what is counted by; wall: what others are told, since the epoch. park_s: how long a flow may be
    parked. `times`: how often one was. `before_s`: how long there was a parked flow, in the outages that are over;
    `over` is called when that has become more.
    """

    def __init__(self, seconds: Callable[[], float], wall: Callable[[], float], park_s: float) -> None:
        self.over: Callable[[], object] = lambda: None
        self.times = 0
        self.before_s = 0.0
        self._seconds = seconds
        self._wall = wall
        self._park_s = park_s
        self._since: dict[_Parkable, float] = {}
        self._began_s = 0.0

    def park(self, route: _Parkable, waited_s: float = 0.0) -> None:
        """A flow has lost its connection, so long ago."""
        began_s = self._seconds() - waited_s
        self._began_s = min(began_s, self._began_s) if self._since else began_s
        self.times += 1
        self._since[route] = self._wall() - waited_s

    def forget(self, route: _Parkable) -> None:
        """It has another one, or has ended; nothing happens where it was not parked."""
        if self._since.pop(route, None) is not None and not self._since:
            self.before_s += self._seconds() - self._began_s
            self.over()

    @property
    def has_commands(self) -> bool:
        """Whether the flow of the commands is parked."""
        return any(route.kind is COMMANDS for route in self._since)

    @property
    def is_told(self) -> bool:
        """Whether the last loss, and its end, are to be told."""
        return self.times <= MOST_TOLD

    @property
    def parked_s(self) -> float:
        """How long there was a parked flow, up to now."""
        return self.before_s + (self._seconds() - self._began_s if self._since else 0.0)

    def flows(self) -> tuple[ParkedFlow, ...]:
        """Those that are parked now."""
        return tuple(
            ParkedFlow(socket=route.kind.name, since=since_s, park_s=self._park_s)
            for route, since_s in self._since.items()
        )
