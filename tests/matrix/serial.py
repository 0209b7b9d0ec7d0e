"""A VM's first serial port, listened to from the moment it is there."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from mtunnel_tx.cli.ticker import read_beats

AGAIN_S = 0.005


class Listener(threading.Thread):
    """Collects what a serial port says; `stopped` ends the waiting for it."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.text = b""
        self.stopped = False
        self.start()

    def run(self) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            while not self.stopped:
                try:
                    sock.connect(str(self.path))
                    break
                except OSError:
                    threading.Event().wait(AGAIN_S)
            with contextlib.suppress(OSError):
                while data := sock.recv(4096):
                    self.text += data

    @property
    def beats(self) -> list[tuple[int, str]]:
        """Every whole line: number and flag."""
        return read_beats(self.text)
