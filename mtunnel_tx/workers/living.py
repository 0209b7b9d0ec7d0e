"""Flows of an earlier daemon's that workers have gone on with (ports.LivingFlow)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.ports.holding import FlowPositions, Kept, Store
from mtunnel_tx.ports.streams import Route
from mtunnel_tx.stream.flow import Flow, FlowTerms
from mtunnel_tx.workers.channel import Message, MessageChannel, close_unasked, read_count
from mtunnel_tx.workers.relay import KeptFlow, WorkerRelay

log = Logger()
PREFIX = "flow/"


class FoundFlow:
    """One of them.

    Args: value: as KeptFlow has put it. channel: to its worker. local: its UNIX socket, if it is open.
    """

    def __init__(
        self, reactor: Reactor, relay: WorkerRelay, name: str, value: Any, channel: socket.socket,
        local: socket.socket | None,
    ) -> None:  # fmt: skip
        self.vmid: int = value["vmid"]
        self.suffix: str = value["suffix"]
        self._relay = relay
        self._kept = KeptFlow(relay.store, name, (self.vmid, self.suffix), value["told"])
        self._local = local or socket.socket(socket.AF_UNIX)
        self._heard: list[Message] = []
        self._is_open = True
        self._is_adopted = False
        self._asked: Deferred[FlowPositions] | None = None
        self._channel = MessageChannel(reactor, channel, self._hear, self._close)

    async def positions(self) -> FlowPositions:
        """See ports.LivingFlow."""
        if not self._is_open:
            raise BackendFailed("its flow has ended")
        self._asked = Deferred()
        self._channel.send({"ask": True})
        return await self._asked

    def _hear(self, message: Message, sockets: list[socket.socket]) -> None:
        close_unasked(sockets)
        if "asked" not in message:
            self._heard.append(message)
        elif self._asked is not None and not self._asked.called:
            counts = {key: read_count(message, key) for key in ("taken", "out", "queued")}
            self._asked.callback(
                FlowPositions(taken_bytes=counts["taken"], sent_bytes=counts["out"], queued_bytes=counts["queued"])
            )

    def _close(self) -> None:
        self._is_open = False
        if self._asked is not None and not self._asked.called:
            self._asked.errback(BackendFailed("its flow has ended"))

    def adopt(self, route: Route) -> None:
        """See ports.LivingFlow."""

        async def closed(orderly: bool) -> None:
            await route.closed(orderly=orderly)

        terms = FlowTerms(urgent=route.kind.urgent, closed=closed, owner=(self.vmid, self.suffix))
        flow = Flow(self._relay, self._local, terms)
        route.opened(flow)
        self._is_adopted = True
        self._relay.go_on(flow, self._kept, self._channel, self._heard, is_open=self._is_open)

    def abandon(self) -> None:
        """See ports.LivingFlow."""
        if not self._is_adopted:
            self._channel.close()
            self._local.close()
            self._kept.drop()


async def find_flows(reactor: Reactor, relay: WorkerRelay, store: Store, kept: Kept) -> Sequence[FoundFlow]:
    """All that are there; what cannot be understood is dropped, and ends by that."""
    found = []
    for name in kept.names:
        if name.startswith(PREFIX):
            try:
                value, sockets = await store.get(name)
                found.append(FoundFlow(reactor, relay, name, value, sockets[0], sockets[1] if sockets[1:] else None))
            except (BackendFailed, LookupError, TypeError) as error:
                log.warn("a flow of an earlier daemon ends: {reason}", reason=str(error))
                store.drop(name)
    return found
