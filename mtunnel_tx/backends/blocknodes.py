"""The block nodes of a QEMU by its command line, and how holes get into those that another host fills.

QEMU writes zeros where a mirror's source has a hole. In a raw file they take space, unless the file's nodes may unmap;
the config says whether the guest may have that, so it is until the guest runs here only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.backends.qmp import Monitor
from mtunnel_tx.errors import TunnelError

log = Logger()
REOPEN_S = 5.0
_OPTION = "-blockdev"
_DISK = "drive-"
_FILTERS = frozenset({"throttle", "raw"})

Node = Mapping[str, Any]


def read_words(pid: int) -> list[str]:
    """The command line of a process; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


async def let_unmap(monitor: Monitor, pid: int, names: Iterable[str]) -> None:
    """Let zeros become holes in those of these nodes that are thin raw files. Args: names: `drive-scsi0`, …"""
    wanted = frozenset(names)
    for node in _find_nodes(pid):
        if node["node-name"] in wanted and _has_holes(_file_of(node)):
            await _reopen(monitor, _with_discard(node, "unmap"))


async def restore(monitor: Monitor, pid: int) -> None:
    """Open these nodes as the command line says, once the guest runs: it does not stand still for that."""
    for node in _find_nodes(pid):
        await _reopen(monitor, node)


def _find_nodes(pid: int) -> Iterator[Node]:
    """Disks in raw files that may not unmap. Blocks for a moment."""
    for option, value in pairwise(read_words(pid)):
        if option == _OPTION and value.startswith("{"):
            node = json.loads(value)
            is_disk = str(node.get("node-name")).startswith(_DISK) and not node.get("read-only")
            if is_disk and node.get("discard") == "ignore" and _file_of(node):
                yield node


def _file_of(node: Node) -> str:
    """Empty: it is no raw file."""
    while node["driver"] in _FILTERS:
        node = node["file"]
    return str(node["filename"]) if node["driver"] == "file" else ""


def _has_holes(file: str) -> bool:
    """One that was allocated as a whole shall stay so."""
    try:
        status = Path(file).stat()
    except OSError:
        return False
    return status.st_blocks * 512 < status.st_size


def _with_discard(node: Node, discard: str) -> Node:
    changed = {**node, "discard": discard}
    return {**changed, "file": _with_discard(node["file"], discard)} if isinstance(node.get("file"), dict) else changed


async def _reopen(monitor: Monitor, node: Node) -> None:
    """A disk that takes more space than it needs is no reason to end a move, nor to doubt that the guest runs."""
    try:
        await monitor.call("blockdev-reopen", {"options": [node]}, wait_s=REOPEN_S)
    except TunnelError as error:
        log.warn("{node} was not opened anew: {reason}", node=node["node-name"], reason=error.text)
