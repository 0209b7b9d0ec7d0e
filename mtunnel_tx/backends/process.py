"""QEMU as a process that outlives the program that started it.

QEMU runs in a session of its own. Its record, `VMID.pid`, is written before the start and again with the pid; a later
daemon finds the process by this record and sees its end through a pidfd. Since pids are reused, a process is
recognised by its start time, or by the token in its environment.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.backends.programs import boot_id, start_ticks
from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.waiting import Occasion, in_time

log = Logger()
VERSION = 1
TAIL_BYTES = 4096
STDERR_BYTES = 1 << 20
_PROC = Path("/proc")
MARK_VARIABLE = "MTUNNEL_MACHINE"
PLACE_VARIABLE = "MTUNNEL_RECORD"
"""In QEMU's environment: the token of its record, and the path of that record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """What is known about a QEMU.

    `pid` 0: the start was announced, and no pid is known. `started`: clock ticks since the boot `boot`. `token`: a
    value in its environment. `incoming`: it was started to receive another host's state. `sockets`: files to remove
    after its end.
    """

    token: str
    boot: str
    incoming: bool
    sockets: tuple[str, ...]
    pid: int = 0
    started: int = 0

    def with_process(self, pid: int) -> ProcessRecord:
        """The same record with a running process."""
        return replace(self, pid=pid, started=start_ticks(pid) or 0)


def new_record(*, incoming: bool, sockets: Sequence[Path]) -> ProcessRecord:
    """The record of a QEMU that is about to be started."""
    names = tuple(str(path) for path in sockets)
    return ProcessRecord(token=os.urandom(16).hex(), boot=boot_id(), incoming=incoming, sockets=names)


def restored_record(pid: int, *, token: str, incoming: bool, sockets: Sequence[Path]) -> ProcessRecord:
    """The record of a QEMU that runs, written again."""
    names = tuple(str(path) for path in sockets)
    return ProcessRecord(token=token, boot=boot_id(), incoming=incoming, sockets=names).with_process(pid)


def write_record(path: Path, record: ProcessRecord) -> None:
    """Replace the file; it need not survive a reboot, since no process does."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps({"version": VERSION, **asdict(record)}), "utf-8")
    temporary.replace(path)


def marks_of(record: ProcessRecord, path: Path) -> dict[str, str]:
    """The environment variables that a QEMU with this record, at this path, is found by."""
    return {MARK_VARIABLE: record.token, PLACE_VARIABLE: str(path)}


def read_record(path: Path) -> ProcessRecord | None:
    """The record; None: no file.

    Raises: BackendFailed: it cannot be read. A QEMU may run, so the caller must not remove anything.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
        if values.pop("version") != VERSION:
            raise BackendFailed(f"'{path}' is of another version of this program")
        return ProcessRecord(**{**values, "sockets": tuple(values["sockets"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BackendFailed(f"'{path}' cannot be understood") from error


def open_process(record: ProcessRecord) -> tuple[int, int] | None:
    """Find the process of a record.

    Returns: its pid and a pidfd; None: it has ended.
    """
    if record.boot != boot_id():
        return None
    pid = record.pid or _find_by_token(record.token)
    if not pid:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # Compare only once the pidfd pins the process: the pid may have been reused before that.
    if (record.pid and start_ticks(pid) != record.started) or has_ended(pidfd):
        os.close(pidfd)
        return None
    return pid, pidfd


def has_ended(pidfd: int) -> bool:
    """Whether the process has ended, reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _find_by_token(token: str) -> int:
    """The process whose environment has the token; 0: none. For a QEMU whose daemon died while it was started."""
    needle = f"{MARK_VARIABLE}={token}".encode("ascii")
    for folder in _PROC.iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and needle in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
    return 0


@implementer(IReadDescriptor)
class ProcessExit:
    """Reports the end of a process through its pidfd, which this object owns."""

    def __init__(self, reactor: Any, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._reactor = reactor
        self._pidfd = pidfd
        self._seen = False
        self._happening = Occasion()
        reactor.addReader(self)

    @property
    def happened(self) -> bool:
        """Whether the process has ended."""
        return self._seen or has_ended(self._pidfd)

    async def wait(self, wait_s: float) -> bool:
        """Wait at most `wait_s` seconds for the end. Returns: whether the process has ended."""
        return self.happened or await in_time(self._reactor, wait_s, self._happening.wait()) or self.happened

    def kill(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if not self._seen:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def forget(self) -> None:
        """Stop watching, and close the pidfd."""
        if not self._seen:
            self._seen = True
            self._reactor.removeReader(self)
            os.close(self._pidfd)

    def fileno(self) -> int:
        return self._pidfd

    def logPrefix(self) -> str:  # noqa: N802
        return "pidfd"

    def doRead(self) -> None:  # noqa: N802
        self.forget()
        log.info("QEMU ended, pid {pid}", pid=self.pid)
        self._happening.happen_soon(self._reactor)

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802, ARG002
        self.forget()


def listen_unix(path: Path) -> socket.socket:
    """A listening UNIX socket, mode 0600, to be handed to QEMU. Raises: BackendFailed."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(4)
    except OSError as error:
        listener.close()
        raise BackendFailed(f"unable to listen on '{path}': {error.strerror or error}") from error
    return listener


def plain_environ() -> dict[str, str]:
    """The environment of a program that needs nothing of ours."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def spawn_qemu(
    reactor: Any, argv: Sequence[str], marks: Mapping[str, str], stderr: Path, fds: Mapping[int, int]
) -> int:
    """Start QEMU in a session of its own.

    Args: marks: environment variables that the process is found by. stderr: the file for stdout and stderr, emptied
        first. fds: descriptor number in QEMU to our descriptor.
    Returns: its pid. Raises: BackendFailed: the system refuses.
    """
    environ = {**plain_environ(), **marks}
    null = os.open(os.devnull, os.O_RDWR)
    output = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    try:
        words = ["setsid", "--", *argv]
        given = {0: null, 1: output, 2: output, **fds}
        process = reactor.spawnProcess(ProcessProtocol(), "setsid", words, env=environ, childFDs=given)
    except (OSError, ValueError) as error:
        raise BackendFailed(f"unable to start QEMU: {error}") from error
    finally:
        os.close(null)
        os.close(output)
    return int(process.pid)


def read_reason(stderr: Path) -> str:
    """The last lines of a stderr file, joined; warnings only if there is nothing else."""
    try:
        with stderr.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.partition("qemu-system-x86_64: ")[2] or line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if not line.startswith("warning: ")]
    return clean("; ".join(errors or lines))


def bound_stderr(stderr: Path) -> None:
    """Empty the file when it has grown too long. QEMU opened it for appending, so it continues at the new end."""
    with suppress(OSError):
        if stderr.stat().st_size > STDERR_BYTES:
            os.truncate(stderr, 0)
