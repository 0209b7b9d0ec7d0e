"""What the HTTP API answers: one Endpoint a call, with its privileges and its schema (protocol.md section 1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from twisted.web.http import Request

from mtunnel_tx.checks import node_name, pattern, split_list, storage_id, vmid
from mtunnel_tx.errors import BackendFailed, BadRequest, InvalidParameters, TunnelError
from mtunnel_tx.http.forward import Elsewhere
from mtunnel_tx.http.replies import PRODUCT, Reply, data_reply
from mtunnel_tx.http.websocket import Upgrader, open_websocket
from mtunnel_tx.net.admission import address_of
from mtunnel_tx.ports.access import Access
from mtunnel_tx.ports.guests import GuestEntry, Guests
from mtunnel_tx.ports.machines import Hypervisor
from mtunnel_tx.ports.storage import Storage
from mtunnel_tx.ports.tunnels import Tunnels
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.pve.upid import parse_upid
from mtunnel_tx.wire.requests import MtunnelCall, WebsocketCall, read_mtunnel_call, read_websocket_call
from mtunnel_tx.wire.schema import Boolean, Enum, Integer, Object, Property, String, read_parameters

RELEASE = "9.2"
LOCALHOST = "localhost"
CERTIFICATE_FILE = "pveproxy-ssl.pem"

_cpu_model_name = pattern(r"[A-Za-z0-9][A-Za-z0-9._-]*", "value does not look like a valid configuration ID")


class TaskReader(Protocol):
    """Task logs, for reading."""

    def status(self, upid: str) -> Mapping[str, Any]:
        """What `GET …/tasks/UPID/status` shows. Raises: TunnelError: no such task."""

    def log(self, upid: str, start: int, limit: int) -> Sequence[Mapping[str, Any]]:
        """Lines as `{"n":1,"t":"line"}`. Raises: TunnelError: no such task."""

    def total(self, upid: str) -> int:
        """How many lines there are. Raises: TunnelError: no such task."""


def _no_cpu_model(_name: str) -> Mapping[str, Any] | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the API talks to.

    nodes: the names of all nodes below `pve_dir`. bridges: where network cards can be put. fingerprint: of the
    certificate in use, `AA:BB:…`. cpu_model: a custom CPU model's settings by its name without `custom-`, or None.
    upgrader: takes a checked request over.
    elsewhere: answers what is not for us.
    """

    access: Access
    tunnels: Tunnels
    guests: Guests
    storage: Storage
    hypervisor: Hypervisor
    tasks: TaskReader
    nodes: Callable[[], Sequence[str]]
    bridges: Callable[[], Sequence[str]]
    fingerprint: Callable[[], str]
    upgrader: Upgrader
    cpu_model: Callable[[str], Mapping[str, Any] | None] = _no_cpu_model
    elsewhere: Elsewhere | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request whose sender and parameters are known: `given` as sent, `values` once they are checked."""

    request: Request
    parts: Parts
    rights: Rights
    given: Mapping[str, Any]
    values: Any = None


Permit = Callable[[Call], None]
"""Looks at `given`. Raises: PermissionDenied."""
Read = Callable[[Mapping[str, Any]], Any]
"""Takes the given parameters, returns the values. Raises: InvalidParameters."""
Handler = Callable[[Call], Awaitable[Reply | None]]
"""Returns: the answer; None: the connection belongs to somebody else now."""


def _anybody(_call: Call) -> None:
    """Any valid token may."""


def _reader(**properties: Property) -> Read:
    return partial(read_parameters, Object(properties))


_read_nothing = _reader()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One call of the API; `{NAME}` in the path is a parameter."""

    method: str
    path: str
    handler: Handler
    permit: Permit = _anybody
    read: Read = _read_nothing


# -- opening a tunnel


def _may_open(call: Call) -> None:
    call.rights.check(f"/vms/{call.given['vmid']}", "VM.Allocate")
    call.rights.check("/", "Sys.Incoming")


async def _open_tunnel(call: Call) -> Reply:
    sent: MtunnelCall = call.values
    address = address_of(call.request.getClientAddress())
    opened = await call.parts.tunnels.open(sent.vmid, call.rights.token, sent.storages, sent.bridges, address)
    return data_reply({"upid": opened.upid, "ticket": opened.ticket, "socket": opened.socket})


async def _open_websocket(call: Call) -> Reply | None:
    sent: WebsocketCall = call.values
    route = call.parts.tunnels.route(sent.vmid, sent.socket, call.rights.token, sent.ticket)
    return await open_websocket(call.request, route, sent.socket, call.parts.upgrader)


async def _digest(call: Call) -> Reply:
    values = call.values
    return data_reply({"sha256": await call.parts.tunnels.digest(values["vmid"], call.rights.token, values["volume"])})


# -- what a source asks before


async def _resources(call: Call) -> Reply:
    if call.values["type"] not in (None, "vm"):
        return data_reply([])
    visible = [entry for entry in call.parts.guests.entries() if call.rights.has(f"/vms/{entry.vmid}", "VM.Audit")]
    return data_reply([_guest(call.parts, entry) for entry in visible])


def _guest(parts: Parts, entry: GuestEntry) -> dict[str, Any]:
    return {
        "id": f"{entry.kind}/{entry.vmid}",
        "vmid": entry.vmid,
        "type": entry.kind,
        "node": entry.node,
        "name": entry.name or f"{'CT' if entry.kind == 'lxc' else 'VM'} {entry.vmid}",
        "status": _guest_status(parts, entry),
    }


def _guest_status(parts: Parts, entry: GuestEntry) -> str:
    if entry.node != parts.guests.node or entry.kind != "qemu":
        return "unknown"
    return "running" if parts.hypervisor.running(entry.vmid) else "stopped"


async def _storages(call: Call) -> Reply:
    chosen = [entry for entry in call.parts.storage.config().values() if _wanted(call, entry)]
    return data_reply([await _storage(call.parts, entry) for entry in chosen])


def _wanted(call: Call, entry: StorageEntry) -> bool:
    values, path = call.values, f"/storage/{entry.id}"
    return (
        (call.rights.has(path, "Datastore.Audit") or call.rights.has(path, "Datastore.AllocateSpace"))
        and entry.on_node(call.parts.guests.node)
        and (entry.enabled or not values["enabled"])
        and values["storage"] in (None, entry.id)
        and (not values["content"] or not entry.content.isdisjoint(split_list(values["content"])))
    )


async def _storage(parts: Parts, entry: StorageEntry) -> dict[str, Any]:
    shown = {
        "storage": entry.id,
        "type": entry.type,
        "content": ",".join(sorted(entry.content)),
        "enabled": int(entry.enabled),
        "active": int(entry.enabled),
        "shared": int(entry.shared),
    }
    available_bytes = await _available_bytes(parts, entry)
    return shown if available_bytes is None else {**shown, "avail": available_bytes}


async def _available_bytes(parts: Parts, entry: StorageEntry) -> int | None:
    if not entry.enabled:
        return None
    try:
        return await parts.storage.available_bytes(entry.id)
    except BackendFailed:
        return None


async def _certificates(call: Call) -> Reply:
    return data_reply([{"filename": CERTIFICATE_FILE, "fingerprint": call.parts.fingerprint()}])


def _may_see_model(call: Call) -> None:
    path = f"/mapping/cpu/{call.given['cputype']}"
    call.rights.check_any(path, "Mapping.Audit", "Mapping.Use", "Mapping.Modify")


async def _cpu_model(call: Call) -> Reply:
    name = call.values["cputype"].removeprefix("custom-")
    model = call.parts.cpu_model(name)
    if model is None:
        raise TunnelError(f"Custom cputype '{name}' not found")
    return data_reply({"cputype": f"custom-{name}", **model})


async def _permissions(call: Call) -> Reply:
    """What the token itself may do: a dry run names what is missing before anything is moved."""
    path = call.values["path"]
    return data_reply({path: dict.fromkeys(sorted(call.rights.privileges(path)), 1)})


async def _network(call: Call) -> Reply:
    return data_reply([{"iface": name, "type": "bridge", "active": 1} for name in call.parts.bridges()])


def _may_see_cluster(call: Call) -> None:
    call.rights.check("/", "Sys.Audit")


async def _cluster_status(call: Call) -> Reply:
    local = call.parts.guests.node
    names = sorted({local, *call.parts.nodes()})
    return data_reply([_node(name, number, local) for number, name in enumerate(names, start=1)])


def _node(name: str, number: int, local: str) -> dict[str, Any]:
    """Whether another node is up is not for us to know, so `online` is left out there."""
    shown = {"type": "node", "id": f"node/{name}", "name": name, "nodeid": number, "local": int(name == local)}
    return {**shown, "online": 1} if name == local else shown


async def _version(_call: Call) -> Reply:
    repoid = PRODUCT.replace("/", "-")
    return data_reply({"version": f"{RELEASE}.0", "release": RELEASE, "repoid": repoid})


# -- tasks


def _may_see_task(call: Call) -> None:
    if _owner(call.given["upid"]) != call.rights.token:
        node = call.given["node"]
        call.rights.check(f"/nodes/{call.parts.guests.node if node == LOCALHOST else node}", "Sys.Audit")


def _owner(upid: str) -> str | None:
    try:
        return parse_upid(upid).user
    except BadRequest:
        return None


def _read_task(given: Mapping[str, Any], **paging: Property) -> dict[str, Any]:
    values = read_parameters(Object({**_NODE, "upid": Property(String(), required=True), **paging}), given)
    try:
        parse_upid(values["upid"])
    except BadRequest as error:
        raise InvalidParameters({"upid": error.text}) from error
    return values


async def _task_status(call: Call) -> Reply:
    return data_reply(call.parts.tasks.status(call.values["upid"]))


async def _task_log(call: Call) -> Reply:
    tasks, values = call.parts.tasks, call.values
    lines = list(tasks.log(values["upid"], values["start"], values["limit"]))
    return data_reply(lines, total=tasks.total(values["upid"]))


# -- the table

_NODE = {"node": Property(String(format=node_name), required=True)}
_VM = "/nodes/{node}/qemu/{vmid}"
_TASK = "/nodes/{node}/tasks/{upid}"
_COUNT = Integer(minimum=0)

_read_digest = _reader(
    **_NODE, vmid=Property(Integer(format=vmid), required=True), volume=Property(String(), required=True)
)
_read_resources = _reader(type=Property(Enum(("vm", "storage", "node", "sdn"))))
_read_storages = _reader(
    **_NODE,
    storage=Property(String(format=storage_id)),
    content=Property(String()),
    enabled=Property(Boolean()),
    format=Property(Boolean()),
    target=Property(String(format=node_name)),
)
_read_model = _reader(cputype=Property(String(format=_cpu_model_name), required=True))
_read_permissions = _reader(path=Property(String(), required=True))
_read_network = _reader(**_NODE, type=Property(Enum(("any_bridge", "any_local_bridge", "bridge"))))
_read_log = partial(_read_task, start=Property(_COUNT, default=0), limit=Property(_COUNT, default=50))

ENDPOINTS = (
    Endpoint(method="POST", path=f"{_VM}/mtunnel", handler=_open_tunnel, permit=_may_open, read=read_mtunnel_call),
    Endpoint(method="GET", path=f"{_VM}/mtunnelwebsocket", handler=_open_websocket, read=read_websocket_call),
    Endpoint(method="GET", path=f"{_VM}/mtunneldigest", handler=_digest, read=_read_digest),
    Endpoint(method="GET", path="/cluster/resources", handler=_resources, read=_read_resources),
    Endpoint(method="GET", path="/nodes/{node}/storage", handler=_storages, read=_read_storages),
    Endpoint(method="GET", path="/nodes/{node}/certificates/info", handler=_certificates, read=_reader(**_NODE)),
    Endpoint(
        method="GET",
        path="/cluster/qemu/custom-cpu-models/{cputype}",
        handler=_cpu_model,
        permit=_may_see_model,
        read=_read_model,
    ),
    Endpoint(method="GET", path="/cluster/status", handler=_cluster_status, permit=_may_see_cluster),
    Endpoint(method="GET", path="/version", handler=_version),
    Endpoint(method="GET", path="/access/permissions", handler=_permissions, read=_read_permissions),
    Endpoint(method="GET", path="/nodes/{node}/network", handler=_network, read=_read_network),
    Endpoint(method="GET", path=f"{_TASK}/status", handler=_task_status, permit=_may_see_task, read=_read_task),
    Endpoint(method="GET", path=f"{_TASK}/log", handler=_task_log, permit=_may_see_task, read=_read_log),
)
