"""What the two HTTP calls of a tunnel take (protocol.md section 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtunnel_tx.checks import bridge_id, list_of, node_name, split_list, storage_id, vmid
from mtunnel_tx.wire.schema import Integer, Object, Property, String, read_parameters

_PLACE = {
    "node": Property(String(format=node_name), required=True),
    "vmid": Property(Integer(format=vmid), required=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MtunnelCall:
    """`POST …/mtunnel`: the VM to make, the storages and bridges it will want."""

    node: str
    vmid: int
    storages: tuple[str, ...]
    bridges: tuple[str, ...]


_MTUNNEL = Object(
    {
        **_PLACE,
        "storages": Property(String(format=list_of(storage_id)), default=""),
        "bridges": Property(String(format=list_of(bridge_id)), default=""),
    }
)


def read_mtunnel_call(parameters: Mapping[str, Any]) -> MtunnelCall:
    """Read the parameters of the URI, query string and body, texts or JSON values. Raises: InvalidParameters."""
    values = read_parameters(_MTUNNEL, parameters)
    return MtunnelCall(
        node=values["node"],
        vmid=values["vmid"],
        storages=split_list(values["storages"]),
        bridges=split_list(values["bridges"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WebsocketCall:
    """`GET …/mtunnelwebsocket`: the wire name of a socket, and a ticket for it."""

    node: str
    vmid: int
    socket: str
    ticket: str = field(repr=False)


_WEBSOCKET = Object(
    {**_PLACE, "socket": Property(String(), required=True), "ticket": Property(String(), required=True)}
)


def read_websocket_call(parameters: Mapping[str, Any]) -> WebsocketCall:
    """Read the parameters of the URI and query string. Raises: InvalidParameters."""
    return WebsocketCall(**read_parameters(_WEBSOCKET, parameters))
