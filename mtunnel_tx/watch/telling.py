"""Tells the target how far its source is, by `progress` commands: one at a time, and none while the VM stands still."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.ports.clock import Clock
from mtunnel_tx.ports.moves import MovePhase
from mtunnel_tx.watch.move import MoveState

log = Logger()
EVERY_S = 2.0


class Telling:
    """Where the target does not understand, or has gone, nothing more is said. Args: report: sends one command."""

    def __init__(self, report: Callable[[Mapping[str, Any]], Awaitable[object]], clock: Clock) -> None:
        self._report = report
        self._clock = clock
        self._next_s = clock.seconds()
        self._said: Mapping[str, Any] | None = None
        self._waits = False
        self._is_heard = True

    def see(self, state: MoveState) -> None:
        """Tell it where it is time, or something else than bytes has changed."""
        if self._waits or not self._is_heard or _must_be_quiet(state):
            return
        fields = progress_fields(state)
        if self._clock.seconds() < self._next_s and self._said == _rare(state):
            return
        self._said = _rare(state)
        self._next_s = self._clock.seconds() + EVERY_S
        self._waits = True
        Deferred.fromCoroutine(self._tell(fields)).addErrback(
            lambda failure: log.failure("unexpected failure while the target was told", failure)
        )

    async def _tell(self, fields: Mapping[str, Any]) -> None:
        try:
            await self._report(fields)
        except (TunnelError, CancelledError):
            self._is_heard = False
        finally:
            self._waits = False


def _must_be_quiet(state: MoveState) -> bool:
    """Every command in the hand-over makes the downtime longer."""
    return state.phase.is_end or (state.phase is MovePhase.HAND_OVER and state.downtime_s is None)


def _rare(state: MoveState) -> Mapping[str, Any]:
    return {
        "phase": state.phase,
        "downtime": state.downtime_s,
        "running": [one.label for one in state.transfers if one.is_running],
    }


def progress_fields(state: MoveState) -> dict[str, Any]:
    """What a `progress` command says (wire/args.py)."""
    transfers = [
        {
            "label": one.label,
            "kind": one.kind.value,
            "total": one.total_bytes,
            "done": None if one.began_s is None else one.done_bytes,
            "ended": one.ended_s is not None,
        }
        for one in state.transfers
    ]
    downtime_ms = None if state.downtime_s is None else round(1000 * state.downtime_s)
    return {"phase": state.phase.value, "transfers": transfers, "downtime_ms": downtime_ms, "source": state.source}
