"""What `qemu-img map` tells: whether an image's file contains all its data, and which parts of the disk have any."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.pve.imagefile import ImageRefused

_LIMITS = (f"--as={16 << 30}", "--cpu=14400")
_MAP_S = 24 * 3600
_LINE_BYTES = 4096


def refuse_missing_data(path: Path, format: str) -> None:
    """Refuse an image that was cut short: QEMU reads missing data as zeros, and `qemu-img check` does not complain.

    The map shows the current state only, not data of internal snapshots or compressed data. Those are checked by
    `qcow2tables` (qcow2) and `qemuimg` (compressed vmdk).
    Raises: ImageRefused, BackendFailed.
    """
    length = path.stat().st_size
    with _map(path, format) as output:
        end = max(_data_ends(output), default=0)
    if end > length:
        raise ImageRefused(f"image is cut short: it ends at {length} of {end} bytes")


def data_ranges(path: Path, format: str) -> Generator[tuple[int, int], None, None]:
    """Yields: (start, end) of each part of the disk that is not known to be zeros. Raises: BackendFailed."""
    with _map(path, format) as output:
        for extent in _extents(output):
            if extent.get("data") and not extent.get("zero"):
                yield extent["start"], extent["start"] + extent["length"]


def _data_ends(output: IO[bytes]) -> Iterator[int]:
    return (
        extent["offset"] + extent["length"] for extent in _extents(output) if extent.get("data") and "offset" in extent
    )


def _extents(output: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Parse the map line by line (one extent each), so that a large map is never in memory as a whole."""
    while line := output.readline(_LINE_BYTES):
        if words := line.strip().strip(b"[],"):
            yield json.loads(words)


@contextmanager
def _map(path: Path, format: str) -> Iterator[IO[bytes]]:
    argv = ["prlimit", *_LIMITS, "--", "qemu-img", "map", "-f", format, "--output=json", "--", str(path)]
    environment = {**os.environ, "LC_ALL": "C"}
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment)
    timer = threading.Timer(_MAP_S, process.kill)
    timer.daemon = True
    timer.start()
    try:
        assert process.stdout is not None
        yield process.stdout
        if process.wait():
            raise BackendFailed(f"command 'qemu-img map' failed: exit code {process.returncode}")
    except ValueError as error:
        raise BackendFailed("qemu-img map tells something else") from error
    finally:
        timer.cancel()
        process.kill()
        process.communicate()
