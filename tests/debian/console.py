"""A person at a VM's serial port, as far as one can be played."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

from tests.patience import patience_s

_PAUSE_S = 0.5
_SHOWN = 2000


class Console:
    """Types into a serial port and reads what comes; `text` is all of it."""

    def __init__(self, path: Path, wait_s: float = 60.0) -> None:
        end_s = time.monotonic() + patience_s(wait_s)
        while not path.exists() and time.monotonic() < end_s:
            time.sleep(_PAUSE_S)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._socket.settimeout(_PAUSE_S)
        self.text = ""
        self._seen = 0

    def close(self) -> None:
        self._socket.close()

    def type(self, line: str) -> None:
        self._socket.sendall(line.encode() + b"\r")

    def expect(self, pattern: str, wait_s: float = 60.0) -> re.Match[str]:
        """Wait for text behind that of the last call. Raises: AssertionError: it does not come."""
        end_s = time.monotonic() + patience_s(wait_s)
        while time.monotonic() < end_s:
            if found := re.compile(pattern).search(self.text, self._seen):
                self._seen = found.end()
                return found
            self._read()
        raise AssertionError(f"no {pattern!r} at the console, but: {self.text[-_SHOWN:]}")

    def _read(self) -> None:
        try:
            self.text += self._socket.recv(65536).decode("utf-8", "replace")
        except TimeoutError:
            return

    def log_in(self, user: str, password: str, wait_s: float) -> None:
        """Wait for the end of cloud-init, which makes the user, then log in."""
        self.expect(r"Cloud-init v.*? finished", wait_s)
        self.type("")
        self.expect(r"login: ")
        self.type(user)
        self.expect(r"Password: ")
        self.type(password)
        self.expect(r"\$ ")

    def run(self, command: str, wait_s: float = 60.0) -> str:
        """Run a shell command. Returns: what it prints."""
        # The echo of what is typed has no digits behind the first mark.
        self.type(f"echo '<'$((0))'<'; {command}; echo '>'$((0))'>'")
        return self.expect(r"<0<\s*([^\0]*?)\s*>0>", wait_s)[1].replace("\r", "")
