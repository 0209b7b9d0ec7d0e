"""Accepted connections on their way to a worker."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet import protocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.python.failure import Failure

from mtunnel_tx.net.admission import Admission, address_of
from mtunnel_tx.net.kinds import Inner
from mtunnel_tx.workers.plaintext import AcceptedClient
from mtunnel_tx.workers.worker import WorkerProcess

log = Logger()


class Workers(Protocol):
    """Those that may take a connection."""

    def find(self) -> WorkerProcess | None:
        """The one that is to take the next connection; None: no worker takes any."""

    def pass_on(self, worker: WorkerProcess, sock: socket.socket, client: AcceptedClient, inner: Inner) -> None:
        """Give a connection to a worker; `sock` is duplicated. Raises: OSError: no descriptor is left."""


class PassingFactory(protocol.Factory):
    """Asks for a place for each connection, and finds a worker that takes it."""

    noisy = False

    def __init__(self, pool: Workers, site: Inner, admission: Admission) -> None:
        self._pool = pool
        self._site = site
        self._admission = admission

    def doStart(self) -> None:
        self._site.doStart()

    def doStop(self) -> None:
        self._site.doStop()

    def buildProtocol(self, addr: IAddress | None) -> protocol.Protocol | None:
        """Returns: None: there is no place, or no worker."""
        worker = self._pool.find()
        if worker is None:
            log.warn("connection from {address} refused: no worker runs", address=address_of(addr))
            return None
        place = self._admission.enter(addr)
        if place is None:
            return None

        def pass_on(transport: Any) -> None:
            client = AcceptedClient(peer=transport.getPeer(), host=transport.getHost(), place=place)
            try:
                self._pool.pass_on(worker, transport.getHandle(), client, self._site.buildProtocol(addr))
            except OSError as error:
                log.warn("connection from {address} refused: {reason}", address=address_of(addr), reason=str(error))
                place.leave()

        return _PassedConnection(pass_on)


class _PassedConnection(protocol.Protocol):
    """An accepted connection that goes to a worker at once."""

    transport: Any

    def __init__(self, pass_on: Callable[[Any], None]) -> None:
        self._pass_on = pass_on

    def connectionMade(self) -> None:
        """Give it away, then close the daemon's descriptor without shutting the connection down."""
        self.transport.pauseProducing()
        self._pass_on(self.transport)
        os.close(self.transport.getHandle().detach())
        self.transport.connectionLost(Failure(ConnectionDone()))
