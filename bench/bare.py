"""`python -m bench.bare FOLDER [MEMORY DISK]`: a running VM moves between two QEMUs on UNIX sockets.

There is nothing in between; or the source uses two other sockets, which lead to those of the target. The QEMUs, their
command lines and what they are told are those of `mtunnel migrate --online`. Prints a line of JSON: `took_s` from the
target's start to the VM's life there, `downtime_ms` as QEMU has it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater, react

from bench.guest import CONFIG, DISK_BYTES, counting, counts, write_disk
from mtunnel_tx.backends.cpumodelsfile import cpu_models_file
from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.host import HostFacts
from mtunnel_tx.backends.qemu import QemuMachines
from mtunnel_tx.ports.machines import Incoming
from mtunnel_tx.ports.storage import Storage
from mtunnel_tx.pve.guestconf import parse_guest_config
from mtunnel_tx.pve.storagecfg import StorageEntry

HERE, THERE = 100, 200


class Volumes:
    """Of a storage what a hypervisor asks for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def path(self, volid: str) -> str:
        return str(self._folder / volid.rpartition("/")[2])

    async def refers_elsewhere(self, _volid: str) -> None:
        return None

    def config(self) -> dict[str, StorageEntry]:
        return {}


def sockets_there(folder: Path) -> tuple[Path, Path]:
    """Where the target in a folder waits for memory, and for the disk."""
    return folder / f"there/{THERE}.migrate", folder / f"there/{THERE}_nbd.migrate"


async def move(reactor: Any, folder: Path, *between: Path) -> dict[str, float]:
    """Args: between: what leads to the target's sockets, if they are not to be used. Returns: took_s, downtime_ms.

    Raises: TunnelError.
    """
    here, there = (_machines(reactor, folder, name) for name in ("here", "there"))
    write_disk(folder / "here-100.raw")
    (folder / "there-200.raw").touch()
    os.truncate(folder / "there-200.raw", DISK_BYTES)
    memory, disk = sockets_there(folder)
    incoming = Incoming(
        migrate_socket=memory,
        nbd_socket=disk,
        exports={"scsi0": "local:200/there-200.raw"},
        from_node="here",
    )
    try:
        await here.local_start(HERE, parse_guest_config(CONFIG.format(volume="local:100/here-100.raw")), _unheard)
        with counting(folder / f"here/{HERE}.serial0") as serial:
            while not counts(serial):
                await deferLater(reactor, 0.05, lambda: None)
        began_s = time.monotonic()
        conf = parse_guest_config(CONFIG.format(volume="local:200/there-200.raw"))
        await there.start(THERE, conf, incoming, _unheard)
        downtime_ms = await _send(here, *(between or (memory, disk)))
        await there.stop_nbd(THERE)
        await there.resume(THERE)
        took_s = time.monotonic() - began_s
    finally:
        await here.stop(HERE)
        await there.stop(THERE)
    return {"took_s": took_s, "downtime_ms": downtime_ms}


async def _send(here: QemuMachines, memory: Path, disk: Path) -> float:
    async with here.attached(HERE) as running:
        await running.start_mirror("scsi0", disk, "drive-scsi0")
        await running.until_ready()
        await running.start_migration(memory)
        await running.until_switchover()
        await running.complete_mirrors()
        await running.switch_over()
        progress = await running.progress()
    return progress.downtime_ms


def _machines(reactor: Any, folder: Path, name: str) -> QemuMachines:
    (folder / name).mkdir(mode=0o700)
    return QemuMachines(
        reactor,
        threads=ReactorThreads(reactor, reactor.getThreadPool()),
        facts=HostFacts(reactor, {"PATH": os.environ.get("PATH", os.defpath)}),
        storage=cast(Storage, Volumes(folder)),
        runtime_dir=folder / name,
        cpu_models=cpu_models_file(folder),
    )


def _unheard(_line: str) -> None:
    """Reports are of no interest here."""


async def _print(reactor: Any, *paths: str) -> None:
    print(json.dumps(await move(reactor, *map(Path, paths))))


if __name__ == "__main__":
    react(lambda reactor, *words: ensureDeferred(_print(reactor, *words)), sys.argv[1:])
