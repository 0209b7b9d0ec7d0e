"""Live updates: one look a second for all clients, drawn once for all that see the same, and sent where there is room.

A client that is slower than its updates gets the newest state when it has room again: nothing is kept for it but which
state it has. One that takes nothing for a while is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from mtunnel_tx.errors import TunnelError, Unauthenticated
from mtunnel_tx.net.kinds import Reactor, Request
from mtunnel_tx.page.facts import Looker, PageFacts
from mtunnel_tx.page.html import Html
from mtunnel_tx.page.sections import show_sections
from mtunnel_tx.page.visitor import OPERATOR, Visitor
from mtunnel_tx.ports.clock import Clock, Threads

log = Logger()
EVERY_S = 1.0


class TooManyStreams(TunnelError):
    """Others have to close the page first."""

    status = 503


@dataclass(slots=True)
class _Drawing:
    """What one visitor sees; each section with the number of its last change."""

    sections: dict[str, tuple[int, Html]] = field(default_factory=dict)

    def draw(self, sections: Mapping[str, Html]) -> None:
        for name, markup in sections.items():
            number, before = self.sections.get(name, (0, None))
            if markup != before:
                self.sections[name] = number + 1, markup


@implementer(IPushProducer)
class EventStream:
    """One client's updates.

    Args: request: answered already, up to its head. clock: for how long it takes nothing. owner: the visitor's name.
    """

    def __init__(self, request: Request, cookie: str, clock: Clock, owner: str) -> None:
        self.cookie = cookie
        self.owner = owner
        self._request = request
        self._clock = clock
        self._seen: dict[str, int] = {}
        self._drawing: _Drawing | None = None
        self._full_since_s: float | None = None
        request.registerProducer(self, True)

    def offer(self, drawing: _Drawing) -> None:
        """Send what has changed since it was sent last; where there is no room, later."""
        if self._drawing is not drawing:
            self._drawing, self._seen = drawing, {}
        if self._full_since_s is None:
            self._send(drawing)

    def _send(self, drawing: _Drawing) -> None:
        changed = {name: text for name, (number, text) in drawing.sections.items() if self._seen.get(name) != number}
        self._seen = {name: number for name, (number, _) in drawing.sections.items()}
        if changed:
            self._write("sections", json.dumps(changed))

    def _write(self, event: str, data: str) -> None:
        self._request.write(f"event: {event}\ndata: {data}\n\n".encode("ascii"))

    def full_s(self) -> float:
        """For how long it has taken nothing."""
        return 0.0 if self._full_since_s is None else self._clock.seconds() - self._full_since_s

    def end(self) -> None:
        """The session is over: the page is to be loaded again."""
        self._write("over", "{}")
        self._request.unregisterProducer()
        self._request.finish()

    def drop(self) -> None:
        """End it at once, with what it has not taken."""
        self._request.channel.transport.abortConnection()

    def pauseProducing(self) -> None:
        if self._full_since_s is None:
            self._full_since_s = self._clock.seconds()

    def resumeProducing(self) -> None:
        self._full_since_s = None
        if self._drawing is not None:
            self._send(self._drawing)

    def stopProducing(self) -> None:
        """The connection is lost; `Feed.leave` is told by the request."""


class Feed:
    """All streams.

    Args: find_visitor: of a cookie; raises Unauthenticated. most: streams. slow_s: one that took nothing so long goes.
    """

    def __init__(
        self, looker: Looker, find_visitor: Callable[[str], Visitor], clock: Reactor, threads: Threads, *, most: int,
        slow_s: float,
    ) -> None:  # fmt: skip
        self._looker = looker
        self._find_visitor = find_visitor
        self._clock = clock
        self._threads = threads
        self._most = most
        self._slow_s = slow_s
        self._streams: dict[EventStream, None] = {}
        self._drawings: dict[str, _Drawing] = {}
        self._looping = LoopingCall(self._turn)
        self._looping.clock = clock

    def __len__(self) -> int:
        return len(self._streams)

    def check_room(self, owner: str) -> None:
        """A token has a quarter of the places at most, and all of them leave one to the operator.

        Raises: TooManyStreams.
        """
        quarter = max(1, self._most // 4)
        tokens = [stream.owner for stream in self._streams if stream.owner != OPERATOR]
        is_full = owner != OPERATOR and (tokens.count(owner) >= quarter or len(tokens) >= self._most - quarter)
        if len(self._streams) >= self._most or is_full:
            raise TooManyStreams(f"no more than {self._most} pages are live at a time")

    def join(self, stream: EventStream) -> None:
        """Send it what is new from now on; it has seen nothing yet."""
        self._streams[stream] = None
        if not self._looping.running:
            self._looping.start(EVERY_S).addErrback(lambda failure: log.failure("the page's updates ended", failure))

    def leave(self, stream: EventStream) -> None:
        """Its client has gone."""
        self._streams.pop(stream, None)

    def stop(self) -> None:
        """End all."""
        for stream in list(self._streams):
            stream.drop()
        self._streams.clear()
        if self._looping.running:
            self._looping.stop()

    def _turn(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._update())

    async def _update(self) -> None:
        """One second's work; an error costs this second only."""
        if not self._streams:
            self._drawings.clear()
            self._looping.stop()
            return
        try:
            self._drop_slow()
            await self._send(await self._looker.look())
        except TunnelError as error:
            log.warn("the page is not brought up to date: {reason}", reason=error.text)
        except Exception:
            log.failure("unexpected failure while the page was brought up to date")

    def _drop_slow(self) -> None:
        for stream in [stream for stream in self._streams if stream.full_s() >= self._slow_s]:
            self.leave(stream)
            stream.drop()

    async def _send(self, facts: PageFacts) -> None:
        """Draw for each visitor once. Who has logged out, or may no longer log in, gets nothing."""
        drawn: set[str] = set()
        for stream in list(self._streams):
            visitor = self._visitor(stream)
            if visitor is None:
                continue
            drawing = self._drawings.setdefault(visitor.name, _Drawing())
            if visitor.name not in drawn:
                drawn.add(visitor.name)
                drawing.draw(await self._threads.run(show_sections, facts, visitor))
            if stream in self._streams:
                stream.offer(drawing)
        self._drawings = {name: drawing for name, drawing in self._drawings.items() if name in drawn}

    def _visitor(self, stream: EventStream) -> Visitor | None:
        if stream not in self._streams:
            return None
        try:
            return self._find_visitor(stream.cookie)
        except Unauthenticated:
            self.leave(stream)
            stream.end()
            return None
