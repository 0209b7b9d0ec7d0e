"""A TCP proxy between a source and a daemon: it cuts, stalls and holds single connections, seen only as such."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

CHUNK_BYTES = 65536
OTHER_ADDRESS = "127.0.0.2"
COMMANDS, DISK, MEMORY, API = "command", "disk", "memory", "api"
_RESET = struct.pack("ii", 1, 0)


class Connection:
    """One connection through the proxy; `ended`: a side has said that it sends no more."""

    def __init__(self, kind: str, near: socket.socket, far: socket.socket) -> None:
        self.kind = kind
        self.open = True
        self.is_left = False
        self.ended = False
        self.flows = threading.Event()
        self.flows.set()
        self._near, self._far = near, far

    def cut(self) -> None:
        """Reset both sides."""
        self.leave()
        self._reset(self._far)

    def leave(self) -> None:
        """Reset the source's side; the target hears nothing of it."""
        self.open, self.is_left = False, True
        self.flows.set()
        self._reset(self._near)

    def _reset(self, side: socket.socket) -> None:
        with contextlib.suppress(OSError):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            side.shutdown(socket.SHUT_RDWR)
        side.close()


class Proxy(threading.Thread):
    """Passes connections on to `port`.

    Args: kind: says what a connection that begins now is for. hold: asked before each piece that the source sends as a
        command; true: it waits, until `release`.
    """

    def __init__(self, port: int, kind: Callable[[], str], hold: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.down = False
        self.address = "127.0.0.1"
        self.connections: list[Connection] = []
        self.holding = threading.Event()
        self._released = threading.Event()
        self._passes = threading.Event()
        self._passes.set()
        self._kind, self._hold = kind, hold
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.own_port = int(self._listener.getsockname()[1])
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._passes.wait()
                self._take(near)

    def _take(self, near: socket.socket) -> None:
        try:
            if self.down:
                raise ConnectionError
            far = socket.create_connection(("127.0.0.1", self.port), source_address=(self.address, 0))
        except OSError:
            near.close()
            return
        connection = Connection(self._kind(), near, far)
        self.connections.append(connection)
        for ends in ((near, far, connection.kind == COMMANDS), (far, near, False)):
            threading.Thread(target=self._pump, args=(connection, *ends), daemon=True).start()

    def _pump(self, connection: Connection, come: socket.socket, go: socket.socket, held: bool) -> None:
        try:
            while data := come.recv(CHUNK_BYTES):
                if held and not self._released.is_set() and self._hold():
                    self.holding.set()
                    self._released.wait()
                connection.flows.wait()
                go.sendall(data)
            connection.ended = True
            if not connection.is_left:
                go.shutdown(socket.SHUT_WR)
        except OSError:
            if not connection.is_left:
                connection.cut()

    def release(self) -> None:
        """Hold nothing any more."""
        self._released.set()

    def cut(self, kind: str) -> None:
        """Reset all connections of a kind."""
        for connection in self._of(kind):
            connection.cut()

    def cut_all(self) -> None:
        """The network is gone, and does not come back."""
        self.down = True
        for connection in list(self.connections):
            connection.cut()

    def swallow(self) -> None:
        """Nothing arrives any more, on new connections neither, and nobody is told."""
        self._passes.clear()
        for connection in list(self.connections):
            connection.flows.clear()

    def pass_again(self) -> None:
        """What was on its way arrives late, where its connection still stands."""
        self._passes.set()
        for connection in list(self.connections):
            connection.flows.set()

    def change_address(self) -> None:
        """The source is somewhere else, as a carried laptop: its connections are gone, unknown to the target."""
        self.address = OTHER_ADDRESS
        for connection in list(self.connections):
            if connection.open:
                connection.leave()

    def stall(self, kind: str, flows: bool) -> None:
        """Let the connections of a kind stand still, or flow again."""
        for connection in self._of(kind):
            (connection.flows.set if flows else connection.flows.clear)()

    def has(self, kind: str) -> bool:
        """Whether there ever was such a connection."""
        return any(connection.kind == kind for connection in self.connections)

    def _of(self, kind: str) -> list[Connection]:
        found = [connection for connection in self.connections if connection.kind == kind and connection.open]
        assert found, f"no {kind} connection"
        return found

    def close(self) -> None:
        """End everything."""
        self.release()
        self.pass_again()
        self.cut_all()
        self._listener.close()
