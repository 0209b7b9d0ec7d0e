"""This host as a source, as its configuration describes it."""

from __future__ import annotations

import os
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.journal import LEAVING, FileJournal
from mtunnel_tx.backends.programs import HostPrograms
from mtunnel_tx.config import Settings
from mtunnel_tx.config.host import make_private_directory
from mtunnel_tx.local import make_guests, make_machines, make_storage
from mtunnel_tx.source.links import LineListener


async def source_parts(reactor: Any, settings: Settings, progress: LineListener) -> dict[str, Any]:
    """The fields of a SourceHost. Raises: TunnelError: this host's VMs cannot be found."""
    # Known by another name than the daemon's children, which it ends when it starts again.
    storage = make_storage(reactor, settings, owner=f"{settings.state_dir}/leaving:{os.getpid()}", keeps=True)
    threads = ReactorThreads(reactor, reactor.getThreadPool())
    standalone = settings.profile == "standalone"
    # Where running VMs are Proxmox's, its own source sends them.
    machines = make_machines(threads, settings, storage) if standalone else None
    if machines is not None:
        make_private_directory(settings.machine_dir)
        await machines.find_all()
    return {
        "reactor": reactor,
        "guests": make_guests(threads, settings),
        "storage": storage,
        "running": machines.running if machines is not None else partial(is_running, settings.machine_dir),
        "machines": machines,
        "marks_moves": standalone,
        "runtime_dir": settings.runtime_dir,
        "journal": FileJournal(threads, settings.state_dir, LEAVING),
        "programs": HostPrograms(),
        "progress": progress,
        "wall_s": time.time,
    }


def is_running(monitors: Path, vmid: int) -> bool:
    """Whether anybody listens behind a VM's monitor socket; a QEMU that was killed leaves the file behind."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(monitors / f"{vmid}.qmp"))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
    return True
