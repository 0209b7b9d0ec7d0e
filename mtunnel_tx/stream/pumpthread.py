"""A pump thread: one epoll, many flows, each of which it alone touches from its start to its end (see `pump.py`)."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.stream.carrier import ThreadTools
from mtunnel_tx.stream.flow import TakenAway
from mtunnel_tx.stream.gathering import Gathering
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.stream.pumpedflow import NO_NUMBER, PumpedFlow

log = Logger()

LONGEST_WAIT_S = 60.0


class PumpThread:
    """One thread, one epoll, many flows. `load`: how many. Other threads may only call what is for the reactor."""

    def __init__(self, name: str, reactor: Reactor, tools: ThreadTools, rest: Callable[[float], None]) -> None:
        self.tools = tools
        self.load = 0
        self.ended: Deferred[None] = Deferred()
        self._reactor = reactor
        self._now = tools.now
        self._rest = rest
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._orders: deque[Callable[[], None]] = deque()
        self._jobs: dict[int, PumpedFlow] = {}
        self._by_number: dict[int, PumpedFlow] = {}
        self._due_s = 0.0
        self._gathering = Gathering()
        self._stopping = False
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self.thread.start()
        except RuntimeError:
            os.close(self._bell)
            raise

    # For the reactor

    def begin(self, job: PumpedFlow) -> None:
        """Run a flow, which may have no carrier yet."""
        self._order(lambda: self._begin(job))

    def attach(self, job: PumpedFlow, peer: PeerConnection) -> None:
        self._order(lambda: self._attach(job, peer))

    def detach(self, job: PumpedFlow, reason: str) -> None:
        self._order(lambda: job.running.detach(reason), job)

    def take_away(self, job: PumpedFlow, told: TakenAway) -> None:
        self._order(lambda: self._take_away(job, told))

    def cancel(self, job: PumpedFlow) -> None:
        self._order(lambda: job.running.cancel(job.flow.abort_reason), job)

    def stop(self) -> None:
        """End when the last flow has ended."""
        self._order(self._stop)

    def close(self) -> None:
        """To be called after `ended`: until then the eventfd may still be written to."""
        self.thread.join()
        self._epoll.close()
        os.close(self._bell)

    def _order(self, deed: Callable[[], None], job: PumpedFlow | None = None) -> None:
        """Let the thread do this, then serve the flow."""
        self._orders.append(deed if job is None else lambda: self._do_for(job, deed))
        os.eventfd_write(self._bell, 1)

    # In the thread

    def _run(self) -> None:
        try:
            while not self._stopping or self._jobs:
                self._pass()
        finally:
            self._reactor.callFromThread(self.ended.callback, None)

    def _pass(self) -> None:
        """Wait until something is to be done, then serve each flow that is ready or due."""
        ready = [self._note(number) for number, _ in self._epoll.poll(self._wait_s())]
        while self._orders:
            self._orders.popleft()()
        served = {id(job): job for job in ready if job is not None}
        served.update(self._take_due())
        for job in served.values():
            self._serve(job)
        if served:
            rest_s = self._gathering.rest_s([job.pace for job in served.values()], self._now())
            if rest_s:
                self._rest(rest_s)

    def _note(self, number: int) -> PumpedFlow | None:
        """Note which socket of a flow is ready. Returns: None: it was the eventfd."""
        job = self._by_number.get(number)
        if job is None:
            os.eventfd_read(self._bell)
        elif number == job.peer_number:
            job.peer_event = True
        else:
            job.local_event = True
        return job

    def _wait_s(self) -> float:
        return min(LONGEST_WAIT_S, max(0.0, self._due_s - self._now()))

    def _take_due(self) -> dict[int, PumpedFlow]:
        """The flows whose time has come; looked for only when the earliest known time has."""
        now_s = self._now()
        if now_s < self._due_s:
            return {}
        self._due_s = now_s + LONGEST_WAIT_S
        due = {}
        for key, job in self._jobs.items():
            if job.due_s is not None and job.due_s <= now_s:
                due[key] = job
                if job.due_s:  # not where it only goes on: it knows with what
                    job.peer_event = job.local_event = True
            elif job.due_s is not None:
                self._due_s = min(self._due_s, job.due_s)
        return due

    def _begin(self, job: PumpedFlow) -> None:
        self._jobs[id(job)] = job
        self._due_s = 0.0

    def _attach(self, job: PumpedFlow, peer: PeerConnection) -> None:
        is_wanted = job.running.attach(peer)
        if is_wanted:
            self._change_carrier(job)
            self._reactor.callFromThread(job.flow.carried)
        else:
            self._reactor.callFromThread(job.flow.carrier_closed, peer)
        self._make_due(job)

    def _take_away(self, job: PumpedFlow, told: TakenAway) -> None:
        value = job.running.take_away()
        if value is not None:
            self._jobs.pop(id(job), None)
        self._reactor.callFromThread(told, value)

    def _do_for(self, job: PumpedFlow, deed: Callable[[], None]) -> None:
        deed()
        self._make_due(job)

    def _make_due(self, job: PumpedFlow) -> None:
        job.make_due()
        self._due_s = 0.0

    def _stop(self) -> None:
        self._stopping = True

    def _serve(self, job: PumpedFlow) -> None:
        running = job.running
        try:
            running.service(peer_event=job.peer_event, local_event=job.local_event)
            if running.carrier is not job.carrier:
                self._change_carrier(job)
            self._watch(job)
        except Exception:
            log.failure("unexpected failure in a flow")
            self._abandon(job)
        job.peer_event = job.local_event = False
        job.due_s = running.next_call_s()
        if job.due_s is not None:
            self._due_s = min(self._due_s, job.due_s)
        if running.is_ending:
            self._tell(job)
        job.pace.note(running.bytes_in, running.bytes_out, self._now())

    def _abandon(self, job: PumpedFlow) -> None:
        """A bug must not end the other flows of this thread."""
        job.running.destroy("internal error")
        for sock, mask in job.masks.items():
            if mask:
                self._by_number.pop(sock.fileno(), None)
                with contextlib.suppress(OSError, ValueError):
                    self._epoll.unregister(sock)
        job.masks = dict.fromkeys(job.masks, 0)
        self._change_carrier(job)

    def _change_carrier(self, job: PumpedFlow) -> None:
        """The flow has another carrier, or none: epoll forgets the former one, and then it may be closed."""
        former, carrier = job.carrier, job.running.carrier
        job.carrier, job.interest = carrier, None
        if former is not None:
            self._set_mask(job, former.sock, False, False)
            del job.masks[former.sock]
            self._reactor.callFromThread(job.flow.carrier_closed, former.peer)
        if carrier is not None:
            job.masks[carrier.sock] = 0
            job.peer_number = carrier.sock.fileno()
            return
        job.peer_number = NO_NUMBER
        if job.running.ends.parked is not None:
            self._reactor.callFromThread(job.flow.parked, job.running.ends.parked)

    def _watch(self, job: PumpedFlow) -> None:
        """Tell epoll what the flow waits for.

        A socket that waits for nothing is taken out of the epoll, which would report its end again and again.
        """
        interest = job.running.interest()
        if interest == job.interest:
            return
        job.interest = interest
        if job.carrier is not None:
            self._set_mask(job, job.carrier.sock, interest.peer_reads, interest.peer_writes)
        self._set_mask(job, job.running.local, interest.local_reads, interest.local_writes)

    def _set_mask(self, job: PumpedFlow, sock: socket.socket, reads: bool, writes: bool) -> None:
        mask = (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if writes else 0)
        before = job.masks[sock]
        if mask == before:
            return
        job.masks[sock] = mask
        if not mask:
            self._epoll.unregister(sock)
            del self._by_number[sock.fileno()]
        elif before:
            self._epoll.modify(sock, mask)
        else:
            self._epoll.register(sock, mask)
            self._by_number[sock.fileno()] = job

    def _tell(self, job: PumpedFlow) -> None:
        """Report ends on the reactor; a flow that has none left is over."""
        running, flow = job.running, job.flow
        if running.is_local_over and not job.told_local:
            job.told_local = True
            self._reactor.callFromThread(flow.local_over, running.ends.reason)
        if running.is_peer_over and not job.told_peer:
            job.told_peer = True
            self._reactor.callFromThread(flow.peer_over)
        if job.told_local and job.told_peer and job.carrier is None:
            self._jobs.pop(id(job), None)
