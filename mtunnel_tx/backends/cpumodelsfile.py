"""The CPU models of this host's administrator: `cpu-models.conf` of Proxmox's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from twisted.logger import Logger

from mtunnel_tx.backends.files import CachedFile
from mtunnel_tx.pve.cpumodels import parse_cpu_models

log = Logger()
CpuModelsFile = CachedFile[Mapping[str, Mapping[str, str]]]


def cpu_models_file(pve_dir: Path) -> CpuModelsFile:
    """The file below `pve_dir`; a missing one has no models, and what cannot be read in it is logged."""
    file = pve_dir / "virtual-guest" / "cpu-models.conf"

    def warn(reason: str) -> None:
        log.warn("{file}: {reason}", file=str(file), reason=reason)

    return CachedFile(file, lambda text: parse_cpu_models(text, warn))
