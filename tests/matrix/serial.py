"""A VM's first serial port, listened to from the moment it is there."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from mtunnel_tx.demo.ticker import read_beats

AGAIN_S = 0.005


class Listener(threading.Thread):
    """Collects what a serial port says, whichever QEMU has it; `stopped` ends that."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.text = b""
        self.stopped = False
        self.start()

    def run(self) -> None:
        while not self.stopped:
            with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
                sock.connect(str(self.path))
                while data := sock.recv(4096):
                    self.text += data
            threading.Event().wait(AGAIN_S)

    @property
    def beats(self) -> list[tuple[int, str]]:
        """Every whole line: number and flag."""
        return read_beats(self.text)
