"""Tap devices, created here and passed to QEMU as descriptors; the kernel removes them when QEMU ends.

QEMU runs in a sandbox and cannot start a script that would create them.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtunnel_tx.backends.vlans import Vlans, choose_vlans, filters_vlans, set_vlans
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.pve.nic import vlan_ranges

_TUN = Path("/dev/net/tun")
_NETWORK = Path("/sys/class/net")
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_MULTI_QUEUE, _IFF_VNET_HDR = 0x0002, 0x1000, 0x0100, 0x4000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU, _SIOCBRADDIF = 0x8913, 0x8914, 0x8922, 0x89A2
_SIOCGIFHWADDR, _SIOCSIFHWADDR = 0x8927, 0x8924
_IFF_UP = 0x0001
_HIGH_MAC = 0xFE
_NAME_BYTES = 15


def open_tap(name: str, bridge: str, queues: int = 1, *, tag: str | None = None, trunks: str = "") -> list[int]:
    """Create a tap device with the MTU of a bridge, and add it to the bridge.

    Args: tag: the VLAN of the guest's frames; trunks: more of them, `2;7-9`, whose tags the guest sees.
    Returns: one descriptor for each queue; the device exists while one of them is open.
    Raises: BackendFailed: there is no such bridge, it does not do what is asked for, or it is not allowed.
    """
    if "/" in bridge or not (_NETWORK / bridge / "bridge").is_dir():
        raise BackendFailed(f"there is no bridge '{bridge}' on this host")
    filters = filters_vlans(bridge)
    if not filters and (tag or trunks):
        remedy = f"ip link set {bridge} type bridge vlan_filtering 1"
        raise BackendFailed(f"bridge '{bridge}' does not keep VLANs apart; what does it: {remedy}")
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
            _attach(fds[-1], name, several=queues > 1)
        _plug(name, bridge, choose_vlans(tag, vlan_ranges(trunks)) if filters else None)
    except OSError as error:
        close_all(fds)
        raise BackendFailed(f"unable to plug '{name}' into bridge '{bridge}': {error.strerror}") from error
    except BaseException:
        close_all(fds)
        raise
    return fds


def close_all(fds: list[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def list_bridges() -> list[str]:
    """The bridges of this host, sorted."""
    return sorted(folder.parent.name for folder in _NETWORK.glob("*/bridge"))


def bridge_mtu(bridge: str) -> int:
    """Raises: BackendFailed: there is no such bridge."""
    try:
        return int((_NETWORK / bridge / "mtu").read_text())
    except OSError as error:
        raise BackendFailed(f"there is no bridge '{bridge}' on this host") from error


def _attach(fd: int, name: str, *, several: bool) -> None:
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if several else 0)
    fcntl.ioctl(fd, _TUNSETIFF, _request(name, flags))


def _request(name: str, flags: int = 0) -> bytes:
    """A `struct ifreq` with a short in it."""
    return struct.pack("16sH22x", name.encode("ascii")[:_NAME_BYTES], flags)


def _plug(name: str, bridge: str, vlans: Vlans | None) -> None:
    mtu = bridge_mtu(bridge)
    with _control() as control:
        # A bridge takes the lowest address of its ports as its own; a high one keeps the bridge's address.
        address = bytearray(fcntl.ioctl(control, _SIOCGIFHWADDR, _request(name)))
        address[18] = _HIGH_MAC
        fcntl.ioctl(control, _SIOCSIFHWADDR, bytes(address))
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si20x", name.encode("ascii"), mtu))
        index = socket.if_nametoindex(name)
        fcntl.ioctl(control, _SIOCBRADDIF, struct.pack("16si20x", bridge.encode("ascii"), index))
        if vlans is not None:
            set_vlans(name, vlans)
        reply = fcntl.ioctl(control, _SIOCGIFFLAGS, _request(name))
        (flags,) = struct.unpack_from("H", reply, 16)
        fcntl.ioctl(control, _SIOCSIFFLAGS, _request(name, flags | _IFF_UP))


@contextmanager
def _control() -> Iterator[int]:
    """A socket for ioctl calls on network interfaces."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        yield control.fileno()
