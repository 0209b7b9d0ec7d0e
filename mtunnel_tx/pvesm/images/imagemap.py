"""Whether an image's file has all the data that the image says is in it, by `qemu-img map`."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.pve.imagefile import ImageRefused

_LIMITS = (f"--as={16 << 30}", "--cpu=14400")
_MAP_S = 24 * 3600
_LINE_BYTES = 4096


def refuse_missing_data(path: Path, format: str) -> None:
    """QEMU reads data behind the end of the file as zeros, and its check finds no fault in that.

    The map shows the state of now only: not what belongs to internal snapshots alone, nor where compressed data is.
    For qcow2 see `qcow2tables`, for compressed vmdk `qemuimg`.
    Raises: ImageRefused, BackendFailed.
    """
    length = path.stat().st_size
    with _map(path, format) as output:
        end = max(_data_ends(output), default=0)
    if end > length:
        raise ImageRefused(f"image is cut short: it ends at {length} of {end} bytes")


def _data_ends(output: IO[bytes]) -> Iterator[int]:
    """Each extent is a line of its own: the map of a large image is never in memory as a whole."""
    while line := output.readline(_LINE_BYTES):
        words = line.strip().strip(b"[],")
        extent = json.loads(words) if words else {}
        if extent.get("data") and "offset" in extent:
            yield extent["offset"] + extent["length"]


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
