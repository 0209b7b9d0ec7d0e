"""One flow that a worker runs: how the daemon gives it away, what the worker tells of it, and how it comes back."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.checks import clean
from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.ports.clock import Timer
from mtunnel_tx.stream.flow import CANCELLED, Flow
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.workers.channel import Message, MessageChannel, Nonsense, close_unasked, make_pair, read_count
from mtunnel_tx.workers.keeping import KeptFlow
from mtunnel_tx.workers.parking import KEPT, PARKED, RUNNING, StoredFlow, begin_stored, read_parked
from mtunnel_tx.workers.plaintext import GRANT
from mtunnel_tx.workers.sendback import SendBack
from mtunnel_tx.workers.terms import write_terms

log = Logger()

OBEY_S = 5.0
"""A worker that was told to end a flow and has not done so by then is killed."""
GRANT_AGAIN_S = 0.05
LONGEST_REASON = 1000
SUPERSEDED = "another connection took its place"
WORKER_ENDED = "the process that carried it has ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearer:
    """Who hears of a flow in a worker.

    disobeyed: the worker does not end the flow although it was told to. parked: the flow has lost its connection, and
    the worker has given it back. over: it will not be given back any more.
    """

    disobeyed: Callable[[], None]
    parked: Callable[[StoredFlow], None]
    over: Callable[[], None]


class ToldFlow:
    """See the module; this is one that an earlier daemon may have granted.

    Args: peer: None: an earlier daemon has granted it. value: what the flow goes on with as long as the worker has not
    said that it runs. runs: it has said so.
    """

    def __init__(
        self, reactor: Reactor, flow: Flow, peer: PeerConnection | None, kept: KeptFlow, hearer: Hearer,
        value: StoredFlow | None = None, *, runs: bool = False,
    ) -> None:  # fmt: skip
        self.bytes_in = self.bytes_taken = self.bytes_out = self.kept_bytes = 0
        if value is not None:
            self.bytes_in, self.bytes_out = value.bytes_in, value.bytes_out
        self.kept = kept
        self.is_adopted = peer is None
        self._reactor = reactor
        self._flow = flow
        self._hearer = hearer
        self._value = value
        self._runs = runs
        self._is_given_back = False
        self._timer: Timer | None = None
        self._reason: str | None = WORKER_ENDED
        self._untold: dict[str, Callable[[], None]] = {
            "local": lambda: flow.local_over(self._reason),
            "peer": flow.peer_over,
            "closed": lambda: flow.carrier_closed(peer),
        }
        if flow.is_local_told:
            del self._untold["local"]
        self._channel: MessageChannel | None = None
        flow.local_closed = self._local_closed

    def go_on(self, channel: MessageChannel, heard: Sequence[Message], *, is_open: bool) -> None:
        """Hear of a flow that an earlier daemon has granted, first what that one has heard."""
        self._channel = channel
        channel.received, channel.closed = self._hear, self._complete
        for event, reason in self.kept.told:
            self._tell(event, reason)
        for message in heard:
            self._hear(message, [])
        if not is_open:
            self._complete()

    def abort(self) -> None:
        """Tell the worker to end the flow."""
        self._stop_timer()
        assert self._channel is not None
        self._channel.send({"abort": self._flow.abort_reason or CANCELLED})
        self._timer = self._reactor.callLater(OBEY_S, self._insist)

    def park(self) -> None:
        """Another connection takes the place of this one."""
        assert self._channel is not None
        self._channel.send({"park": SUPERSEDED})

    def leave(self) -> None:
        """Leave it to another daemon."""
        if self._channel is not None:
            self._channel.leave()

    def _insist(self) -> None:
        if "local" in self._untold:
            self._hearer.disobeyed()

    @property
    def is_urgent(self) -> bool:
        """It carries commands."""
        return self._flow.terms.urgent

    @property
    def _is_resumable(self) -> bool:
        return self._flow.terms.window_bytes is not None

    def _hear(self, message: Message, files: list[Any]) -> None:
        event = message.get("over")
        if event == PARKED and self._is_resumable and not self._is_given_back and "peer" in self._untold:
            assert self._flow.terms.window_bytes is not None
            self._give_back(read_parked(message, files, self._flow.terms.window_bytes))
            return
        close_unasked(files)
        if self._is_given_back:
            raise Nonsense("something about a flow that was given back")
        if event == RUNNING:
            self._confirm()
        elif "asked" not in message:
            self._count(message)
        if isinstance(event, str) and event in self._untold:
            reason = read_reason(message) if event == "local" else None
            self.kept.tell(event, reason)
            self._tell(event, reason)

    def _count(self, message: Message) -> None:
        self.bytes_in, self.bytes_out = read_count(message, "in"), read_count(message, "out")
        if self._is_resumable and not self._runs and (self.bytes_in or self.bytes_out):
            self._confirm()

    def _tell(self, event: str, reason: str | None) -> None:
        if event == "local":
            self._reason = reason
        told = self._untold.pop(event, None)
        if told is not None:
            told()

    def _confirm(self) -> None:
        """The worker runs the flow: what it began with is not true any more."""
        self._runs = True
        if self._value is not None:
            self._value.file.close()
            self._value = None
        self._keep()

    def _keep(self) -> None:
        if self._untold and self._channel is not None and self._channel.sock.fileno() >= 0:
            self.kept.carry(self._channel.sock, self._flow.local, self._value, runs=self._runs)

    def _give_back(self, stored: StoredFlow) -> None:
        """The worker has lost the connection, and does not run the flow any more; it forgets it when we have it."""
        if self._value is not None and stored.file is not self._value.file:
            self._value.file.close()
        self._value, self._is_given_back = None, True
        self._untold.clear()
        self._stop_timer()
        channel = self._channel
        keeping = self.kept.park(stored, self._flow.local)
        keeping.addCallback(lambda is_safe: dismiss(channel) if is_safe and channel is not None else None)
        self._hearer.parked(stored)

    def _give_back_unused(self) -> None:
        """The connection, or the worker, was gone before the flow ran there: it is as it was before."""
        now_s, value = self._reactor.seconds(), self._value
        try:
            stored = begin_stored(now_s) if value is None else replace(value, since_s=now_s)
            self._give_back(stored)
        except OSError as error:
            log.error("a flow cannot be parked: {reason}", reason=str(error))

    def _complete(self) -> None:
        """The worker will tell nothing more: report the ends that it has not told."""
        self._stop_timer()
        if self._untold and self._is_resumable and not self._runs:
            self._give_back_unused()
        if self._is_given_back:
            return
        if self._value is not None:
            self._value.file.close()
        while self._untold:
            self._untold.pop(next(iter(self._untold)))()
        self.kept.drop()
        self._hearer.over()

    def _local_closed(self) -> None:
        """QEMU sees the end only when nobody has the socket any more."""
        self._keep()

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


class RemoteFlow(ToldFlow):
    """One that this daemon grants. Raises: OSError: no descriptor is left."""

    def __init__(
        self, reactor: Reactor, flow: Flow, peer: PeerConnection, kept: KeptFlow, hearer: Hearer,
        value: StoredFlow | None = None,
    ) -> None:  # fmt: skip
        super().__init__(reactor, flow, peer, kept, hearer, value)
        self._peer = peer
        self._granted = False
        ours, self._theirs = make_pair()
        try:
            self._back = peer.sock.dup()
        except OSError:
            ours.close()
            self._theirs.close()
            raise
        self._channel: MessageChannel = MessageChannel(reactor, ours, self._hear, self._complete)
        self._keep()

    def grant(self) -> None:
        """Give the flow to the worker, behind everything that HTTP has sent."""
        # A UNIX side that is over is closed already; the worker does not use it.
        local = self._theirs if self._flow.is_local_told else self._flow.local
        try:
            socket.send_fds(self._peer.sock, [GRANT], [local.fileno(), self._theirs.fileno()])
        except BlockingIOError:
            self._timer = self._reactor.callLater(GRANT_AGAIN_S, self.grant)
        except OSError:
            self._channel.close()
        else:
            self._granted = True
            self._theirs.close()
            SendBack(self._back, self._reactor, self._peer.leftover, self._say_terms)

    def _say_terms(self, is_whole: bool) -> None:
        """The worker begins only with this: no byte of the connection is left here then."""
        if not self._untold:
            return
        if not is_whole:
            self._channel.close()
            return
        value = self._value
        more, files = ({}, []) if value is None else ({"value": value.numbers}, [value.file])
        try:
            self._channel.send({**write_terms(self._flow.terms), **more}, files)
        except OSError as error:
            log.error("a worker cannot be told of its flow: {reason}", reason=str(error))
            self._channel.close()
        else:
            self._flow.carried()

    def abort(self) -> None:
        if self._granted:
            super().abort()
        else:
            self._stop_timer()
            self._reason, self._runs = self._flow.abort_reason or CANCELLED, True
            self._channel.close()

    def park(self) -> None:
        if self._granted:
            super().park()
        else:
            self._stop_timer()
            self._channel.close()

    def _complete(self) -> None:
        self._theirs.close()
        if not self._granted:
            self._back.close()
        super()._complete()


def dismiss(channel: MessageChannel) -> None:
    """Tell a worker that what it has given back is kept."""
    channel.send({KEPT: True})
    channel.finish()


def read_reason(message: Message) -> str | None:
    """Why the UNIX side of a flow has ended, short and printable, whatever was sent."""
    reason = message.get("reason")
    return None if reason is None else clean(str(reason)[:LONGEST_REASON])
