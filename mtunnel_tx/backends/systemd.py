"""What systemd wants to know of a service (sd_notify), and its journal's fields: both are datagrams, nothing waits.

Source: sd_notify(3), sd_watchdog_enabled(3), systemd.journal-fields(7), "Native Journal Protocol".
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.logger import LogEvent, formatEvent

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
PRIORITY_INFO = 6
IDENTIFIER = "mtunnel"


class Notifier:
    """Tells the service manager what state we are in; nothing where there is none.

    Args: environ: for NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID. pid: our own.
    """

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environ, pid) if self._address else None
        self._status = ""

    def ready(self) -> None:
        self._send("READY=1")

    def reloading(self) -> None:
        """To be followed by `ready`."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        """To be told at least twice in each `watchdog_s`."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; told when it changes."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def _send(self, *lines: str) -> None:
        if self._address:
            # A first @ stands for the zero byte of an abstract address.
            name = "\0" + self._address[1:] if self._address.startswith("@") else self._address
            _send_datagram(name, "\n".join(lines).encode())


def _watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    try:
        watchdog_s = int(environ.get("WATCHDOG_USEC", "")) / 1_000_000
        return watchdog_s if int(environ.get("WATCHDOG_PID", pid)) == pid and watchdog_s > 0 else None
    except ValueError:
        return None


class JournalObserver:
    """Sends some log events to the journal a second time, with their values as fields `MTUNNEL_NAME`.

    Args: namespace: whose events. fields: which of their values.
    """

    def __init__(self, namespace: str, fields: Sequence[str], path: Path = JOURNAL_SOCKET) -> None:
        self._namespace = namespace
        self._fields = fields
        self._path = path

    def is_heard(self, environ: Mapping[str, str]) -> bool:
        """Whether there is a journal."""
        return "JOURNAL_STREAM" in environ or self._path.exists()

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_namespace") == self._namespace:
            _send_datagram(str(self._path), encode_entry(self._entry(event)))

    def _entry(self, event: LogEvent) -> dict[str, Any]:
        own = {f"MTUNNEL_{name.upper()}": event[name] for name in self._fields if name in event}
        return {"MESSAGE": formatEvent(event), "PRIORITY": PRIORITY_INFO, "SYSLOG_IDENTIFIER": IDENTIFIER, **own}


def encode_entry(entry: Mapping[str, Any]) -> bytes:
    """One entry as the journal takes it: a value with line feeds has its length in front."""
    return b"".join(
        _encode_field(name.encode(), str(value).encode("utf-8", "replace")) for name, value in entry.items()
    )


def _encode_field(name: bytes, value: bytes) -> bytes:
    if b"\n" in value:
        return name + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return name + b"=" + value + b"\n"


def _send_datagram(name: str, data: bytes) -> None:
    """Send without waiting. Errors are ignored: the receiver may be gone or busy."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.setblocking(False)
        sock.sendto(data, name)
