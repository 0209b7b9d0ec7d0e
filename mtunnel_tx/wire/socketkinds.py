"""What the UNIX sockets of a tunnel are for; everything that depends on that is a field of a row here.

A socket is named by its VMID and the suffix of its kind: `100.storage`. On the wire the name has a folder in front
that never existed on this host; the tunnel looks it up (tunnel/sockets.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class SocketFolder(Enum):
    """Where a socket's file lies: in the folder of the tunnel's own sockets, or in that of QEMU's."""

    TUNNEL = auto()
    MACHINE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketKind:
    """One kind of socket.

    name: in a word, for people and metrics.
    urgent: carries few bytes, and somebody waits for each of them; they must not queue behind payload.
    single: takes one flow at a time: its owner accepts one connection.
    ends_both: the end of file of this socket ends both ways of its flow, not only its own.
    ends_both_at_source: the same for a Close frame that comes to the source; QEMU would go on sending there.
    """

    name: str
    suffix: str
    folder: SocketFolder = SocketFolder.TUNNEL
    urgent: bool = False
    single: bool = False
    ends_both: bool = False
    ends_both_at_source: bool = False


COMMANDS = SocketKind(name="commands", suffix=".mtunnel", urgent=True, single=True, ends_both=True)
DISK_IMPORT = SocketKind(name="disk-import", suffix=".storage", single=True)
MEMORY = SocketKind(
    name="memory",
    suffix=".migrate",
    folder=SocketFolder.MACHINE,
    single=True,
    ends_both=True,
    ends_both_at_source=True,
)
NBD = SocketKind(
    name="nbd", suffix="_nbd.migrate", folder=SocketFolder.MACHINE, ends_both=True, ends_both_at_source=True
)
FORWARDED = SocketKind(name="forwarded", suffix="")
"""A socket of another node, which alone knows its kind."""

SOCKET_KINDS = (COMMANDS, DISK_IMPORT, MEMORY, NBD)


def find_socket_kind(name: str) -> SocketKind:
    """The kind of a socket, by its name or path; FORWARDED where the name has no known suffix."""
    found = [kind for kind in SOCKET_KINDS if name.endswith(kind.suffix)]
    return max(found, key=lambda kind: len(kind.suffix), default=FORWARDED)
