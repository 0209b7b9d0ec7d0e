"""A TCP proxy that cuts its connections at random, in each way in which a network does that."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import threading
import time
from collections import Counter
from enum import StrEnum
from random import Random

CHUNK_BYTES = 256 * 1024
LOOK_S = 0.1
"""So long after a cut the pumps of a connection may look at it."""
HOLE_S = 60.0
"""So long a black hole stays, which is longer than either end may wait."""
YOUNG_S = 0.5
BACKLOG = 256
_RESET = struct.pack("ii", 1, 0)
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
_FILTER = struct.pack("HL", 1, ctypes.addressof(_DROP_ALL))


class Cut(StrEnum):
    """What becomes of a connection. The near end is the client's; what a black hole swallows, nobody acknowledges."""

    RESET = "reset"
    NEAR_RESET = "reset at the client, end of file at the daemon"
    FAR_RESET = "reset at the daemon, end of file at the client"
    FIN = "end of file"
    HOLE = "black hole"
    NEAR_HOLE = "black hole at the client, reset at the daemon"
    FAR_HOLE = "black hole at the daemon, reset at the client"


_WEIGHTS = {
    Cut.RESET: 3,
    Cut.NEAR_RESET: 2,
    Cut.FAR_RESET: 2,
    Cut.FIN: 3,
    Cut.HOLE: 2,
    Cut.NEAR_HOLE: 1,
    Cut.FAR_HOLE: 1,
}
_HOLES = {Cut.HOLE: (True, True), Cut.NEAR_HOLE: (True, False), Cut.FAR_HOLE: (False, True)}
_RESETS = {
    Cut.RESET: (True, True),
    Cut.NEAR_RESET: (True, False),
    Cut.FAR_RESET: (False, True),
    Cut.FIN: (False, False),
}


def swallow(sock: socket.socket) -> None:
    """Let nothing that comes reach this TCP socket any more: what its peer sends is not acknowledged."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _FILTER)


def swallow_no_more(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def listen_anywhere() -> socket.socket:
    """Returns: one that keeps its port over an outage, as it was bound to that and not to any."""
    with socket.socket() as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", 0))
        return socket.create_server(first.getsockname(), backlog=BACKLOG)


class Carried:
    """One connection through the proxy."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.since_s = time.monotonic()
        self.cut: Cut | None = None
        self.sides = (near, far)
        for side in self.sides:
            side.settimeout(LOOK_S)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pumps = [
            threading.Thread(target=self._pump, args=ends, daemon=True) for ends in ((near, far), (far, near))
        ]
        for pump in self._pumps:
            pump.start()
        threading.Thread(target=self._finish, daemon=True).start()

    @property
    def is_open(self) -> bool:
        return self.cut is None and any(pump.is_alive() for pump in self._pumps)

    def _pump(self, come: socket.socket, go: socket.socket) -> None:
        with contextlib.suppress(OSError):
            room = memoryview(bytearray(CHUNK_BYTES))
            while self.cut is None:
                try:
                    size = come.recv_into(room)
                except TimeoutError:
                    continue
                if not size:
                    go.shutdown(socket.SHUT_WR)
                    return
                self._send(go, room[:size])
            return
        self.cut = self.cut or Cut.RESET  # one end has reset it; the other one hears of that

    def _send(self, go: socket.socket, data: memoryview) -> None:
        while data and self.cut is None:
            with contextlib.suppress(TimeoutError):
                data = data[go.send(data) :]

    def _finish(self) -> None:
        for pump in self._pumps:
            pump.join()
        cut = self.cut
        if cut in _HOLES:
            self._swallow(_HOLES[cut])
        for side, resets in zip(self.sides, _RESETS.get(cut or Cut.FIN, (True, True)), strict=True):
            if resets and side.fileno() >= 0:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            side.close()

    def _swallow(self, which: tuple[bool, bool]) -> None:
        for side, swallows in zip(self.sides, which, strict=True):
            if swallows:
                swallow(side)
            else:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                side.close()
        time.sleep(HOLE_S)


class Cutter(threading.Thread):
    """Passes connections on to `port`; while it `cuts`, it cuts one, or now and then all, about every `every_s`."""

    def __init__(self, port: int, every_s: float, chance: Random) -> None:
        super().__init__(daemon=True)
        self.port, self.every_s, self.chance = port, every_s, chance
        self.cuts = threading.Event()
        self.count: Counter[Cut] = Counter()
        self._carried: list[Carried] = []
        self._lock = threading.Lock()
        self._is_out = False
        self._listener = listen_anywhere()
        self.own_port = int(self._listener.getsockname()[1])
        for work in (self.start, threading.Thread(target=self._cut_for_ever, daemon=True).start):
            work()

    def run(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # an outage
                time.sleep(LOOK_S)
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.port))
            except OSError:
                near.close()
                continue
            self._carry(near, far)

    def fail(self, outage_s: float) -> None:
        """An outage: for half of the time all that is new is refused, and for the other half it is not answered."""
        self.refuse()
        time.sleep(outage_s / 2)
        self.ignore()
        time.sleep(outage_s / 2)
        self.recover()

    def refuse(self) -> None:
        """Cut everything, and refuse what is new."""
        with self._lock:
            self._is_out = True
            self._listener.shutdown(socket.SHUT_RDWR)
            able = [one for one in self._carried if one.is_open]
        self._cut(able)

    def ignore(self) -> None:
        """Let what is new wait in vain."""
        swallow(self._listener)
        self._listener.listen(BACKLOG)

    def recover(self) -> None:
        self._is_out = False
        swallow_no_more(self._listener)

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        with self._lock:
            self._carried = [one for one in self._carried if one.is_open]
            carried = Carried(near, far)
            self._carried.append(carried)
        if self._is_out:
            self._cut([carried])

    def _cut_for_ever(self) -> None:
        while self.every_s:
            self.cuts.wait()
            time.sleep(self.chance.uniform(0.5, 1.5) * self.every_s)
            with self._lock:
                able = [one for one in self._carried if one.is_open and self._may_be_cut(one)]
            if able and self.cuts.is_set():
                self._cut(able if self.chance.random() < 0.1 else [self.chance.choice(able)])

    def _cut(self, which: list[Carried]) -> None:
        for one in which:
            one.cut = self.chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
            self.count[one.cut] += 1

    def _may_be_cut(self, one: Carried) -> bool:
        """Mostly such as carry a flow already."""
        return time.monotonic() - one.since_s > YOUNG_S or self.chance.random() < 0.05
