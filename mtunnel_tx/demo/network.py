"""The network between the demonstration's nodes: it carries connections to one port, and cuts all of them sometimes."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

MIB = 1 << 20
_PIECE_BYTES = 64 << 10
_LOOK_S = 0.2
_RESET = struct.pack("ii", 1, 0)


class Network(threading.Thread):
    """Carries each connection to `port` of the loopback address, which may change.

    `at`: its own port; `cuts`: how often it has cut; `carried_bytes`: both ways.

    Args: cut_at: when so many bytes have gone through, it resets all connections. told: called then, with the bytes.
    """

    def __init__(self, port: int, cut_at: Sequence[int], told: Callable[[int], None]) -> None:
        super().__init__(daemon=True)
        self.cuts = 0
        self.port = port
        self._cut_at = list(cut_at)
        self._told = told
        self.carried_bytes = 0
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.at: int = self._listener.getsockname()[1]

    def run(self) -> None:
        """Carry until `stop`."""
        while not self._over.is_set():
            ready, _, _ = select.select([self._listener, *self._pairs], [], [], _LOOK_S)
            for sock in ready:
                if sock is self._listener:
                    self._join()
                elif sock in self._pairs:
                    self._carry(sock)
        self._cut()
        self._listener.close()

    def stop(self) -> None:
        """End, with all connections."""
        self._over.set()
        self.join()

    def _join(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self.port))
        except OSError:
            near.close()
            return
        self._pairs |= {near: far, far: near}

    def _carry(self, sock: socket.socket) -> None:
        other = self._pairs[sock]
        try:
            data = sock.recv(_PIECE_BYTES)
            other.sendall(data)
            if not data:
                other.shutdown(socket.SHUT_WR)
                self._forget(sock)
                return
        except OSError:
            self._reset(sock)
            self._reset(other)
            return
        self.carried_bytes += len(data)
        if self._cut_at and self.carried_bytes >= self._cut_at[0]:
            del self._cut_at[0]
            self.cuts += 1
            self._told(self.carried_bytes)
            self._cut()

    def _forget(self, sock: socket.socket) -> None:
        """It has said all; the other one may still speak to it."""
        other = self._pairs.pop(sock)
        if other not in self._pairs:
            sock.close()
            other.close()

    def _cut(self) -> None:
        for sock in {*self._pairs.keys(), *self._pairs.values()}:
            self._reset(sock)

    def _reset(self, sock: socket.socket) -> None:
        self._pairs.pop(sock, None)
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.close()


@contextmanager
def cut_network(port: int, cut_at_mib: Sequence[int], told: Callable[[int], None]) -> Iterator[Network]:
    """Such a network for the length of the block."""
    network = Network(port, [mib * MIB for mib in cut_at_mib], told)
    network.start()
    try:
        yield network
    finally:
        network.stop()
