"""An image read as a raw disk, in order, through qemu-nbd: qemu-img cannot convert into a pipe.

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
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
_RETRY_S = 0.01
_WORDS_BYTES = 4096
_SET_DEATH_SIGNAL = 1


@contextmanager
def opened_image(path: Path, format: str) -> Iterator[socket.socket]:
    """Serve an image read-only on a private socket and connect to it; qemu-nbd never outlives us.

    Raises: BackendFailed.
    """
    with tempfile.TemporaryDirectory(prefix="mtunnel-nbd-") as folder:
        place = f"{folder}/s"
        argv = ["qemu-nbd", "--read-only", f"--format={format}", f"--socket={place}", "--", str(path)]
        with (
            Path(folder, "errors").open("w+b") as errors,
            _started(argv, errors) as process,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
        ):
            _connect(connection, place, process, errors)
            yield connection


@contextmanager
def _started(argv: list[str], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        # A signal between its start and our knowing of it would leave it behind.
        with uninterrupted():
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                preexec_fn=partial(_die_with, os.getpid(), ctypes.CDLL(None)),
            )
    except OSError as error:
        raise BackendFailed(f"unable to start qemu-nbd: {error}") from error
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _die_with(parent: int, libc: ctypes.CDLL) -> None:
    """Runs in the child: the kernel ends it with its parent, which may be gone already."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _connect(connection: socket.socket, place: str, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    """As soon as it listens."""
    end_s = time.monotonic() + _START_S
    while True:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            return connection.connect(place)
        if process.poll() is not None:
            errors.seek(0)
            raise BackendFailed(f"qemu-nbd failed: {errors.read(_WORDS_BYTES).decode('utf-8', 'replace').strip()}")
        if time.monotonic() > end_s:
            raise BackendFailed(f"unable to start qemu-nbd: it does not listen after {_START_S} s")
        time.sleep(_RETRY_S)


def read_disk(connection: socket.socket, size_bytes: int) -> Iterator[memoryview]:
    """The disk from its first byte to its last; a MiB at a time.

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
