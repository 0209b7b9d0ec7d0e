"""The bandwidth limit that holds for a migration (formats.md section 4)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtunnel_tx.checks import FormatError
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.needs import Need
from mtunnel_tx.pve.property import parse_property
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.storagecfg import StorageEntry

Limit = int | float | str
"""KiB/s; a text where it comes from a file, and whatever JSON had where the source sent it. 0: unlimited."""

_WISH = "for a limit of the source's own to count"
OVERRIDE_ALL = Need("/storage", ("Datastore.Allocate",), f"{_WISH} on any storage")
OVERRIDE_STORAGE = Need("/storage/{storage}", ("Datastore.Allocate",), f"{_WISH} on a storage")
OVERRIDE_DATACENTER = Need("/", ("Sys.Modify",), f"{_WISH} where the datacenter's does else")

_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?")


def effective_limit(
    entries: Mapping[str, StorageEntry],
    datacenter: str | None,
    rights: Rights,
    storages: Sequence[Any],
    operation: str | None,
    override: Limit | None,
) -> Limit | None:
    """The limit for an operation on some storages.

    Args: entries: of storage.cfg. datacenter: the `bwlimit` value of datacenter.cfg. storages: names, None is skipped.
        operation: `migration`, …; one without a limit of its own has the default one. override: what the source wants.
    Returns: None: no limit.
    Raises: TunnelError: `storage 'X' does not exist`.
    """
    named = tuple(dict.fromkeys(str(name) for name in storages if name is not None))

    def may_override(need: Need, **values: str) -> bool:
        return override is not None and need.is_met(rights, values)

    if named and may_override(OVERRIDE_ALL):
        return override
    counting = [name for name in named if not may_override(OVERRIDE_STORAGE, storage=name)]
    limits = [_read_limit(_find(entries, name).bwlimit, operation) for name in counting]
    if (not named or None in limits) and not may_override(OVERRIDE_DATACENTER):
        limits.append(_read_limit(datacenter, operation))
    return _choose(override, (limit for limit in limits if limit is not None))


def _find(entries: Mapping[str, StorageEntry], name: str) -> StorageEntry:
    if name not in entries:
        raise TunnelError(f"storage '{name}' does not exist")
    return entries[name]


def _read_limit(text: str | None, operation: str | None) -> str | None:
    """The operation's value in a limit string, else the default; what cannot be read is no limit, as in Proxmox."""
    try:
        limits = parse_property(text or "")
    except FormatError:
        return None
    limit = limits.get(operation or "default", limits.get("default"))
    return limit if limit is not None and _NUMBER.fullmatch(limit) else None


def _choose(override: Limit | None, limits: Iterator[str]) -> Limit | None:
    """The smallest, but 0 or nothing yields to any limit that comes after it."""
    chosen = override
    for limit in limits:
        if chosen is None or not float(chosen) or float(limit) < float(chosen):
            chosen = limit
    return chosen
