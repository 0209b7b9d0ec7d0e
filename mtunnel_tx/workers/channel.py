"""Messages between the daemon and a worker: small JSON objects, with descriptors, over a pair of SEQPACKET sockets."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.checks import clean
from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.ports.holding import HasDescriptor

log = Logger()

VERSION = 2
"""Of what workers and the daemon say to each other, and of what a daemon leaves about flows for the next one."""
MESSAGE_BYTES = 128 * 1024
"""A certificate chain and a key have to fit; the kernel's own limit is higher."""
MOST_SOCKETS = 4
MOST_DRAINED = 1000

Message = Mapping[str, Any]
Received = Callable[[Message, list[Any]], None]
"""Takes a message, and the sockets and files that came with it; the receiver closes them. Raises: Nonsense."""


class Nonsense(Exception):
    """What no honest process at the other end sends; the channel ends."""


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends, for two channels."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@implementer(IReadWriteDescriptor)
class MessageChannel:
    """One end; `closed` is called once, when the other end is gone or this end was closed.

    Args: sock: of SEQPACKET kind; it belongs to the channel.
    """

    def __init__(self, reactor: Reactor, sock: socket.socket, received: Received, closed: Callable[[], None]) -> None:
        self._reactor = reactor
        self._sock = sock
        self.received = received
        self.closed = closed
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._finishing = self._failed = self._over = False
        sock.setblocking(False)
        reactor.addReader(self)

    @property
    def sock(self) -> socket.socket:
        """To be duplicated."""
        return self._sock

    def send(self, message: Message, sockets: Sequence[HasDescriptor] = ()) -> None:
        """Queue a message; the sockets are duplicated at once. A closed channel sends nothing.

        Raises: OSError: it is too long, or no descriptor is left.
        """
        if self._over or self._finishing or self._failed:
            return
        data = json.dumps(message).encode("ascii")
        if len(data) > MESSAGE_BYTES:
            raise OSError(errno.EMSGSIZE, f"a message of {len(data)} bytes is longer than {MESSAGE_BYTES}")
        self._queue.append((data, _duplicates(sockets)))
        self._push()

    def finish(self) -> None:
        """Close after everything was sent."""
        self._finishing = True
        self._push()

    def close(self) -> None:
        """Close at once."""
        if self._over:
            return
        self._over = True
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        self._sock.close()
        self._forget_queue()
        self.closed()

    def leave(self) -> None:
        """Take nothing more: what comes is for another process that has a duplicate of this end."""
        self._reactor.removeReader(self)

    def drain(self) -> None:
        """Take what has come already, within a bound; the rest comes as usual."""
        for _ in range(MOST_DRAINED):
            if self._over or not self._take_one():
                break

    def _forget_queue(self) -> None:
        while self._queue:
            _close_all(self._queue.popleft()[1])

    def _push(self) -> None:
        while self._queue and not self._over:
            data, numbers = self._queue[0]
            try:
                socket.send_fds(self._sock, [data], numbers)
            except BlockingIOError:
                self._reactor.addWriter(self)
                return
            except OSError as error:
                # Where the other end is gone, what it has said before still comes, and then its end.
                self._forget_queue()
                if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                    self._fail(error)
                break
            _close_all(numbers)
            self._queue.popleft()
        if not self._over:
            self._reactor.removeWriter(self)
            if self._finishing:
                self.close()

    def _fail(self, error: OSError) -> None:
        """Nothing may come after a message that was lost. Whoever sends does not expect the end at once."""
        log.error("a message cannot be sent, and its channel ends: {reason}", reason=str(error))
        self._failed = True
        self._reactor.callLater(0, self.close)

    # What the reactor calls

    def fileno(self) -> int:
        return self._sock.fileno()

    def logPrefix(self) -> str:
        return "worker"

    def doWrite(self) -> None:
        self._push()

    def doRead(self) -> None:
        self._take_one()

    def _take_one(self) -> bool:
        """Returns: False: there is nothing more at the moment."""
        try:
            data, numbers, flags, _ = socket.recv_fds(self._sock, MESSAGE_BYTES, MOST_SOCKETS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True  # told once, before what it has said
        except OSError:
            data, numbers, flags = b"", [], 0
        if flags & socket.MSG_CTRUNC:
            log.error("descriptors that came with a message are lost: no more can be open")
            _close_all(numbers)
            numbers = []
        if not data:
            self.close()
            return False
        try:
            self.received(*_read(data, numbers, flags))
        except Nonsense as error:
            log.error("a worker, or whoever has taken it over, sends nonsense: {reason}", reason=str(error))
            self.close()
        return True

    def connectionLost(self, reason: Failure) -> None:
        self.close()


def _read(data: bytes, numbers: Sequence[int], flags: int) -> tuple[Message, list[Any]]:
    """A message, its sockets and files. Raises: Nonsense; the descriptors are closed then."""
    opened: list[Any] = []
    try:
        if flags & socket.MSG_TRUNC:
            raise Nonsense(f"a message is longer than {MESSAGE_BYTES} bytes")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise Nonsense("no message")
        opened.extend(_open(number) for number in numbers)
    except (Nonsense, ValueError, RecursionError, OSError) as error:
        for file in opened:
            file.close()
        _close_all(numbers[len(opened) :])
        raise Nonsense(clean(str(error))) from error
    return message, opened


def read_count(message: Message, key: str) -> int:
    """A number of bytes in a message. Raises: Nonsense."""
    count = message.get(key)
    if type(count) is not int or not 0 <= count < 1 << 63:
        raise Nonsense(f"no count of bytes '{key}'")
    return count


def close_unasked(sockets: Sequence[Any]) -> None:
    """Workers have no socket to give to the daemon. Raises: Nonsense: one did."""
    for sock in sockets:
        sock.close()
    if sockets:
        raise Nonsense("sockets that nobody asked for")


def _open(number: int) -> Any:
    """A descriptor that came: a socket, or a file. Raises: Nonsense: something else."""
    mode = os.fstat(number).st_mode
    if stat.S_ISSOCK(mode):
        return socket.socket(fileno=number)
    if not stat.S_ISREG(mode):
        raise Nonsense("neither a socket nor a file")
    return os.fdopen(number, "rb")


def _duplicates(sockets: Sequence[HasDescriptor]) -> list[int]:
    """Duplicate all of them, or none. Raises: OSError."""
    numbers: list[int] = []
    try:
        numbers.extend(os.dup(sock.fileno()) for sock in sockets)
    except OSError:
        _close_all(numbers)
        raise
    return numbers


def _close_all(numbers: Sequence[int]) -> None:
    for number in numbers:
        with suppress(OSError):
            os.close(number)
