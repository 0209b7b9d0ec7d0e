"""Read an image as a raw disk through qemu-nbd, because qemu-img cannot convert into a pipe.

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
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.pvesm.signals import STOPPING, uninterrupted
from mtunnel_tx.pvesm.sparse import fill

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">I8sII")
_EXPORT = struct.Struct(">QH")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_REQUEST_MAGIC = 0x25609513
_REPLY_MAGIC = 0x67446698
_FIXED_NO_ZEROES = 3
_OPTION_EXPORT_NAME = 1
_READ, _DISCONNECT = 0, 2
_READ_BYTES = 1 << 20
_AHEAD = 2
_START_S = 30
_LISTEN_FD = 3
_WORDS_BYTES = 4096
_SET_DEATH_SIGNAL = 1


@contextmanager
def opened_image(path: Path, format: str) -> Iterator[socket.socket]:
    """Serve an image read-only on a private socket, connected already; qemu-nbd never outlives us.

    Raises: BackendFailed.
    """
    argv = ["qemu-nbd", "--read-only", f"--format={format}", "--", str(path)]
    listener, connection = _connected_pair()
    with connection, tempfile.TemporaryFile() as errors, _started(argv, listener, errors) as process:
        _await_greeting(connection, process, errors)
        yield connection


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
    errors.seek(0)
    raise BackendFailed(f"qemu-nbd failed: {errors.read(_WORDS_BYTES).decode('utf-8', 'replace').strip()}")


def read_disk(connection: socket.socket, size_bytes: int) -> Iterator[memoryview]:
    """Yields: the disk from its first byte to its last, 1 MiB at a time.

    Raises: BackendFailed: qemu-nbd answers wrongly, offers another size, cannot read, or is gone.
    """
    served_bytes = _shake_hands(connection)
    if served_bytes != size_bytes:
        raise BackendFailed(f"qemu-nbd offers {served_bytes} bytes, the image says {size_bytes}")
    lengths: dict[int, int] = {}
    answers: dict[int, memoryview] = {}
    asked = 0
    for offset in range(0, size_bytes, _READ_BYTES):
        while asked < min(size_bytes, offset + _AHEAD * _READ_BYTES):
            lengths[asked] = min(_READ_BYTES, size_bytes - asked)
            _ask(connection, asked, lengths[asked])
            asked += lengths[asked]
        while offset not in answers:
            _take_answer(connection, lengths, answers)
        yield answers.pop(offset)
    connection.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))


def _shake_hands(connection: socket.socket) -> int:
    """Returns: the disk's size in bytes."""
    magic, option_magic, _ = _GREETING.unpack(_receive(connection, _GREETING.size))
    if (magic, option_magic) != (b"NBDMAGIC", b"IHAVEOPT"):
        raise BackendFailed("qemu-nbd speaks another protocol")
    connection.sendall(_OPTION.pack(_FIXED_NO_ZEROES, option_magic, _OPTION_EXPORT_NAME, 0))
    size_bytes, _ = _EXPORT.unpack(_receive(connection, _EXPORT.size))
    return int(size_bytes)


def _ask(connection: socket.socket, offset: int, count: int) -> None:
    connection.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _READ, offset, offset, count))


def _take_answer(connection: socket.socket, lengths: dict[int, int], answers: dict[int, memoryview]) -> None:
    """Answers come in any order; each request's offset is its cookie."""
    magic, error, offset = _REPLY.unpack(_receive(connection, _REPLY.size))
    if magic != _REPLY_MAGIC or offset not in lengths:
        raise BackendFailed("qemu-nbd answers something else")
    if error:
        raise BackendFailed(f"qemu-nbd cannot read at {offset}: {os.strerror(error)}")
    answers[offset] = _receive(connection, lengths.pop(offset))


def _receive(connection: socket.socket, count: int) -> memoryview:
    buffer = memoryview(bytearray(count))
    if fill(connection.fileno(), buffer) < count:
        raise BackendFailed("qemu-nbd ended too early")
    return buffer
