"""A second monitor in every QEMU of a node, so that a test sees what it does and when, whoever else talks to it."""

from __future__ import annotations

import json
import queue
import shutil
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtunnel_tx.backends.host import PROGRAM
from tests.patience import patience_s

_SHIM = """\
#!/bin/sh
# QEMU, with one more monitor.
case " $* " in
*" -no-user-config "*" -name "*) exec {qemu} "$@" -chardev socket,id=spy,path={folder}/$$.spy,server=on,wait=off \\
    -mon chardev=spy,mode=control ;;
*) exec {qemu} "$@" ;;
esac
"""
Span = tuple[float, float]
"""From when to when a guest ran, in seconds of the host's clock."""


def make_shim(folder: Path) -> None:
    """Put a program with QEMU's name into a folder, for the front of a PATH."""
    folder.mkdir()
    shim = folder / PROGRAM
    shim.write_text(_SHIM.format(qemu=shutil.which(PROGRAM), folder=folder))
    shim.chmod(0o755)


class Gone(Exception):
    """QEMU has ended."""


class Spy(threading.Thread):
    """One QEMU's second monitor; `spans`: when its guest ran; `migrated`: it was told to send its memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.pid = int(path.stem)
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(path))
        self._answers: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
        self._asking = threading.Lock()
        self._began: float | None = None
        self.spans: list[Span] = []
        self.gone = False
        self.migrated = threading.Event()
        self.start()
        self.ask("qmp_capabilities")
        if self.status() == "running" and self._began is None:
            self._began = time.time()

    def run(self) -> None:
        try:
            with self._sock.makefile("rb") as lines:
                for line in lines:
                    self._take(json.loads(line))
        except (OSError, ValueError):
            pass  # it was killed
        self.gone = True
        self._end(time.time())
        self._answers.put(None)

    def _take(self, message: Mapping[str, Any]) -> None:
        if "event" in message:
            at = message["timestamp"]["seconds"] + message["timestamp"]["microseconds"] / 1e6
            if message["event"] == "RESUME" and self._began is None:
                self._began = at
            if message["event"] in ("STOP", "SHUTDOWN"):
                self._end(at)
            if message["event"] == "MIGRATION":
                self.migrated.set()
        elif "QMP" not in message:
            self._answers.put(message)

    def _end(self, at: float) -> None:
        if self._began is not None:
            self.spans.append((self._began, at))
            self._began = None

    def all_spans(self) -> list[Span]:
        """Those that are over, and the one that is not."""
        return [*self.spans, *([(self._began, time.time())] if self._began is not None else [])]

    def ask(self, command: str, **arguments: Any) -> Any:
        """Raises: Gone."""
        with self._asking:
            try:
                self._sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            except OSError as error:
                raise Gone from error
            answer = self._answers.get(timeout=patience_s())
        if answer is None:
            raise Gone
        return answer["return"]

    def status(self) -> str:
        """`off` where it has ended."""
        try:
            return str(self.ask("query-status")["status"])
        except Gone:
            return "off"

    def migration(self) -> Mapping[str, Any]:
        """`query-migrate`."""
        try:
            return dict(self.ask("query-migrate"))
        except Gone:
            return {}

    def copied_bytes(self) -> int:
        """How much all mirrors have copied."""
        try:
            return sum(job["offset"] for job in self.ask("query-block-jobs"))
        except Gone:
            return 0

    def mirror_stands(self) -> bool:
        """Whether a mirror has failed and waits."""
        return any(job["io-status"] != "ok" for job in self.ask("query-block-jobs"))

    def limit_mirrors(self, limit_bytes_s: int) -> None:
        """How fast the disks may be copied from now on."""
        for job in self.ask("query-block-jobs"):
            self.ask("block-job-set-speed", device=job["device"], speed=limit_bytes_s)

    def limit_migration(self, limit_bytes_s: int) -> None:
        """How fast it may send its memory from now on."""
        self.ask("migrate-set-parameters", **{"max-bandwidth": limit_bytes_s})


def overlap_ms(here: list[Span], there: list[Span]) -> float:
    """For how long both ran."""
    return 1000 * sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in here for b in there)
