"""Who is told what happens (ports/events.py)."""

from __future__ import annotations

from twisted.logger import Logger

from mtunnel_tx.ports.events import Observer, TunnelEvent

log = Logger()


class Observers:
    """All observers of this daemon's tunnels; none of them can hold up or break a tunnel, or another one."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = list(observers)
        self._failed: list[Observer] = []

    def add(self, observer: Observer) -> None:
        """Tell one more, from now on."""
        self._observers.append(observer)

    def tell(self, event: TunnelEvent) -> None:
        """Tell all of them, in the order in which they came. Never raises."""
        for observer in list(self._observers):
            try:
                observer(event)
            except Exception:
                self._log_once(observer)

    def _log_once(self, observer: Observer) -> None:
        if observer not in self._failed:
            self._failed.append(observer)
            log.failure("observer {observer} failed; its next failures are not logged", observer=observer)
