"""The VLANs of a port of a bridge that filters them, told to the kernel by netlink.

Sources: rtnetlink(7); linux/if_bridge.h, linux/if_link.h (IFLA_AF_SPEC of the family AF_BRIDGE).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtunnel_tx.pve.nic import VLAN_MAX

_NETWORK = Path("/sys/class/net")
_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_VLAN_INFO = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_SETLINK, _DELLINK, _NLMSG_ERROR = 19, 17, 2
_REQUEST, _ACK = 0x1, 0x4
_AF_BRIDGE = 7
_AF_SPEC, _INFO = 26, 2
_PVID, _UNTAGGED, _BEGIN, _END = 0x2, 0x4, 0x8, 0x10
_ANSWER_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Vlans:
    """`native`: the VLAN of frames without a tag. `tagged`: ranges (first, last) of those that keep their tag."""

    native: int
    tagged: tuple[tuple[int, int], ...] = ()


def choose_vlans(tag: str | None, trunks: Sequence[tuple[int, int]]) -> Vlans:
    """What Proxmox gives a network card: its tag, and its trunks; without both, whatever there is."""
    if tag is not None:
        return Vlans(int(tag), tuple(trunks))
    return Vlans(1, tuple(trunks) or ((2, VLAN_MAX),))


def filters_vlans(bridge: str) -> bool:
    """Whether a bridge keeps VLANs apart (vlan_filtering)."""
    try:
        return (_NETWORK / bridge / "bridge" / "vlan_filtering").read_text().strip() == "1"
    except OSError:
        return False


def set_vlans(port: str, vlans: Vlans) -> None:
    """Give a bridge's port these VLANs and no others. Raises: OSError."""
    for request in requests(socket.if_nametoindex(port), vlans):
        _tell(request)


def requests(index: int, vlans: Vlans) -> tuple[bytes, bytes]:
    """What `bridge vlan del` and `add` of iproute2 would send for the port with this index."""
    added = b"".join(_range(first, last) for first, last in vlans.tagged)
    cleared = _request(_DELLINK, index, _range(1, VLAN_MAX))
    return cleared, _request(_SETLINK, index, added + _one(vlans.native, _PVID | _UNTAGGED))


def _range(first: int, last: int) -> bytes:
    return _one(first) if first == last else _one(first, _BEGIN) + _one(last, _END)


def _one(vlan: int, flags: int = 0) -> bytes:
    return _attribute(_INFO, _VLAN_INFO.pack(flags, vlan))


def _attribute(kind: int, data: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


def _request(kind: int, index: int, vlans: bytes) -> bytes:
    body = _IFINFO.pack(_AF_BRIDGE, 0, index, 0, 0) + _attribute(_AF_SPEC, vlans)
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK, 1, 0) + body


def _tell(request: bytes) -> None:
    """Send one request to the kernel, and read its answer. Raises: OSError: its refusal."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(request)
        answer = kernel.recv(_ANSWER_BYTES)
    _, kind, *_ = _HEADER.unpack_from(answer)
    (code,) = _ERROR.unpack_from(answer, _HEADER.size) if kind == _NLMSG_ERROR else (-errno.EPROTO,)
    if code:
        raise OSError(-code, os.strerror(-code))
