"""The named formats of parameters: each tells what is wrong with a text, or None where nothing is.

Texts are Proxmox's own; protocol.md sections 1 and 4.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

_LIST_SEPARATORS = re.compile(r"[,;\s\0]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Format:
    """What a text must look like.

    Args: name: as Proxmox calls it. pattern: a regular expression that every such text matches as a whole, for
    descriptions of the API. complaint: takes a text; returns what is wrong with it, or None.
    """

    name: str
    pattern: str
    complaint: Callable[[str], str | None]

    def __call__(self, text: str) -> str | None:
        return self.complaint(text)


def _matching(name: str, pattern: str, complaint: str) -> Format:
    """A format whose pattern says all; `{text}` in its complaint is the text itself."""
    compiled = re.compile(pattern)
    return Format(name, pattern, lambda text: None if compiled.fullmatch(text) else complaint.format(text=text))


def split_list(text: str) -> tuple[str, ...]:
    """The items of a list in one text, split at `,` `;` blank NUL; none of them is empty."""
    return tuple(item for item in _LIST_SEPARATORS.split(text) if item)


def list_of(item: Format) -> Format:
    """A list whose every item is of a format; an empty list is one too."""

    def complain(text: str) -> str | None:
        return next(filter(None, map(item, split_list(text))), None)

    return Format(f"{item.name}-list", rf"[,;\s\0]*(({item.pattern})([,;\s\0]+|$))*", complain)


STORAGE_ID = _matching(
    "pve-storage-id", r"[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]", "storage ID '{text}' contains illegal characters"
)
"""A storage's name in storage.cfg."""
BRIDGE_ID = _matching("pve-bridge-id", r"[A-Za-z0-9_.-]+", "invalid bridge ID '{text}'")
"""The name of a network bridge."""
VMID = _matching("pve-vmid", r"[1-9][0-9]{2,8}", "value does not look like a valid VM ID")
"""The number of a guest, 100 to 999999999."""
NODE_NAME = _matching(
    "pve-node", r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", "value does not look like a valid node name"
)
"""The name of a cluster node: one label of a DNS name."""
CONFIG_ID = _matching(
    "pve-configid", r"[A-Za-z0-9][A-Za-z0-9._-]*", "value does not look like a valid configuration ID"
)
"""The name of a section in a configuration file."""

_PREFIX_LENGTH = re.compile(r"[0-9]{1,3}")


def _complain_of_cidr(text: str) -> str | None:
    address, _, length = text.partition("/")
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return _NO_CIDR
    fits = "%" not in address and _PREFIX_LENGTH.fullmatch(length) and 8 <= int(length) <= parsed.max_prefixlen
    return None if fits else _NO_CIDR


_NO_CIDR = "value does not look like a valid CIDR network"
CIDR = Format("CIDR", r"[0-9A-Fa-f.:]+/[0-9]{1,3}", _complain_of_cidr)
"""An address with the length of its network's prefix, IPv4 or IPv6; nothing shorter than /8."""
