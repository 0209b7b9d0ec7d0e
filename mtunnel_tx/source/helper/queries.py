"""Questions after an import, while the network is lost: a Proxmox source waits 10 s for each answer, then it gives up.

`pending` says nothing about an import, so it may be said without the target. The real reply then answers the next
question, and no question is lost or asked twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mtunnel_tx.ports.clock import Clock, Timer

PENDING = b'{"success":true,"status":"pending","msg":""}'
PENDING_S = 5.0


def is_import_query(line: bytes) -> bool:
    """Whether a line asks how an import goes on."""
    if b"query-disk-import" not in line:
        return False
    try:
        order = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(order, dict) and order.get("cmd") == "query-disk-import"


class ImportQueries:
    """Args: ask: sends a line to the target. is_parked: whether its connection is lost at the moment."""

    def __init__(self, clock: Clock, ask: Callable[[bytes], Deferred[bytes]], is_parked: Callable[[], bool]) -> None:
        self._clock = clock
        self._ask = ask
        self._is_parked = is_parked
        self._is_owed = False
        self._early: bytes | Failure | None = None
        self._waiting: Deferred[bytes] | None = None
        self._timer: Timer | None = None

    def ask(self, line: bytes) -> Deferred[bytes]:
        """Returns: fires with a reply; fails where none can come any more."""
        waiting: Deferred[bytes] = Deferred()
        early, self._early = self._early, None
        if early is not None:
            waiting.callback(early)
            return waiting
        self._waiting = waiting
        self._watch()
        if not self._is_owed:
            self._is_owed = True
            self._ask(line).addBoth(self._reply)
        return waiting

    def _reply(self, reply: bytes | Failure) -> None:
        self._is_owed = False
        waiting, self._waiting = self._waiting, None
        self._stop_timer()
        if waiting is None:
            self._early = reply
        else:
            waiting.callback(reply)

    def _watch(self) -> None:
        self._stop_timer()
        self._timer = self._clock.callLater(PENDING_S, self._stand_in)

    def _stand_in(self) -> None:
        """Nothing has come: where the network is lost, nothing will for now."""
        if not self._is_parked():
            self._watch()
            return
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(PENDING)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
