"""The keys of a config that a command line sets."""

from __future__ import annotations

from collections.abc import Sequence

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BadRequest
from mtunnel_tx.guests.blueprint import checked
from mtunnel_tx.pve.drive import DRIVE_KEYS

INTERNAL = frozenset(
    {"lock", "parent", "digest", "snapstate", "snaptime", "vmstate", "runningmachine", "runningcpu", "meta"}
)
"""Keys that say what was done to a VM; nobody sets them by hand."""


def read_assignments(texts: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` words, checked; disks have commands of their own. Raises: BadRequest."""
    assigned = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not value:
            raise BadRequest(f"'{clean(text)}' is not KEY=VALUE")
        if key in DRIVE_KEYS or key in INTERNAL:
            raise BadRequest(f"{clean(key)}: cannot be set here")
        assigned[key] = checked(key, value)
    return assigned
