"""The status page of this daemon, made of its parts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mtunnel_tx.config import Settings
from mtunnel_tx.daemon.compose import Composition
from mtunnel_tx.daemon.control import Control
from mtunnel_tx.errors import TunnelError, WrongState
from mtunnel_tx.http.gate import Gate
from mtunnel_tx.local import make_history
from mtunnel_tx.page.facts import Looker, Sources
from mtunnel_tx.page.feed import Feed
from mtunnel_tx.page.rates import EVERY_S, Rates
from mtunnel_tx.page.resource import PATH, PageActions, PageParts, PageResource
from mtunnel_tx.page.sessions import Sessions
from mtunnel_tx.ports.clock import Threads
from mtunnel_tx.tunnel.ledger import fold

log = Logger()


class StatusPage:
    """Sessions, updates and rates behind the page. `resource`: what serves it, once `open` was called."""

    def __init__(self, settings: Settings, reactor: Any, threads: Threads, composition: Composition) -> None:
        page = settings.page
        self.resource: PageResource | None = None
        self._settings = settings
        self._reactor = reactor
        self._threads = threads
        self._composition = composition
        self._rates = Rates()
        self._sampling = LoopingCall(self._sample)
        self._sampling.clock = reactor
        access = composition.parts.access
        self._sessions = Sessions(access, reactor, node=settings.node, most=page.sessions, age_s=page.session_s)
        self._feed: Feed | None = None

    def pages(self) -> int:
        """How many are kept up to date."""
        return len(self._feed) if self._feed is not None else 0

    def open(self, control: Control, gate: Gate) -> PageResource | None:
        """Returns: what serves the page; None: the configuration wants none."""
        page = self._settings.page
        if page.reach == "nowhere":
            return None
        history = make_history(self._settings)
        sources = Sources(
            look=control.look, find_history=lambda limit: history.find(limit=limit), find_owner=self._find_owner
        )
        looker = Looker(sources, self._rates, self._reactor, time.time, self._threads)
        self._feed = Feed(
            looker, self._sessions.visitor, self._reactor, self._threads, most=page.streams, slow_s=page.slow_s
        )
        self.resource = PageResource(
            PageParts(
                node=self._settings.node,
                reach=page.reach,
                age_s=page.session_s,
                clock=self._reactor,
                threads=self._threads,
                gate=gate,
                sessions=self._sessions,
                looker=looker,
                feed=self._feed,
                actions=PageActions(settle=control.settle, drain=control.drain),
                refused=self._composition.parts.counting.refused,
            )
        )
        self._sampling.start(EVERY_S + 0.1, now=False)
        return self.resource

    def stop(self) -> None:
        """End what was opened."""
        if self._sampling.running:
            self._sampling.stop()
        if self.resource is not None:
            self.resource.stop()

    def link(self, addresses: Sequence[str], host: str) -> str:
        """An address that logs in once. Raises: WrongState: there is no page, or no port."""
        ports = [address.rpartition(":") for address in addresses if ":" in address and "/" not in address]
        if self.resource is None or not ports:
            raise WrongState("this daemon serves no page: see page.reach" if ports else "this daemon has no port")
        found, _, port = ports[0]
        name = host or (found if found not in ("::", "0.0.0.0") else "127.0.0.1")  # noqa: S104 - compared only
        where = f"[{name}]" if ":" in name else name
        return f"https://{quote(where, safe='[]:')}:{port}{PATH}enter?key={self._sessions.make_link()}"

    def _sample(self) -> None:
        self._rates.see(self._composition.moves.coming(), self._reactor.seconds())

    def _find_owner(self, vmid: int) -> str:
        """The token that a held VM came with."""
        try:
            return fold(vmid, self._composition.journal.read(vmid) or []).token
        except TunnelError as error:
            log.debug("nobody knows who sent VM {vmid}: {reason}", vmid=vmid, reason=error.text)
            return ""
