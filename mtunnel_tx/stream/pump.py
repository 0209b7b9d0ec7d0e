"""The pump: what the daemon does with bytes.

A source sends a VM's memory, its disks and the commands about them as websockets over TLS; behind each stands a UNIX
socket, with QEMU, an importer or a command worker at its other end. HTTP has checked who comes and answered 101
(`upgrade.py`); from there on the TCP socket, its TLS state, what was already read of it and the UNIX socket belong to a
`Stream`, and worker threads of this module run the streams. The reactor stays free for the API and the commands.

One worker serves many streams with one epoll; those that carry commands have one of their own, as somebody waits for
each reply. Inward, for each stream that is readable:

    TCP socket --recv 256 KiB--> scratch --BIO_write--> OpenSSL --SSL_read, record by record--> a lent block
    block: find the frames, XOR masks away where they lie --sendmsg, all payload at once--> UNIX socket

and outward the same way back: 128 KiB from the UNIX socket, a header put in front, SSL_write, BIO_read, send. Payload
is never copied by Python; receiving, OpenSSL, unmasking and sending run without the interpreter's lock, which is why
threads help here. The UNIX socket has a send buffer of 2 MiB, so that the reader behind it and we work at once.

Memory is bounded: a way reads only when its receiver has taken everything before, so a stream holds at most one block
of 288 KiB for each way, one of ciphertext, and what OpenSSL makes of one frame; an idle stream holds none of them.
A slow disk thus stops the TCP window of the source, nothing else.

Rules for ends and aborts are in `ends.py`, told to the rest of the daemon through `link.py`: the worker only reports
that a side is over, on the reactor, which then closes it. Whoever wants to end a stream asks for it (`Link.abort`);
the worker is woken by an eventfd. One thread at a time touches a stream: its worker, from start to end.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from mtunnel_tx.net.kinds import Reactor, Result
from mtunnel_tx.stream.engine import MakeEngine, best_engine
from mtunnel_tx.stream.link import Link, make_stream
from mtunnel_tx.stream.mask import Unmask, best_unmask
from mtunnel_tx.stream.peer import Peer
from mtunnel_tx.stream.sides import Blocks
from mtunnel_tx.stream.stream import Interest, Stream, Tools

log = Logger()

THREADS = 2
"""For payload; one more for the streams that carry commands."""

SWITCH_S = 0.0005
"""How long the reactor waits for the interpreter's lock at most before a worker has to give it up, after each call that
may block: with Python's own 5 ms it stands still for tens of them while streams are busy."""

LONGEST_WAIT_S = 60.0

PIECES_BYTES = range(8 * 1024, 128 * 1024)
"""What a worker moves of each stream in one turn where a peer's bytes come as fast as it takes them, but in pieces:
each piece costs a turn here and a wake-up of both neighbours. After such a turn it lets them gather for `GATHER_S`;
requests and replies are smaller, and bytes that it is behind with are more."""

GATHER_S = 0.0001


class _Cargo:
    """A stream in the hands of a worker: what its epoll knows of it, and what the link was told."""

    def __init__(self, link: Link, stream: Stream) -> None:
        self.link = link
        self.stream = stream
        self.due_s: float | None = 0.0
        self.peer_number = stream.peer.fileno()
        self.peer_event = self.local_event = True
        self.interest = Interest(False, False, False, False)
        self.masks: dict[socket.socket, int] = {stream.peer: 0, stream.local: 0}
        self.untold: dict[Callable[[Stream], bool], Callable[[Stream], None]] = {
            _is_local_over: lambda stream: link.local_over(stream.ends.reason),
            _is_peer_over: lambda _stream: link.peer_over(),
            _is_peer_closed: lambda _stream: link.peer_closed(),
        }


def _is_local_over(stream: Stream) -> bool:
    return stream.is_local_over


def _is_peer_over(stream: Stream) -> bool:
    return stream.is_peer_over


def _is_peer_closed(stream: Stream) -> bool:
    return stream.is_peer_closed


class _Worker:
    """One thread, one epoll, many streams. Only `order` may be called from elsewhere."""

    def __init__(self, name: str, reactor: Reactor, tools: Tools, rest: Callable[[float], None]) -> None:
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
        self._cargo: dict[int, _Cargo] = {}
        self._by_number: dict[int, _Cargo] = {}
        self._due_s = 0.0
        self._stopping = False
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self.thread.start()
        except RuntimeError:
            os.close(self._bell)
            raise

    # For the reactor

    def take(self, cargo: _Cargo) -> None:
        self._order(lambda: self._begin(cargo))

    def cancel(self, cargo: _Cargo) -> None:
        self._order(lambda: self._give_up(cargo))

    def stop(self) -> None:
        """Go home when the last stream has ended."""
        self._order(self._go_home)

    def close(self) -> None:
        """After `ended`: whoever rings the bell must still find it until then."""
        self.thread.join()
        self._epoll.close()
        os.close(self._bell)

    def _order(self, deed: Callable[[], None]) -> None:
        self._orders.append(deed)
        os.eventfd_write(self._bell, 1)

    # In the thread

    def _run(self) -> None:
        try:
            while not self._stopping or self._cargo:
                self._turn()
        finally:
            self._reactor.callFromThread(self.ended.callback, None)

    def _turn(self) -> None:
        ready = [self._note(number) for number, _ in self._epoll.poll(self._wait_s())]
        while self._orders:
            self._orders.popleft()()
        served = {id(cargo): cargo for cargo in ready if cargo is not None}
        served.update(self._take_due())
        moved_bytes = [self._serve(cargo) for cargo in served.values()]
        if moved_bytes and sum(moved_bytes) // len(moved_bytes) in PIECES_BYTES:
            self._rest(GATHER_S)

    def _note(self, number: int) -> _Cargo | None:
        """Mark which socket of a stream is ready. Returns: None: it was the bell."""
        cargo = self._by_number.get(number)
        if cargo is None:
            os.eventfd_read(self._bell)
        elif number == cargo.peer_number:
            cargo.peer_event = True
        else:
            cargo.local_event = True
        return cargo

    def _wait_s(self) -> float:
        return min(LONGEST_WAIT_S, max(0.0, self._due_s - self._now()))

    def _take_due(self) -> dict[int, _Cargo]:
        """The streams whose time has come; looked for only when the earliest known time has."""
        now_s = self._now()
        if now_s < self._due_s:
            return {}
        self._due_s = now_s + LONGEST_WAIT_S
        due = {}
        for key, cargo in self._cargo.items():
            if cargo.due_s is not None and cargo.due_s <= now_s:
                due[key] = cargo
                cargo.peer_event = cargo.local_event = True
            elif cargo.due_s is not None:
                self._due_s = min(self._due_s, cargo.due_s)
        return due

    def _begin(self, cargo: _Cargo) -> None:
        self._cargo[id(cargo)] = cargo
        self._due_s = 0.0

    def _give_up(self, cargo: _Cargo) -> None:
        cargo.stream.give_up("cancelled")
        cargo.due_s = self._due_s = 0.0

    def _go_home(self) -> None:
        self._stopping = True

    def _serve(self, cargo: _Cargo) -> int:
        """Returns: how many bytes of payload it moved."""
        before_bytes = cargo.stream.carried_bytes
        try:
            cargo.stream.service(peer_event=cargo.peer_event, local_event=cargo.local_event)
            self._watch(cargo)
        except Exception:
            log.failure("unexpected failure in a stream")
            self._abandon(cargo)
        cargo.peer_event = cargo.local_event = False
        cargo.due_s = cargo.stream.next_call_s()
        if cargo.due_s is not None:
            self._due_s = min(self._due_s, cargo.due_s)
        if cargo.stream.is_ending:
            self._tell(cargo)
        return cargo.stream.carried_bytes - before_bytes

    def _abandon(self, cargo: _Cargo) -> None:
        """A bug must not take the other streams of this thread with it."""
        cargo.stream.destroy("internal error")
        for sock, mask in cargo.masks.items():
            if mask:
                self._by_number.pop(sock.fileno(), None)
                with contextlib.suppress(OSError, ValueError):
                    self._epoll.unregister(sock)
        cargo.masks = dict.fromkeys(cargo.masks, 0)

    def _watch(self, cargo: _Cargo) -> None:
        """Tell epoll what the stream waits for; a socket that waits for nothing leaves it, or its end would ring on."""
        interest = cargo.stream.interest()
        if interest == cargo.interest:
            return
        cargo.interest = interest
        self._set_mask(cargo, cargo.stream.peer, interest.peer_reads, interest.peer_writes)
        self._set_mask(cargo, cargo.stream.local, interest.local_reads, interest.local_writes)

    def _set_mask(self, cargo: _Cargo, sock: socket.socket, reads: bool, writes: bool) -> None:
        mask = (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if writes else 0)
        before = cargo.masks[sock]
        if mask == before:
            return
        cargo.masks[sock] = mask
        if not mask:
            self._epoll.unregister(sock)
            del self._by_number[sock.fileno()]
        elif before:
            self._epoll.modify(sock, mask)
        else:
            self._epoll.register(sock, mask)
            self._by_number[sock.fileno()] = cargo

    def _tell(self, cargo: _Cargo) -> None:
        stream = cargo.stream
        for happened in [one for one in cargo.untold if one(stream)]:
            self._reactor.callFromThread(cargo.untold.pop(happened), stream)
        if not cargo.untold:
            del self._cargo[id(cargo)]


class Pump:
    """Runs streams in worker threads.

    Args: reactor: IReactorFromThreads. threads: how many; they start with the first streams. unmask, engine: the best
    there are where None. now: monotonic seconds. rest: how a worker waits for some seconds.
    """

    def __init__(
        self,
        reactor: Reactor,
        *,
        threads: int = THREADS,
        unmask: Unmask | None = None,
        engine: MakeEngine | None = None,
        now: Callable[[], float] = time.monotonic,
        rest: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reactor = reactor
        self._threads = threads
        self._unmask = unmask or best_unmask()
        self._engine = engine or best_engine()
        self._now = now
        self._rest = rest
        self._workers: list[_Worker] = []
        self._urgent: list[_Worker] = []
        self._running: dict[Link, tuple[_Worker, _Cargo]] = {}

    def start(self, link: Link, peer: Peer) -> None:
        worker = self._pick_urgent() if link.terms.urgent else self._pick()
        stream = make_stream(link, peer, worker.tools)
        link.stream = stream
        cargo = _Cargo(link, stream)
        self._running[link] = worker, cargo
        worker.load += 1
        for end in (link.done, link.released):
            end.addBoth(self._forget, link)
        if link.aborted:
            stream.give_up("cancelled")
        worker.take(cargo)

    def cancel(self, link: Link) -> None:
        if link in self._running:
            worker, cargo = self._running[link]
            worker.cancel(cargo)

    async def stop(self) -> None:
        links = list(self._running)
        for link in links:
            link.abort()
        # A plain await would take the outcome away from those who wait for it after us.
        ends: list[Deferred[Result]] = [end for link in links for end in (link.done, link.released)]
        await DeferredList(ends)
        workers, self._workers, self._urgent = self._workers + self._urgent, [], []
        for worker in workers:
            worker.stop()
            await worker.ended
            worker.close()

    def _pick(self) -> _Worker:
        """The worker with the fewest streams; a new one while there are fewer than allowed and none is idle."""
        idle = next((worker for worker in self._workers if worker.load == 0), None)
        if idle is None and len(self._workers) < self._threads:
            idle = self._hire(f"pump-{len(self._workers)}")
            self._workers.append(idle)
        return idle or min(self._workers, key=lambda worker: worker.load)

    def _pick_urgent(self) -> _Worker:
        if not self._urgent:
            self._urgent.append(self._hire("pump-urgent"))
        return self._urgent[0]

    def _hire(self, name: str) -> _Worker:
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))
        tools = Tools(blocks=Blocks(), unmask=self._unmask, engine=self._engine, now=self._now)
        return _Worker(name, self._reactor, tools, self._rest)

    def _forget(self, result: Result, link: Link) -> Result:
        """Both ends are needed: the UNIX side may have to wait for its last bytes longer than the peer."""
        if link.done.called and link.released.called:
            worker, _ = self._running.pop(link)
            worker.load -= 1
        return result
