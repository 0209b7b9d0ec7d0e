"""Network devices of a guest: `MODEL=MAC[,key=value]…` (formats.md section 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mtunnel_tx.checks import Check, FormatError, boolean, bridge_id, enum, formatted, integer, number, pattern
from mtunnel_tx.pve.property import PropertyFormat, format_property, parse_property

NIC_MODELS = (
    "e1000",
    "e1000-82540em",
    "e1000-82544gc",
    "e1000-82545em",
    "e1000e",
    "i82551",
    "i82557b",
    "i82559er",
    "ne2k_isa",
    "ne2k_pci",
    "pcnet",
    "rtl8139",
    "virtio",
    "vmxnet3",
)
RANGES = r"[0-9]{1,9}(?:-[0-9]{1,9})?(?:;[0-9]{1,9}(?:-[0-9]{1,9})?)*"
"""Numbers and ranges of numbers: VLANs, CPUs, NUMA nodes."""
VLAN_MAX = 4094
_MAC = pattern(
    r"[a-fA-F0-9][02468aceACE](?::[a-fA-F0-9]{2}){5}", "value does not look like a valid unicast MAC address"
)
_CHECKS: dict[str, Check] = {
    "model": enum(*NIC_MODELS),
    "macaddr": formatted(_MAC),
    "bridge": formatted(bridge_id),
    "firewall": boolean,
    "host-tunnel": boolean,
    "link_down": boolean,
    "mtu": integer(1, 65520),
    "queues": integer(0, 64),
    "rate": number(0),
    "tag": integer(1, VLAN_MAX),
    "trunks": pattern(RANGES),
}
_FORMAT = PropertyFormat(checks=_CHECKS, default_key="model", required=frozenset({"model"}))


def vlan_ranges(text: str) -> list[tuple[int, int]]:
    """`2;7-9` as (first, last) of each range, as far as there are such VLANs; in order, and joined where they touch."""
    ranges: list[tuple[int, int]] = []
    for part in filter(None, text.split(";")):
        first, _, last = part.partition("-")
        ends = sorted((int(first), int(last or first)))
        if ends[0] <= VLAN_MAX and ends[1] > 0:
            ranges.append((max(1, ends[0]), min(VLAN_MAX, ends[1])))
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        else:
            joined.append((low, high))
    return joined


def parse_nic(text: str) -> dict[str, str]:
    """Read the value of a netN key; `virtio=MAC` is model and MAC at once.

    Returns: `model`, and what is there of `macaddr`, `bridge`, `tag`, `trunks`, ….
    Raises: FormatError.
    """
    values: dict[str, str] = {}
    for key, value in parse_property(text, "model").items():
        pairs = {"model": key, "macaddr": value} if key in NIC_MODELS else {key: value}
        if values.keys() & pairs.keys():
            raise FormatError("key alias 'model' is already defined")
        values |= pairs
    for key in values.keys() - _CHECKS.keys():
        raise FormatError(f"invalid key in comma-separated list property: {key}")
    return _FORMAT.check(values)


def check_nic(text: str) -> str:
    """Check the value of a netN key; it is kept as it was written."""
    parse_nic(text)
    return text


def format_nic(nic: Mapping[str, str]) -> str:
    """Write the value of a netN key: `MODEL=MAC` first, then the other keys sorted by name."""
    others = {key: value for key, value in nic.items() if key not in ("model", "macaddr")}
    if "macaddr" not in nic:
        return format_property({"model": nic["model"], **others}, "model")
    return ",".join(filter(None, [f"{nic['model']}={nic['macaddr']}", format_property(others)]))


def make_mac(random_bytes: Callable[[int], bytes]) -> str:
    """A MAC address in the range that is Proxmox's own: `BC:24:11:…`."""
    return "BC:24:11:" + random_bytes(3).hex(":").upper()
