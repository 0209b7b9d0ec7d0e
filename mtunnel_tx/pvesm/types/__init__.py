"""The storage types that mtunnel-pvesm drives: one module each (see `driver.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mtunnel_tx.config import Settings
from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.pvesm.driver import Driver
from mtunnel_tx.pvesm.types.dir import DirDriver

DRIVERS: Mapping[str, Callable[[Settings, StorageEntry], Driver]] = {
    "dir": DirDriver,
}
