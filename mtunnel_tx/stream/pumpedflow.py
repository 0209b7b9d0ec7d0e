"""What a pump thread has for each flow that it runs."""

from __future__ import annotations

import socket

from mtunnel_tx.stream.carrier import Carrier
from mtunnel_tx.stream.flow import Flow
from mtunnel_tx.stream.gathering import FlowPace
from mtunnel_tx.stream.running import Interest, RunningFlow

NO_NUMBER = -1


class PumpedFlow:
    """A running flow, what the epoll of its thread knows of it, and what the reactor was told.

    carrier, interest: as epoll knows them; None: it knows of none.
    """

    def __init__(self, flow: Flow, running: RunningFlow) -> None:
        self.flow = flow
        self.running = running
        self.carrier: Carrier | None = None
        self.peer_number = NO_NUMBER
        self.make_due()
        self.interest: Interest | None = None
        self.masks: dict[socket.socket, int] = {running.local: 0}
        self.told_local = self.told_peer = False
        self.pace = FlowPace()

    def make_due(self) -> None:
        """Let the next pass serve it, with a look at both sockets."""
        self.peer_event = self.local_event = True
        self.due_s: float | None = 0.0
