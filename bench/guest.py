"""The VM that moves in the benchmark: it counts, keeps random data on its disk, and changes its memory all the time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtunnel_tx.demo.live import Serial
from mtunnel_tx.demo.ticker import ticker

MIB = 1 << 20
MEMORY_MIB = 512
BALLAST_MIB = 384
"""Of its memory, what it has filled."""
DISK_BYTES = 1024 * MIB
DATA_BYTES = 768 * MIB
"""Of its disk, what is random data."""
SETTLED_BEATS = 20
"""It counts once its memory is filled."""
CONFIG = f"""\
boot: order=scsi0
memory: {MEMORY_MIB}
name: moved
scsi0: {{volume}},discard=on
scsihw: virtio-scsi-pci
serial0: socket
vga: serial0
"""


def write_disk(file: Path) -> None:
    """Its boot disk, new each time."""
    with file.open("wb") as disk:
        disk.write(ticker(BALLAST_MIB, 1))
        disk.seek(DISK_BYTES - DATA_BYTES)
        for _ in range(DATA_BYTES // (16 * MIB)):
            disk.write(os.urandom(16 * MIB))
        disk.truncate(DISK_BYTES)


@contextmanager
def counting(socket: Path) -> Iterator[Serial]:
    """Listen to its serial port."""
    serial = Serial(socket)
    try:
        yield serial
    finally:
        serial.stopped = True


def counts(serial: Serial) -> bool:
    """Whether it is up and its memory filled."""
    return len(serial.beats) >= SETTLED_BEATS
