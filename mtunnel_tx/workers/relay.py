"""Runs flows in workers (flow.Relay).

The daemon keeps its own descriptor of the UNIX socket until the end of the flow was told in order. So whatever
happens to the worker, the input of an importer does not end before the importer was killed.

HTTP may have read bytes that belong to the flow, and more may be under way in the plaintext socket. The daemon sends
all of them back: the worker stops sending, closes its half of the plaintext socket, and receives its own bytes in
order, up to the end of file.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from twisted.logger import Logger

from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.ports.holding import Store
from mtunnel_tx.stream.flow import CANCELLED, Flow, FlowOutcome, Relay
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.stream.runningset import RunningSet
from mtunnel_tx.stream.sides import reset_on_close
from mtunnel_tx.workers.carried import Hearer, RemoteFlow, ToldFlow
from mtunnel_tx.workers.channel import Message, MessageChannel
from mtunnel_tx.workers.keeping import KeptFlow
from mtunnel_tx.workers.parking import StoredFlow

log = Logger()


@dataclass(frozen=True, slots=True)
class ParkedJob:
    """A flow that no worker runs."""

    kept: KeptFlow
    stored: StoredFlow


class WorkerRelay:
    """See the module; flows whose TLS is in this process go to `here`.

    Args: disobeyed: called with the process id of a worker that does not end a flow. carried: called with the inode of
    a plaintext socket and the flow when a worker gets a flow; returns the worker's process id, 0: none has it any more.
    `store`: where flows are kept for the next daemon, if anywhere.
    """

    def __init__(
        self, reactor: Reactor, here: Relay, disobeyed: Callable[[int], None], carried: Callable[[int, Flow], int]
    ) -> None:
        self._reactor = reactor
        self._here = here
        self._disobeyed = disobeyed
        self._carried = carried
        self._running: RunningSet[ToldFlow | ParkedJob] = RunningSet()
        self.store: Store | None = None
        self._waiting: dict[Flow, PeerConnection] = {}
        self._expected: dict[Flow, KeptFlow] = {}

    def expect(self, flow: Flow) -> None:
        """Keep a resumable flow from before its peer hears of it: whoever knows its name may come back to it."""
        job = self._running.find(flow)
        if isinstance(job, ParkedJob):
            job.kept.park(job.stored, flow.local)
        elif flow.terms.window_bytes is not None:
            kept = self._expected[flow] = KeptFlow(self.store, flow.terms.owner)
            kept.expect(flow.local)
            flow.done.addBoth(self._forget_expected, flow)

    def _forget_expected(self, outcome: FlowOutcome, flow: Flow) -> FlowOutcome:
        kept = self._expected.pop(flow, None)
        if kept is not None:
            kept.drop()
        return outcome

    def attach(self, flow: Flow, peer: PeerConnection) -> None:
        if peer.connection is not None:
            self._here.attach(flow, peer)
            return
        if flow.done.called:
            self._refuse(flow, peer)
            return
        job = self._running.find(flow)
        if isinstance(job, ToldFlow):
            self._refuse(flow, self._waiting.pop(flow, None))
            self._wait(flow, peer)
            job.park()
        else:
            self._grant(flow, peer, job)

    def _grant(self, flow: Flow, peer: PeerConnection, job: ParkedJob | None) -> None:
        """Let a worker run it. Raises: OSError: no descriptor is left; then it is as it was."""
        kept = job.kept if job is not None else self._kept_for(flow)
        kept.worker = self._carried(inode_of(peer.sock), flow)
        hearer = self._hearer(flow, peer, kept)
        remote = RemoteFlow(self._reactor, flow, peer, kept, hearer, job.stored if job is not None else None)
        self._expected.pop(flow, None)
        flow.traffic = remote
        self._running.add(flow, remote) if job is None else self._running.replace(flow, remote)
        if flow.aborted:
            remote.abort()
        else:
            remote.grant()

    def _kept_for(self, flow: Flow) -> KeptFlow:
        return self._expected.get(flow) or KeptFlow(self.store, flow.terms.owner)

    def _hearer(self, flow: Flow, peer: PeerConnection | None, kept: KeptFlow) -> Hearer:
        worker = kept.worker
        return Hearer(
            disobeyed=lambda: self._disobeyed(worker),
            parked=lambda stored: self._park(flow, peer, ParkedJob(kept, stored)),
            over=lambda: self._refuse(flow, self._waiting.pop(flow, None)),
        )

    def _wait(self, flow: Flow, peer: PeerConnection) -> None:
        """This connection goes on with the flow when its worker has given it back, and ends with the flow."""
        if flow not in self._waiting:
            flow.done.addBoth(self._forget_waiting, flow)
        self._waiting[flow] = peer

    def _forget_waiting(self, outcome: FlowOutcome, flow: Flow) -> FlowOutcome:
        self._refuse(flow, self._waiting.pop(flow, None))
        return outcome

    def _park(self, flow: Flow, peer: PeerConnection | None, job: ParkedJob) -> None:
        """A worker has given a flow back; the connection that waits for it, if there is one, goes on with it."""
        self._running.replace(flow, job)
        flow.traffic = job.stored
        waiting = self._waiting.pop(flow, None)
        if flow.aborted:
            self._refuse(flow, waiting)
            self._end(flow, job)
        elif waiting is None or not self._go_on_with(flow, waiting, job):
            flow.parked(job.stored.reason)
        flow.carrier_closed(peer)

    def _go_on_with(self, flow: Flow, peer: PeerConnection, job: ParkedJob) -> bool:
        try:
            self._grant(flow, peer, job)
        except (OSError, RuntimeError) as error:
            log.error("a connection cannot carry its flow: {reason}", reason=str(error))
            self._refuse(flow, peer)
            return False
        return True

    def _refuse(self, flow: Flow, peer: PeerConnection | None) -> None:
        """Nobody is there who could use this connection."""
        if peer is not None:
            reset_on_close(peer.sock)
            flow.carrier_closed(peer)

    def _end(self, flow: Flow, job: ParkedJob) -> None:
        job.stored.file.close()
        job.kept.drop()
        if not flow.is_local_told:
            flow.local_over(flow.abort_reason or CANCELLED)
        flow.peer_over()

    # Flows of an earlier daemon's

    def go_on(
        self, flow: Flow, kept: KeptFlow, channel: MessageChannel, heard: Sequence[Message], *, is_open: bool,
        value: StoredFlow | None = None, runs: bool = True,
    ) -> None:  # fmt: skip
        """Go on with one that a worker has. Args: heard: what it has said already. value, runs: as in ToldFlow."""
        flow.go_on(is_carried=True)
        hearer = self._hearer(flow, None, kept)
        if not kept.worker:
            hearer = replace(hearer, disobeyed=channel.close)
        told = ToldFlow(self._reactor, flow, None, kept, hearer, value, runs=runs)
        flow.traffic = told
        self._running.add(flow, told)
        told.go_on(channel, heard, is_open=is_open)

    def go_on_parked(self, flow: Flow, kept: KeptFlow, stored: StoredFlow) -> None:
        """Go on with one that no worker has."""
        flow.go_on(is_carried=False)
        flow.traffic = stored
        self._running.add(flow, ParkedJob(kept, stored))
        for event, reason in kept.told:
            if event == "local":
                flow.local_over(reason)
        flow.parked(stored.reason)

    def adopted(self, worker: int) -> list[ToldFlow]:
        """Those that this worker, by its process id, has from an earlier daemon."""
        told = [job for job in self._running.jobs() if isinstance(job, ToldFlow)]
        return [job for job in told if job.is_adopted and job.kept.worker == worker]

    def cancel(self, flow: Flow) -> None:
        job = self._running.find(flow)
        if isinstance(job, ParkedJob):
            self._end(flow, job)
        elif job is not None:
            job.abort()
        else:
            self._here.cancel(flow)

    async def leave(self) -> None:
        """End only what runs in this process; what workers say from now on is for the next daemon."""
        for job in self._running.jobs():
            if isinstance(job, ToldFlow):
                job.leave()
        await self._here.stop()

    async def stop(self) -> None:
        await self._running.stop()
        await self._here.stop()


def inode_of(sock: socket.socket) -> int:
    """The number that a socket has in common with its duplicates."""
    return os.fstat(sock.fileno()).st_ino
