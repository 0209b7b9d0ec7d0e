"""The named formats of parameters: the checks of `checks.py`, with what a description of the API says of them."""

from __future__ import annotations

from dataclasses import dataclass

from mtunnel_tx import checks
from mtunnel_tx.checks import Check

MOST_DISKS = 512
"""Of one VM in a request: every drive that a config can have, the unused ones included, is fewer."""


@dataclass(frozen=True, slots=True)
class Format:
    """What a text must look like.

    Args: name: as Proxmox calls it. pattern: a regular expression that every such text matches as a whole. check: the
    check itself.
    """

    name: str
    pattern: str
    check: Check


def list_of(item: Format) -> Format:
    """A list whose every item is of a format; an empty list is one too."""
    # Not \s: in a JSON schema it means Unicode's blanks, too.
    pattern = rf"[,; \t-\r\0]*(({item.pattern})([,; \t-\r\0]+|$))*"
    return Format(f"{item.name}-list", pattern, checks.list_of(item.check))


BRIDGE_ID = Format("pve-bridge-id", checks.BRIDGE_ID, checks.bridge_id)
"""The name of a network bridge."""
CIDR = Format("CIDR", r"[0-9A-Fa-f.:]+/[0-9]{1,3}", checks.cidr)
"""An address with the length of its network's prefix, IPv4 or IPv6; nothing shorter than /8."""
CPU_MODEL = Format(
    "pve-configid",
    _MODEL := r"[A-Za-z0-9][A-Za-z0-9._-]*",
    checks.pattern(_MODEL, "value does not look like a valid configuration ID"),
)
"""The name of a custom CPU model."""
NODE_NAME = Format("pve-node", checks.NODE_NAME, checks.node_name)
"""The name of a cluster node: one label of a DNS name."""
STORAGE_ID = Format("pve-storage-id", checks.STORAGE_ID, checks.storage_id)
"""A storage's name in storage.cfg."""
VMID = Format("pve-vmid", checks.VMID, checks.vmid)
"""The number of a guest, 100 to 999999999."""
