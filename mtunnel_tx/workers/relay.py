"""Flows that a worker runs: how the daemon gives them away, and how it hears of them.

The daemon keeps its own descriptor of the UNIX socket until the end of the flow was told in order. So whatever
happens to the worker, the input of an importer does not end before the importer was killed.

HTTP may have read bytes that belong to the flow, and more may be under way in the plaintext socket. The daemon sends
all of them back: the worker stops sending, closes its half of the plaintext socket, and receives its own bytes in
order, up to the end of file.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.checks import clean
from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.ports.clock import Timer
from mtunnel_tx.ports.holding import Store
from mtunnel_tx.stream.flow import CANCELLED, Flow, FlowOutcome, Relay
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.stream.runningset import RunningSet
from mtunnel_tx.stream.sides import reset_on_close
from mtunnel_tx.workers.channel import Message, MessageChannel, close_unasked, make_pair, read_count
from mtunnel_tx.workers.parking import RUNNING, StoredFlow, begin_stored, read_parked
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


class KeptFlow:
    """What another daemon needs to go on with a flow; it lies in a store, if there is one.

    Args: owner: as in FlowTerms. told: the ends that the worker has told, each with its reason.
    """

    def __init__(self, store: Store | None, name: str, owner: tuple[int, str] | None, told: Sequence[Any] = ()) -> None:
        self._store = store if owner is not None else None
        self._name = name
        self._owner = owner
        self.told: list[Any] = list(told)

    def put(self, *sockets: socket.socket) -> None:
        """Keep the flow's channel, and its UNIX socket as long as that is open."""
        if self._store is not None:
            assert self._owner is not None, "what is put there has an owner"
            value = {"vmid": self._owner[0], "suffix": self._owner[1], "told": self.told}
            self._store.put(self._name, value, sockets)

    def tell(self, event: str, reason: str | None) -> None:
        """The worker has told this, and nothing was done about it yet."""
        self.told.append([event, reason])
        self.put()

    def drop(self) -> None:
        """The flow is over."""
        if self._store is not None:
            self._store.drop(self._name)
            self._store = None


class ToldFlow:
    """One flow that a worker runs: what the worker has told of it, and what of that the flow was told.

    Args: peer: None: an earlier daemon has granted it. disobeyed: called when the worker does not end the flow although
    it was told to.
    """

    def __init__(
        self, reactor: Reactor, flow: Flow, peer: PeerConnection | None, kept: KeptFlow, disobeyed: Callable[[], None]
    ) -> None:
        self.bytes_in = self.bytes_taken = self.bytes_out = self.kept_bytes = 0
        self._reactor = reactor
        self._flow = flow
        self._kept = kept
        self._disobeyed = disobeyed
        self._timer: Timer | None = None
        self._reason: str | None = WORKER_ENDED
        self._untold: dict[str, Callable[[], None]] = {
            "local": lambda: flow.local_over(self._reason),
            "peer": flow.peer_over,
            "closed": lambda: flow.carrier_closed(peer),
        }
        self._channel: MessageChannel | None = None
        flow.local_closed = self._local_closed

    def go_on(self, channel: MessageChannel, heard: Sequence[Message], *, is_open: bool) -> None:
        """Hear of a flow that an earlier daemon has granted, first what that one has heard."""
        self._channel = channel
        channel.received, channel.closed = self._hear, self._complete
        for event, reason in self._kept.told:
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

    def _insist(self) -> None:
        if "local" in self._untold:
            self._disobeyed()

    def _hear(self, message: Message, files: list[Any]) -> None:
        close_unasked(files)
        self.bytes_in, self.bytes_out = read_count(message, "in"), read_count(message, "out")
        event = message.get("over")
        if isinstance(event, str) and event in self._untold:
            reason = _read_reason(message) if event == "local" else None
            self._kept.tell(event, reason)
            self._tell(event, reason)

    def _tell(self, event: str, reason: str | None) -> None:
        if event == "local":
            self._reason = reason
        self._untold.pop(event)()

    def _complete(self) -> None:
        """The worker will tell nothing more: report the ends that it has not told."""
        self._stop_timer()
        while self._untold:
            self._untold.pop(next(iter(self._untold)))()
        self._kept.drop()

    def _local_closed(self) -> None:
        """QEMU sees the end only when nobody has the socket any more."""
        if self._untold and self._channel is not None and self._channel.sock.fileno() >= 0:
            self._kept.put(self._channel.sock)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


class RemoteFlow(ToldFlow):
    """One that this daemon grants.

    Args: parked: called when the flow has lost its connection, and the worker has given it back. value: what a flow
    goes on with that was parked before.
    """

    def __init__(
        self, reactor: Reactor, flow: Flow, peer: PeerConnection, kept: KeptFlow, *, disobeyed: Callable[[], None],
        parked: Callable[[StoredFlow], None], over: Callable[[], None], value: StoredFlow | None = None,
    ) -> None:  # fmt: skip
        super().__init__(reactor, flow, peer, kept, disobeyed)
        if value is not None:
            self.bytes_in, self.bytes_out = value.bytes_in, value.bytes_out
        self._parked = parked
        self._over = over
        self._value = value
        self._is_confirmed = False
        self._peer = peer
        self._granted = False
        if flow.is_local_told:
            del self._untold["local"]
        ours, self._theirs = make_pair()
        try:
            self._back = peer.sock.dup()
        except OSError:
            ours.close()
            self._theirs.close()
            raise
        self._channel: MessageChannel = MessageChannel(reactor, ours, self._hear, self._complete)
        kept.put(ours, flow.local)

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
            self._say_terms()

    def _say_terms(self) -> None:
        if self._value is None:
            self._channel.send(write_terms(self._flow.terms))
        else:
            self._channel.send({**write_terms(self._flow.terms), "value": self._value.numbers}, [self._value.file])
        self._flow.carried()
        SendBack(self._back, self._reactor, self._peer.leftover)

    def abort(self) -> None:
        if self._granted:
            super().abort()
        else:
            self._stop_timer()
            self._reason = CANCELLED
            self._channel.close()

    def park(self) -> None:
        """Another connection takes the place of this one."""
        if self._granted:
            self._channel.send({"park": SUPERSEDED})
        else:
            self._stop_timer()
            self._channel.close()

    def _hear(self, message: Message, files: list[Any]) -> None:
        if message.get("over") == "parked" and self._flow.terms.window_bytes is not None:
            self._give_back(read_parked(message, files, self._flow.terms.window_bytes))
        elif message.get("over") == RUNNING:
            close_unasked(files)
            self._confirm()
        else:
            super()._hear(message, files)

    def _give_back(self, parked: StoredFlow) -> None:
        """The worker has lost the connection, and does not run the flow any more."""
        if parked is not self._value:
            self._confirm()
        self._untold.clear()
        self._stop_timer()
        self._parked(parked)

    def _confirm(self) -> None:
        """The worker runs the flow: what it began with is not true any more."""
        self._is_confirmed = True
        if self._value is not None:
            self._value.file.close()
            self._value = None

    def _give_back_unused(self) -> None:
        """The connection, or the worker, was gone before the flow ran there: it is as it was before."""
        value = self._value = self._value or begin_stored()
        self._give_back(value)

    def _complete(self) -> None:
        self._theirs.close()
        if not self._granted:
            self._back.close()
        if self._untold and self._flow.terms.window_bytes is not None and not self._is_confirmed:
            self._give_back_unused()
        is_over = bool(self._untold)
        super()._complete()
        if is_over or self._flow.done.called:
            self._over()


def _read_reason(message: Message) -> str | None:
    reason = message.get("reason")
    return None if reason is None else clean(str(reason)[:LONGEST_REASON])


class WorkerRelay:
    """Runs flows in workers (flow.Relay); flows whose TLS is in this process go to `here`.

    Args: disobeyed: called with the inode of a plaintext socket whose worker does not end a flow. carried: called with
    the inode and the flow when a worker gets a flow. `store`: where flows are kept for the next daemon, if anywhere.
    """

    def __init__(
        self, reactor: Reactor, here: Relay, disobeyed: Callable[[int], None], carried: Callable[[int, Flow], None]
    ) -> None:
        self._reactor = reactor
        self._here = here
        self._disobeyed = disobeyed
        self._carried = carried
        self._running: RunningSet[ToldFlow | StoredFlow] = RunningSet()
        self.store: Store | None = None
        self._waiting: dict[Flow, PeerConnection] = {}

    def attach(self, flow: Flow, peer: PeerConnection) -> None:
        if peer.connection is not None:
            self._here.attach(flow, peer)
            return
        if flow.done.called:
            self._refuse(flow, peer)
            return
        job = self._running.find(flow)
        if isinstance(job, RemoteFlow):
            self._refuse(flow, self._waiting.pop(flow, None))
            self._wait(flow, peer)
            job.park()
            return
        inode = inode_of(peer.sock)
        self._carried(inode, flow)
        assert not isinstance(job, ToldFlow), "an earlier daemon has granted plain flows only"
        kept = KeptFlow(self.store, f"flow/{secrets.token_hex(8)}", flow.terms.owner)
        remote = RemoteFlow(
            self._reactor, flow, peer, kept, value=job,
            disobeyed=lambda: self._disobeyed(inode),
            parked=lambda parked: self._park(flow, peer, parked),
            over=lambda: self._refuse(flow, self._waiting.pop(flow, None)),
        )  # fmt: skip
        flow.traffic = remote
        self._running.add(flow, remote) if job is None else self._running.replace(flow, remote)
        if flow.aborted:
            remote.abort()
        else:
            remote.grant()

    def _wait(self, flow: Flow, peer: PeerConnection) -> None:
        """This connection goes on with the flow when its worker has given it back, and ends with the flow."""
        if flow not in self._waiting:
            flow.done.addBoth(self._forget_waiting, flow)
        self._waiting[flow] = peer

    def _forget_waiting(self, outcome: FlowOutcome, flow: Flow) -> FlowOutcome:
        self._refuse(flow, self._waiting.pop(flow, None))
        return outcome

    def _park(self, flow: Flow, peer: PeerConnection, parked: StoredFlow) -> None:
        """A worker has given a flow back; the connection that waits for it, if there is one, goes on with it."""
        self._running.replace(flow, parked)
        flow.traffic = parked
        waiting = self._waiting.pop(flow, None)
        if waiting is None:
            flow.parked(parked.reason)
        flow.carrier_closed(peer)
        if flow.aborted:
            self._refuse(flow, waiting)
            self._end(flow, parked)
        elif waiting is not None:
            self.attach(flow, waiting)

    def _refuse(self, flow: Flow, peer: PeerConnection | None) -> None:
        """Nobody is there who could use this connection."""
        if peer is not None:
            reset_on_close(peer.sock)
            flow.carrier_closed(peer)

    def _end(self, flow: Flow, parked: StoredFlow) -> None:
        parked.file.close()
        if not flow.is_local_told:
            flow.local_over(flow.abort_reason or CANCELLED)
        flow.peer_over()

    def go_on(
        self, flow: Flow, kept: KeptFlow, channel: MessageChannel, heard: Sequence[Message], *, is_open: bool
    ) -> None:
        """Run a flow that an earlier daemon has granted. Args: heard: what its worker has said to us already."""
        flow.go_on()
        told = ToldFlow(self._reactor, flow, None, kept, channel.close)
        flow.traffic = told
        self._running.add(flow, told)
        told.go_on(channel, heard, is_open=is_open)

    def cancel(self, flow: Flow) -> None:
        job = self._running.find(flow)
        if isinstance(job, StoredFlow):
            self._end(flow, job)
        elif job is not None:
            job.abort()
        else:
            self._here.cancel(flow)

    async def leave(self) -> None:
        """End only what runs in this process."""
        await self._here.stop()

    async def stop(self) -> None:
        await self._running.stop()
        await self._here.stop()


def inode_of(sock: socket.socket) -> int:
    """The number that a socket has in common with its duplicates."""
    return os.fstat(sock.fileno()).st_ino
