"""What the two HTTP calls of a tunnel take (protocol.md section 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mtunnel_tx.checks import split_list
from mtunnel_tx.wire.formats import BRIDGE_ID, NODE_NAME, STORAGE_ID, VMID, list_of
from mtunnel_tx.wire.schema import Integer, Object, ParameterSet, Property, String

NODE: Mapping[str, Property] = {
    "node": Property(String(format=NODE_NAME), "the node, by its own name or as `localhost`", True)
}
VM: Mapping[str, Property] = {
    **NODE,
    "vmid": Property(Integer(format=VMID, minimum=100, maximum=999_999_999), "the guest's number", True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MtunnelCall:
    """`POST …/mtunnel`: the VM to make, the storages and bridges it will want."""

    node: str
    vmid: int
    storages: tuple[str, ...]
    bridges: tuple[str, ...]


def _mtunnel(node: str, vmid: int, storages: str, bridges: str) -> MtunnelCall:
    return MtunnelCall(node=node, vmid=vmid, storages=split_list(storages), bridges=split_list(bridges))


MTUNNEL = ParameterSet(
    Object(
        {
            **VM,
            "storages": Property(String(format=list_of(STORAGE_ID)), "the storages that it will use", default=""),
            "bridges": Property(String(format=list_of(BRIDGE_ID)), "the bridges that it will use", default=""),
        }
    ),
    _mtunnel,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebsocketCall:
    """`GET …/mtunnelwebsocket`: the wire name of a socket, and a ticket for it."""

    node: str
    vmid: int
    socket: str
    ticket: str = field(repr=False)


WEBSOCKET = ParameterSet(
    Object(
        {
            **VM,
            "socket": Property(String(), "the wire name of the socket that the websocket leads to", True),
            "ticket": Property(String(), "a ticket for this socket, not older than 40 s", True),
        }
    ),
    WebsocketCall,
)
