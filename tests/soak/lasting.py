"""One resumable flow of the soak with cuts: one thread works the UNIX sockets at its ends, and compares every byte."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from select import poll
from typing import Any
from urllib.parse import quote

from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.http.redial import open_lasting_stream
from mtunnel_tx.pve.maps import Endpoint
from mtunnel_tx.stream.flow import Flow as RelayFlow
from mtunnel_tx.stream.flow import FlowOutcome, Relay
from mtunnel_tx.stream.limits import FlowLimits
from tests.patience import TimeLeft, patience_s
from tests.soak.payload import Flow
from tests.soak.transfer import MIB, ROOM_BYTES, Local, watch

reactor: Any = the_reactor
LIMITS = FlowLimits(dead_peer_s=5, ping_s=3, half_close_s=300, linger_s=30)
VMID = 100
_IDLE_MS, _PACED_MS = 1000, 50
_VOID_S = 0.5


class Pace:
    """What all flows of a driver may send together; one send may overdraw it. Args: rate_bytes_s: 0: no limit."""

    def __init__(self, rate_bytes_s: float) -> None:
        self.rate_bytes_s = rate_bytes_s
        self._lock = threading.Lock()
        self._left, self._seen_s = 0.0, time.monotonic()

    def has_left(self) -> bool:
        with self._lock:
            now_s = time.monotonic()
            gained = (now_s - self._seen_s) * self.rate_bytes_s
            self._left, self._seen_s = min(self._left + gained, self.rate_bytes_s), now_s
            return not self.rate_bytes_s or self._left > 0

    def spend(self, size_bytes: int) -> None:
        with self._lock:
            self._left -= size_bytes


@dataclass(slots=True, kw_only=True)
class Lasted:
    """What came of one flow.

    losses, parked_s, longest_s: how often, how long in all and how long at most its client had no connection.
    """

    name: str
    bytes_in: int = 0
    bytes_out: int = 0
    losses: int = 0
    resumed: int = 0
    parked_s: float = 0.0
    longest_s: float = 0.0


class LastingTransfer:
    """One flow from its websocket to its end. Raises (run): AssertionError; TunnelError: it could not be opened.

    Args: quiet_s: for so long nothing may move.
    """

    def __init__(
        self, endpoint: Endpoint, node: str, folder: Path, name: str, *, relay: Relay, pace: Pace, most_bytes: int,
        quiet_s: float,
    ) -> None:  # fmt: skip
        self.endpoint, self.node, self.folder, self.relay, self.pace = endpoint, node, folder, relay, pace
        self.chance, self.quiet_s = Random(name), quiet_s
        self.inward, self.outward = (Flow(self.chance, self._size(most_bytes)) for _ in range(2))
        self.lasted = Lasted(name=name)
        self._lost_s = 0.0

    def _size(self, most_bytes: int) -> int:
        chance = self.chance.random()
        if chance < 0.25:
            return self.chance.randrange(200_000)
        return most_bytes if chance > 0.9 else min(most_bytes, int(self.chance.lognormvariate(15.0, 1.7)))

    def run(self) -> Lasted:
        near, far = socket.socketpair()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.folder / self.lasted.name))
            listener.listen(1)
            listener.settimeout(patience_s(self.quiet_s))
            try:
                flow = self._open(far)
                sock, _ = listener.accept()
            except BaseException:
                near.close()
                raise
            finally:
                (self.folder / self.lasted.name).unlink()
        with sock, near:
            self._move(*self._ends(near, sock))
        outcome = self._wait(flow)
        assert outcome.orderly, f"{self.lasted}: {outcome.reason}"
        self.lasted.bytes_in, self.lasted.bytes_out = self.inward.moved, self.outward.moved
        assert (outcome.bytes_out, outcome.bytes_in) == (self.inward.total, self.outward.total), outcome
        return self.lasted

    def _open(self, far: socket.socket) -> RelayFlow:
        path = f"/api2/json/nodes/{self.node}/qemu/{VMID}/mtunnelwebsocket"
        query = f"socket={quote('/run/' + self.lasted.name, safe='')}&ticket=none"

        async def open_it() -> RelayFlow:
            flow = await open_lasting_stream(
                reactor, self.endpoint, f"{path}?{query}", far, relay=self.relay, limits=LIMITS
            )
            assert flow.terms.window_bytes is not None, "it is no resumable one"
            flow.watch(self._parked, self._resumed)
            return flow

        return _in_reactor(open_it)

    def _parked(self, _reason: str, _park_s: float) -> None:
        self.lasted.losses += 1
        self._lost_s = time.monotonic()

    def _resumed(self) -> None:
        self.lasted.resumed += 1
        parked_s = time.monotonic() - self._lost_s
        self.lasted.parked_s += parked_s
        self.lasted.longest_s = max(self.lasted.longest_s, parked_s)

    def _ends(self, near: socket.socket, sock: socket.socket) -> tuple[Local, Local]:
        most = int(self.pace.rate_bytes_s / 20) or ROOM_BYTES
        sizes = (777 if max(self.inward.total, self.outward.total) < MIB else 65_536, 65_536, ROOM_BYTES, 2 * MIB)
        write_bytes = max(777, min(most, self.chance.choice(sizes)))
        return (
            Local(near, self.outward, self.inward, write_bytes),
            Local(sock, self.inward, self.outward, write_bytes),
        )

    def _move(self, *ends: Local) -> None:
        watched, left = poll(), TimeLeft(self.quiet_s)
        while not all(end.ended for end in ends):
            may_send = self.pace.has_left()
            moved = False
            for end in ends:
                moved |= not end.ended and end.receive()
                moved |= may_send and end.wants_to_send and self._send(end)
            if moved:
                left = TimeLeft(self.quiet_s)
                continue
            assert left, f"nothing moves: {self.lasted} {vars(self.inward)} {vars(self.outward)}"
            for end in ends:
                watch(watched, end.sock, not end.ended, end.wants_to_send and may_send)
            watched.poll(_IDLE_MS if may_send else _PACED_MS)

    def _send(self, end: Local) -> bool:
        before = end.outward.sent
        sent = end.send()
        self.pace.spend(end.outward.sent - before)
        return sent

    def _wait(self, flow: RelayFlow) -> FlowOutcome:
        async def wait() -> FlowOutcome:
            kept: Deferred[FlowOutcome] = Deferred()
            flow.done.addCallback(lambda outcome: (kept.callback(outcome), outcome)[1])
            return await kept.addTimeout(patience_s(self.quiet_s), reactor)

        return _in_reactor(wait)


def _in_reactor(work: Callable[[], Awaitable[Any]]) -> Any:
    return blockingCallFromThread(reactor, lambda: Deferred.fromCoroutine(work()))  # type: ignore[arg-type]


class Driver:
    """Flows of one client process, some at once. Args: threads: how many. quiet_s: see LastingTransfer."""

    def __init__(
        self, endpoint: Endpoint, node: str, folder: Path, *, relay: Relay, pace: Pace, threads: int, quiet_s: float
    ) -> None:
        self.endpoint = endpoint
        self.node, self.folder, self.relay, self.pace, self.threads = node, folder, relay, pace, threads
        self.quiet_s = quiet_s
        self.wrong: list[str] = []
        self.void: list[str] = []
        self.lasted: list[Lasted] = []

    def round(self, mark: str, size_bytes: int, seconds: float, most_bytes: int) -> None:
        """Flows, until so much was carried or so long was worked; then the end of those that have begun."""
        self.wrong, self.void, self.lasted = [], [], []
        last_s = time.monotonic() + seconds

        def is_over() -> bool:
            done = sum(one.bytes_in + one.bytes_out for one in self.lasted)
            return bool(self.wrong) or done >= size_bytes or time.monotonic() >= last_s

        def work(thread: int) -> None:
            number = 0
            while not is_over():
                number += 1
                self._one(f"{mark}-{thread}-{number}", most_bytes)

        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(self.threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _one(self, name: str, most_bytes: int) -> None:
        try:
            transfer = LastingTransfer(
                self.endpoint, self.node, self.folder, name, relay=self.relay, pace=self.pace, most_bytes=most_bytes,
                quiet_s=self.quiet_s,
            )  # fmt: skip
            self.lasted.append(transfer.run())
        except TunnelError:
            self.void.append(name)  # cut while it was opened: there was no flow yet
            time.sleep(_VOID_S)
        except Exception as error:
            self.wrong.append(f"{name}: {type(error).__name__}: {error}")


def through(endpoint: Endpoint, port: int) -> Endpoint:
    """The same, behind a proxy."""
    return replace(endpoint, port=port)
