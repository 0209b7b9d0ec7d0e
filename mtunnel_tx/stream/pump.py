"""The pump: how the daemon moves bytes.

A source sends a VM's memory, its disks and the commands about them as websockets over TLS; behind each one is a UNIX
socket, with QEMU, an importer or a tunnel's commands at its other end. HTTP has checked the request and answered 101
(`http/upgrade.py`). From then on the TCP socket, its TLS state and what was already read of it are the carrier of a
flow; the UNIX socket is the flow's. Pump threads (`pumpthread.py`) run the flows (`RunningFlow`). The reactor stays
free for the API and the commands.

One pump thread serves many flows with one epoll. Flows that carry commands have a thread of their own, because somebody
waits for each reply. Inward, for each flow whose carrier is readable:

    TCP socket --recv 256 KiB--> scratch --a BIO on it--> OpenSSL --SSL_read, record by record--> a lent block
    block: find the frames, XOR masks away where they lie --sendmsg, all payload at once--> UNIX socket

and outward the same way back: 128 KiB from the UNIX socket, a header in front, SSL_write, BIO_read, send; both again
and again, a MiB or two in one call without the interpreter's lock, which is why threads help here. Payload is never
copied by Python. The UNIX socket has a send buffer of 2 MiB: its reader and the pump work at the same time.

Memory is bounded: a way reads only when its receiver has taken everything before. A flow holds at most one block of 288
KiB for each way, one of ciphertext, and what OpenSSL makes of one frame; an idle flow holds none. So a slow disk closes
the TCP window of the source.

The rules of ends are in `ends.py`. A pump thread reports on the reactor that a side is over or that a carrier is
closed, and the flow then closes the socket (`flow.py`). `Flow.abort` wakes the thread by an eventfd. Only one thread
ever touches a running flow: its pump thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.stream.carrier import ThreadTools
from mtunnel_tx.stream.engine import MakeEngine, best_engine
from mtunnel_tx.stream.flow import Flow, TakenAway
from mtunnel_tx.stream.mask import Unmask, best_unmask
from mtunnel_tx.stream.native import Native, find_native
from mtunnel_tx.stream.parkedvalue import ParkedValue
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.stream.pumpedflow import PumpedFlow
from mtunnel_tx.stream.pumpthread import PumpThread
from mtunnel_tx.stream.running import RunningFlow
from mtunnel_tx.stream.runningset import RunningSet
from mtunnel_tx.stream.sides import Blocks

THREADS = 2
"""For payload; one more for the flows that carry commands."""

SWITCH_S = 0.0005
"""How long the reactor waits for the interpreter's lock, at most. With Python's default of 5 ms it waits for tens of ms
while flows are busy, because it loses the lock at each call that may block."""


class Pump:
    """Runs flows in pump threads (flow.Relay).

    Args: reactor: IReactorFromThreads. threads: how many; they start with the first flows. unmask, engine: the best
    there are where None. native: the module of native.py; where None, it is looked for unless one of those two is
    given. now: monotonic seconds. rest: how a pump thread sleeps for some seconds.
    """

    def __init__(
        self,
        reactor: Reactor,
        *,
        threads: int = THREADS,
        unmask: Unmask | None = None,
        engine: MakeEngine | None = None,
        native: Native | None = None,
        now: Callable[[], float] = time.monotonic,
        rest: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reactor = reactor
        self._most_threads = threads
        pure = unmask is not None or engine is not None
        self._native = native or (Native(None, "another way was asked for") if pure else find_native())
        self._unmask = unmask or best_unmask(is_spare=self._native.module is not None)
        self._engine = engine or best_engine()
        self._now = now
        self._rest = rest
        self._threads: list[PumpThread] = []
        self._urgent: list[PumpThread] = []
        self._running: RunningSet[tuple[PumpThread, PumpedFlow]] = RunningSet(_count_out)

    def attach(self, flow: Flow, peer: PeerConnection) -> None:
        thread, job = self._running.find(flow) or self._begin(flow)
        thread.attach(job, peer)

    def detach(self, flow: Flow, reason: str) -> None:
        """Take the carrier of a flow away; the flow is parked, unless it ends already."""
        found = self._running.find(flow)
        if found is not None:
            thread, job = found
            thread.detach(job, reason)

    def take_away(self, flow: Flow, told: TakenAway) -> None:
        """Stop running a parked flow, which goes on elsewhere. Args: told: hears what it goes on with, or None."""
        found = self._running.find(flow)
        if found is not None:
            thread, job = found
            thread.take_away(job, partial(self._forget, flow, told))

    def _forget(self, flow: Flow, told: TakenAway, value: ParkedValue | None) -> None:
        if value is not None:
            self._running.remove(flow)
        told(value)

    def cancel(self, flow: Flow) -> None:
        found = self._running.find(flow)
        if found is not None:
            thread, job = found
            thread.cancel(job)

    async def stop(self) -> None:
        await self._running.stop()
        threads, self._threads, self._urgent = self._threads + self._urgent, [], []
        for thread in threads:
            thread.stop()
            await thread.ended
            thread.close()

    def _begin(self, flow: Flow) -> tuple[PumpThread, PumpedFlow]:
        thread = self._pick_urgent() if flow.terms.urgent else self._pick()
        running = RunningFlow(flow.local, flow.terms, thread.tools, flow.take_value())
        flow.traffic = running
        if flow.aborted:
            running.cancel(flow.abort_reason)
        job = PumpedFlow(flow, running)
        self._running.add(flow, (thread, job))
        thread.load += 1
        thread.begin(job)
        return thread, job

    def _pick(self) -> PumpThread:
        """The thread with the fewest flows; a new one while there are fewer than allowed and none is idle."""
        idle = next((thread for thread in self._threads if thread.load == 0), None)
        if idle is None and len(self._threads) < self._most_threads:
            idle = self._start_thread(f"pump-{len(self._threads)}")
            self._threads.append(idle)
        return idle or min(self._threads, key=lambda thread: thread.load)

    def _pick_urgent(self) -> PumpThread:
        if not self._urgent:
            self._urgent.append(self._start_thread("pump-urgent", rest=_never_rest))
        return self._urgent[0]

    def _start_thread(self, name: str, rest: Callable[[float], None] | None = None) -> PumpThread:
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))
        tools = ThreadTools(
            blocks=Blocks(), unmask=self._unmask, engine=self._engine, now=self._now, native=self._native.module
        )
        return PumpThread(name, self._reactor, tools, rest or self._rest)


def _never_rest(_rest_s: float) -> None:
    """Somebody waits for each line of a command connection."""


def _count_out(job: tuple[PumpThread, PumpedFlow]) -> None:
    thread, _ = job
    thread.load -= 1
