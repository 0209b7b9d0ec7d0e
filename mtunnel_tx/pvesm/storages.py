"""Find a storage by its id and make the driver of its type."""

from __future__ import annotations

from mtunnel_tx.config import Settings
from mtunnel_tx.errors import BackendFailed, NotFound, TunnelError
from mtunnel_tx.pve.storagecfg import StorageEntry, parse_storage_config
from mtunnel_tx.pvesm.driver import Driver
from mtunnel_tx.pvesm.types import DRIVERS


def open_storage(settings: Settings, storage: str, content: str | None = None) -> Driver:
    """Find a storage and check that it is enabled, on this node, takes `content`, and can be used.

    Raises: TunnelError: the texts of protocol.md section 6; BackendFailed: it cannot be used.
    """
    driver = find_storage(settings, storage)
    if not driver.entry.enabled:
        raise TunnelError(f"storage '{storage}' is disabled")
    if not driver.entry.on_node(settings.node):
        raise TunnelError(f"storage '{storage}' is not available on node '{settings.node}'")
    if content is not None and content not in driver.entry.content:
        raise TunnelError(f"storage '{storage}' does not support vm {content}")
    problem = driver.find_problem()
    if problem:
        raise BackendFailed(f"unable to activate storage '{storage}' - {problem}")
    return driver


def find_storage(settings: Settings, storage: str) -> Driver:
    """Raises: NotFound: no such storage; BackendFailed: one of a type that only Proxmox's own pvesm can drive."""
    entry = read_entries(settings).get(storage)
    if entry is None:
        raise NotFound(f"storage '{storage}' does not exist")
    driver = make_driver(settings, entry)
    if driver is None:
        types = ", ".join(f"'{type}'" for type in DRIVERS)
        raise BackendFailed(f"storage '{storage}' has type '{entry.type}', mtunnel-pvesm drives type {types} only")
    return driver


def make_driver(settings: Settings, entry: StorageEntry) -> Driver | None:
    """Returns: the driver; None: mtunnel-pvesm cannot drive this type."""
    make = DRIVERS.get(entry.type)
    return make(settings, entry) if make else None


def read_entries(settings: Settings) -> dict[str, StorageEntry]:
    """Read storage.cfg; a missing file has no storages. Raises: BackendFailed."""
    file = settings.pve_dir / "storage.cfg"
    try:
        return parse_storage_config(file.read_text("utf-8", "replace"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BackendFailed(f"unable to read '{file}': {error.strerror}") from error
