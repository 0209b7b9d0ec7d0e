"""This host's guests, storages, virtual machines and history, as its configuration describes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mtunnel_tx.backends.cpumodelsfile import cpu_models_file
from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.guests import GuestFiles
from mtunnel_tx.backends.host import HostFacts
from mtunnel_tx.backends.localmachines import LocalMachines
from mtunnel_tx.backends.proxmox import ProxmoxMachines
from mtunnel_tx.backends.storage import PvesmStorage
from mtunnel_tx.config import Settings
from mtunnel_tx.ports.holding import Store
from mtunnel_tx.watch.history import FILE, HistoryFile

KEPT_VARIABLES = (
    "HOME",
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
    "XDG_RUNTIME_DIR",
    "TMPDIR",
    "COVERAGE_PROCESS_START",
    "PYTHONPATH",
)
"""What a child needs to find the same files."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where a child looks for programs if nobody says; Proxmox's own are in `sbin`, where no shell's default looks."""


def make_environ(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child that works with the same configuration."""
    kept = {name: value for name, value in environ.items() if name in KEPT_VARIABLES}
    if settings.file is not None:
        kept["MTUNNEL_CONFIG"] = str(settings.file)
    return {**kept, "PATH": environ.get("PATH", SYSTEM_PATH), "LC_ALL": "C"}


def make_guests(threads: ReactorThreads, settings: Settings) -> GuestFiles:
    """The configs of this node."""
    places = {"pve_dir": settings.pve_dir, "lock_dir": settings.lock_dir}
    return GuestFiles(threads, threads.reactor, **places, node=settings.node)


def make_storage(
    reactor: Any, settings: Settings, *, owner: str | None = None, store: Store | None = None, keeps: bool = False
) -> PvesmStorage:
    """The storages of a node, driven through its `pvesm`, which finds the same configuration.

    Args: owner: what the children are known by; None: the daemon's, which ends them when it starts again. store: where
    imports run. keeps: our own pvesm runs on between its commands, until `close`.
    """
    return PvesmStorage(
        reactor,
        command=settings.commands.pvesm,
        environ=make_environ(settings, os.environ),
        pve_dir=settings.pve_dir,
        owner=owner or str(settings.state_dir),
        output_bytes=settings.limits.child_output_bytes,
        store=store,
        keeps=keeps,
    )


def make_machines(threads: ReactorThreads, settings: Settings, storage: PvesmStorage) -> LocalMachines:
    """The virtual machines of a host without Proxmox."""
    return LocalMachines(
        threads.reactor,
        threads=threads,
        facts=HostFacts(threads.reactor, os.environ),
        storage=storage,
        runtime_dir=settings.machine_dir,
        cpu_models=cpu_models_file(settings.pve_dir),
    )


def make_proxmox_machines(reactor: Any, settings: Settings, guests: GuestFiles) -> ProxmoxMachines:
    """The virtual machines of a Proxmox node."""
    return ProxmoxMachines(
        reactor,
        command=settings.commands.qm,
        environ=make_environ(settings, os.environ),
        guests=guests,
        folder=settings.machine_dir,
    )


def make_history(settings: Settings) -> HistoryFile:
    """The moves that are over."""
    limits = settings.limits
    return HistoryFile(settings.state_dir / FILE, most_rows=limits.history_rows, most_days=limits.history_days)
