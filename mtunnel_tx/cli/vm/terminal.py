"""This terminal, joined with a UNIX socket until Ctrl-] or the other side's end."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from mtunnel_tx.cli.program import SIGNALLED, STOPPING

DETACH = b"\x1d"
"""Ctrl-]"""
_BYTES = 1 << 16


def attach(path: Path, what: str) -> int:
    """Join standard input and output with a socket.

    Returns: the exit status: 1 where the other side hung up. Raises: SystemExit: at a signal, as of a closed terminal.
    """
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        print(f"mtunnel vm: {what}; Ctrl-] leaves it", file=sys.stderr, flush=True)
        with _ended_by_signals(), _raw(sys.stdin.fileno()):
            detached = _carry(peer, sys.stdin.fileno(), sys.stdout.fileno())
    print(f"\nmtunnel vm: {'left it' if detached else 'it was closed'}", file=sys.stderr)
    return 0 if detached else 1


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Leave the block, so that the terminal is put back, and the port is free for the next one."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(SIGNALLED + number)

    before = {number: signal.signal(number, leave) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Have each key passed on as it is, where it is a terminal."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _carry(peer: socket.socket, source: int, sink: int) -> bool:
    """Returns: it was left from here; else the other side hung up. The end of our input does not end it."""
    waiting = [peer.fileno(), source]
    while True:
        ready, _, _ = select.select(waiting, [], [])
        if source in ready:
            data = os.read(source, _BYTES)
            if not data:
                waiting.remove(source)
            before, key, _ = data.partition(DETACH)
            peer.sendall(before)
            if key:
                return True
        if peer.fileno() in ready:
            data = peer.recv(_BYTES)
            if not data:
                return False
            _write_all(sink, data)


def _write_all(sink: int, data: bytes) -> None:
    while data:
        data = data[os.write(sink, data) :]
