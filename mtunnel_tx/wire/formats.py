"""The named formats of parameters: each tells what is wrong with a text, or None where nothing is.

Texts are Proxmox's own; protocol.md sections 1 and 4.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

Format = Callable[[str], str | None]

_LIST_SEPARATORS = re.compile(r"[,;\s\0]+", re.ASCII)
_STORAGE_ID = re.compile(r"[a-z][a-z0-9_.-]*[a-z0-9]", re.IGNORECASE | re.ASCII)
_BRIDGE_ID = re.compile(r"[A-Za-z0-9_.-]+")
_VMID = re.compile(r"[1-9][0-9]{2,8}")
_NODE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?")
_PREFIX_LENGTH = re.compile(r"[0-9]{1,3}")


def split_list(text: str) -> tuple[str, ...]:
    """The items of a list in one text, split at `,` `;` blank NUL; none of them is empty."""
    return tuple(item for item in _LIST_SEPARATORS.split(text) if item)


def list_of(check: Format) -> Format:
    """A list whose every item is of a format; an empty list is one too."""

    def check_items(text: str) -> str | None:
        return next(filter(None, map(check, split_list(text))), None)

    return check_items


def storage_id(text: str) -> str | None:
    """A storage's name in storage.cfg."""
    return None if _STORAGE_ID.fullmatch(text) else f"storage ID '{text}' contains illegal characters"


def bridge_id(text: str) -> str | None:
    """The name of a network bridge."""
    return None if _BRIDGE_ID.fullmatch(text) else f"invalid bridge ID '{text}'"


def vmid(text: str) -> str | None:
    """The number of a guest, 100 to 999999999."""
    return None if _VMID.fullmatch(text) else "value does not look like a valid VM ID"


def node_name(text: str) -> str | None:
    """The name of a cluster node: one label of a DNS name."""
    return None if _NODE.fullmatch(text) else "value does not look like a valid node name"


def cidr(text: str) -> str | None:
    """An address with the length of its network's prefix, IPv4 or IPv6; nothing shorter than /8."""
    return None if _is_cidr(text) else "value does not look like a valid CIDR network"


def _is_cidr(text: str) -> bool:
    address, _, length = text.partition("/")
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if "%" in address or not _PREFIX_LENGTH.fullmatch(length):
        return False
    return 8 <= int(length) <= parsed.max_prefixlen
