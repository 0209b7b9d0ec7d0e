"""One request, from its arrival until it was answered or its client has gone."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.http import Request

from mtunnel_tx.net.admission import TooManyConnections


class Visit:
    """One request, from its arrival until it was answered or its client has gone.

    since: when it came. gone: fires when the client has gone. is_over: nothing can be answered any more.
    """

    def __init__(self, request: Any, since: float) -> None:
        self.request: Request = request
        self.since = since
        self.gone: Deferred[None] = Deferred()
        self.is_over = False
        # An upgrade takes the connection away from its channel.
        self._place = request.channel.place
        request.notifyFinish().addCallbacks(self._end, self._leave)

    def trust(self, token: str = "") -> None:
        """The request has shown a valid token. Raises: TooManyConnections: the connection ends with this request."""
        if self._place is not None:
            try:
                self._place.trust(token)
            except TooManyConnections:
                self.request.channel.persistent = False
                raise

    def _end(self, _: None) -> None:
        self.is_over = True

    def _leave(self, _: Failure) -> None:
        self.is_over = True
        self.gone.callback(None)
