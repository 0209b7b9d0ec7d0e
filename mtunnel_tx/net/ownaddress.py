"""Whether an address is one of this host."""

from __future__ import annotations

import socket
from ipaddress import ip_address

_ANY_PORT = 9


def is_this_host(address: str) -> bool:
    """Whether a client with that address (net.admission.address_of) is on this host: also by a UNIX socket.

    A client that connects to one of its own host's addresses comes from that address. Nobody else can: who only writes
    such an address into packets never gets the answers, so that no TCP connection comes about.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return address == "local"
    return parsed.is_loopback or _source_for(address, parsed.version) == address


def _source_for(address: str, version: int) -> str:
    """From which address this host would send there; empty where it cannot. Nothing is sent."""
    with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((address, _ANY_PORT))
            return str(sock.getsockname()[0])
        except OSError:
            return ""
