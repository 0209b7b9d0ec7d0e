"""Read and write an image as a raw disk through qemu-nbd, because qemu-img cannot convert from and into a pipe.

Source: the NBD project's doc/proto.md (fixed newstyle handshake, simple replies).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.pvesm.pieces import Piece
from mtunnel_tx.pvesm.signals import STOPPING, uninterrupted
from mtunnel_tx.pvesm.sparse import data_runs, fill, send_all

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">I8sII")
_EXPORT = struct.Struct(">QH")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_REQUEST_MAGIC = 0x25609513
_REPLY_MAGIC = 0x67446698
_FIXED_NO_ZEROES = 3
_OPTION_EXPORT_NAME = 1
_READ, _WRITE, _DISCONNECT, _FLUSH = range(4)
_READ_BYTES = 1 << 20
_AHEAD = 2
_START_S = 30
_END_S = 600
_LISTEN_FD = 3
_WORDS_BYTES = 4096
_SET_DEATH_SIGNAL = 1


@contextmanager
def opened_image(path: Path, format: str, *, writable: bool = False) -> Iterator[socket.socket]:
    """Serve an image on a private socket, connected already; qemu-nbd never outlives us.

    Args: writable: what was written is in the file once the block has ended. Raises: BackendFailed.
    """
    argv = ["qemu-nbd", *([] if writable else ["--read-only"]), f"--format={format}", "--", str(path)]
    listener, connection = _connected_pair()
    with connection, tempfile.TemporaryFile() as errors, _started(argv, listener, errors) as process:
        _await_greeting(connection, process, errors)
        yield connection
        if writable:
            connection.close()
            _await_end(process, errors)


def _connected_pair() -> tuple[socket.socket, socket.socket]:
    """A listening socket and its only client. The name is removed at once, so that nothing stays behind."""
    listener, connection = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with uninterrupted(), tempfile.TemporaryDirectory(prefix="mtunnel-nbd-") as folder:
        listener.bind(f"{folder}/s")
        listener.listen(1)
        connection.connect(f"{folder}/s")
    return listener, connection


@contextmanager
def _started(argv: list[str], listener: socket.socket, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        # A signal between the start and the assignment would leave the process running.
        with uninterrupted(), listener:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(_LISTEN_FD,),
                preexec_fn=partial(_prepare, os.getpid(), listener.fileno(), ctypes.CDLL(None)),
            )
    except OSError as error:
        raise BackendFailed(f"unable to start qemu-nbd: {error}") from error
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _prepare(parent: int, listener: int, libc: ctypes.CDLL) -> None:
    """Runs in the child: make the kernel end it with its parent, and pass the listening socket (LISTEN_FDS).

    Source: sd_listen_fds(3).
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.dup2(listener, _LISTEN_FD)
    os.set_inheritable(_LISTEN_FD, True)  # if it was descriptor 3 already, dup2 did nothing
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}


def _await_greeting(connection: socket.socket, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    connection.settimeout(_START_S)
    try:
        if connection.recv(1, socket.MSG_PEEK):
            connection.settimeout(None)
            return
    except TimeoutError as error:
        raise BackendFailed(f"unable to start qemu-nbd: it says nothing for {_START_S} s") from error
    except ConnectionResetError:
        pass
    process.wait(_START_S)
    raise _failure(errors)


def _await_end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    """It ends with its only client, and has closed the image by then."""
    try:
        code = process.wait(_END_S)
    except subprocess.TimeoutExpired as error:
        raise BackendFailed(f"qemu-nbd did not end within {_END_S} s") from error
    if code:
        raise _failure(errors)


def _failure(errors: IO[bytes]) -> BackendFailed:
    errors.seek(0)
    return BackendFailed(f"qemu-nbd failed: {errors.read(_WORDS_BYTES).decode('utf-8', 'replace').strip()}")


def read_disk(
    connection: socket.socket, size_bytes: int, ranges: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, memoryview]]:
    """Yields: offset and bytes of these ranges (start, end) of the disk, at most 1 MiB at a time.

    Raises: BackendFailed: qemu-nbd answers wrongly, offers another size, cannot read, or is gone.
    """
    _shake_hands(connection, size_bytes)
    lengths: dict[int, int] = {}
    answers: dict[int, memoryview] = {}
    asked: deque[int] = deque()

    def take_first() -> tuple[int, memoryview]:
        offset = asked.popleft()
        while offset not in answers:
            _take_answer(connection, lengths, answers)
        return offset, answers.pop(offset)

    for offset, count in _cut(ranges):
        lengths[offset] = count
        asked.append(offset)
        _ask(connection, _READ, offset, count)
        if len(asked) == _AHEAD:
            yield take_first()
    while asked:
        yield take_first()
    _ask(connection, _DISCONNECT)


def _cut(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yields: offset and length of each request."""
    for start, end in ranges:
        for offset in range(start, end, _READ_BYTES):
            yield offset, min(_READ_BYTES, end - offset)


def write_disk(connection: socket.socket, size_bytes: int, pieces: Iterable[Piece]) -> int:
    """Write pieces to a disk that is all zeros; blocks of zeros are left out.

    Returns: where the last piece says that the disk ends. Raises: BackendFailed: as `read_disk`.
    """
    _shake_hands(connection, size_bytes)
    end = unanswered = 0
    for piece in pieces:
        for start, stop in data_runs(piece.buffer, piece.count):
            _ask(connection, _WRITE, piece.offset + start, stop - start)
            send_all(piece.view[start:stop], connection.fileno())
            unanswered += 1
            if unanswered == _AHEAD:
                unanswered -= _take_done(connection)
        end = piece.offset + piece.count
    while unanswered:
        unanswered -= _take_done(connection)
    _ask(connection, _FLUSH)
    _take_done(connection)
    _ask(connection, _DISCONNECT)
    return end


def _shake_hands(connection: socket.socket, size_bytes: int) -> None:
    """Raises: BackendFailed: the disk has another size, or nobody speaks NBD."""
    magic, option_magic, _ = _GREETING.unpack(_receive(connection, _GREETING.size))
    if (magic, option_magic) != (b"NBDMAGIC", b"IHAVEOPT"):
        raise BackendFailed("qemu-nbd speaks another protocol")
    connection.sendall(_OPTION.pack(_FIXED_NO_ZEROES, option_magic, _OPTION_EXPORT_NAME, 0))
    served_bytes, _ = _EXPORT.unpack(_receive(connection, _EXPORT.size))
    if served_bytes != size_bytes:
        raise BackendFailed(f"qemu-nbd offers {served_bytes} bytes, the image says {size_bytes}")


def _ask(connection: socket.socket, what: int, offset: int = 0, count: int = 0) -> None:
    """Send a request; its offset is its cookie."""
    send_all(memoryview(_REQUEST.pack(_REQUEST_MAGIC, 0, what, offset, offset, count)), connection.fileno())


def _take_answer(connection: socket.socket, lengths: dict[int, int], answers: dict[int, memoryview]) -> None:
    """Answers come in any order."""
    offset = _read_reply(connection, "read")
    if offset not in lengths:
        raise BackendFailed("qemu-nbd answers something else")
    answers[offset] = _receive(connection, lengths.pop(offset))


def _take_done(connection: socket.socket) -> int:
    """Returns: the number of requests that this answers."""
    _read_reply(connection, "write")
    return 1


def _read_reply(connection: socket.socket, what: str) -> int:
    magic, error, offset = _REPLY.unpack(_receive(connection, _REPLY.size))
    if magic != _REPLY_MAGIC:
        raise BackendFailed("qemu-nbd answers something else")
    if error:
        raise BackendFailed(f"qemu-nbd cannot {what} at {offset}: {os.strerror(error)}")
    return int(offset)


def _receive(connection: socket.socket, count: int) -> memoryview:
    buffer = memoryview(bytearray(count))
    if fill(connection.fileno(), buffer) < count:
        raise BackendFailed("qemu-nbd ended too early")
    return buffer
