"""Those who cannot say who they are: counted, named in the log, and answered late, wherever they try."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.http.logins import Logins
from mtunnel_tx.ports.clock import Clock

REFUSAL_S = 3.0
MOST_DELAYED = 256


class TooManyRefusals(TunnelError):
    """The peer must wait: others with bad credentials are being held up already."""

    status = 503


class Gate:
    """One for all that a daemon serves. `logins` counts the failed ones. Args: failed: told of each one."""

    def __init__(self, clock: Clock, failed: Callable[[], object] = lambda: None) -> None:
        self.logins = Logins(clock.seconds)
        self._failed = failed
        self._clock = clock
        self._waiting = 0

    def fail(self, address: str) -> None:
        """Somebody there has shown what is none of ours, or no longer."""
        self.logins.fail(address)
        self._failed()

    async def hold(self, since: float, gone: Deferred[None]) -> None:
        """Hold up somebody with bad credentials until REFUSAL_S after the request came, a bounded number at a time.

        Args: since: when the request came. gone: fires when nobody waits for the answer any more.

        Raises: TooManyRefusals. CancelledError: the client has gone.
        """
        if self._waiting >= MOST_DELAYED:
            raise TooManyRefusals("too many failed logins")
        self._waiting += 1
        try:
            await _sleep(self._clock, since + REFUSAL_S - self._clock.seconds(), gone)
        finally:
            self._waiting -= 1


def _sleep(clock: Clock, delay_s: float, gone: Deferred[None]) -> Deferred[None]:
    done: Deferred[None] = Deferred()
    timer = clock.callLater(max(0.0, delay_s), done.callback, None)

    def stop(result: None) -> None:
        if timer.active():
            timer.cancel()
            done.cancel()
        return result

    gone.addCallback(stop)
    return done
