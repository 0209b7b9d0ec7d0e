"""What a source asks before it opens a tunnel and while it waits (protocol.md section 1)."""

from __future__ import annotations

from typing import Any

from mtunnel_tx.checks import split_list
from mtunnel_tx.errors import BackendFailed, NotFound, TunnelError
from mtunnel_tx.http.operation import Call, Parts, takes
from mtunnel_tx.http.replies import PRODUCT, Reply, data_reply
from mtunnel_tx.ports.guests import GuestEntry
from mtunnel_tx.ports.storage import Volume
from mtunnel_tx.pve.guestlayout import LAYOUTS, QEMU_LAYOUT
from mtunnel_tx.pve.needs import Need
from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.wire.formats import CPU_MODEL, NODE_NAME, STORAGE_ID, VMID
from mtunnel_tx.wire.requests import NODE
from mtunnel_tx.wire.schema import Boolean, Enum, Integer, Property, String

RELEASE = "9.2"
CERTIFICATE_FILE = "pveproxy-ssl.pem"

SEE_GUEST = Need("/vms/{vmid}", ("VM.Audit",), "for each guest that is shown", hides=True)
SEE_STORAGE = Need(
    "/storage/{storage}", ("Datastore.Audit", "Datastore.AllocateSpace"), "for each that is shown", hides=True
)
SEE_VOLUMES = Need("/storage/{storage}", ("Datastore.Audit", "Datastore.AllocateSpace"))
SEE_MODEL = Need("/mapping/cpu/{cputype}", ("Mapping.Audit", "Mapping.Use", "Mapping.Modify"))
SEE_CLUSTER = Need("/", ("Sys.Audit",))
SEE_MOVES = Need("/", ("Sys.Audit",))

_KINDS = Enum(("vm", "storage", "node", "sdn"))
_INTERFACES = Enum(("any_bridge", "any_local_bridge", "bridge"))
GUESTS = takes({"type": Property(_KINDS, "what to show; `vm`: guests")})
STORAGES = takes(
    {
        **NODE,
        "storage": Property(String(format=STORAGE_ID), "only this one"),
        "content": Property(String(), "only those that take one of these contents, a list in one text"),
        "enabled": Property(Boolean(), "only those that are enabled"),
        "format": Property(Boolean(), "of no effect"),
        "target": Property(String(format=NODE_NAME), "of no effect"),
    }
)
VOLUMES = takes(
    {
        **NODE,
        "storage": Property(String(format=STORAGE_ID), "the storage", True),
        "vmid": Property(Integer(format=VMID, minimum=100, maximum=999_999_999), "only what belongs to this guest"),
        "content": Property(String(), "only this content"),
    }
)
CERTIFICATES = takes(NODE)
MODEL = takes({"cputype": Property(String(format=CPU_MODEL), "the model's name", True)})
PERMISSIONS = takes({"path": Property(String(), "an access path, e.g. `/vms/100`", True)})
BRIDGES = takes({**NODE, "type": Property(_INTERFACES, "what to show; all of them are bridges")})


async def guests(call: Call) -> Reply:
    """Guests that the token may see; of the other types there are none here."""
    if call.values["type"] not in (None, "vm"):
        return data_reply([])
    visible = [entry for entry in call.parts.guests.entries() if SEE_GUEST.is_met(call.rights, {"vmid": entry.vmid})]
    return data_reply([_guest(call.parts, entry) for entry in visible])


def _guest(parts: Parts, entry: GuestEntry) -> dict[str, Any]:
    return {
        "id": f"{entry.kind}/{entry.vmid}",
        "vmid": entry.vmid,
        "type": entry.kind,
        "node": entry.node,
        "name": entry.name or f"{LAYOUTS[entry.kind].label} {entry.vmid}",
        "status": _guest_status(parts, entry),
    }


def _guest_status(parts: Parts, entry: GuestEntry) -> str:
    if entry.node != parts.guests.node or entry.kind != QEMU_LAYOUT.word:
        return "unknown"
    return "running" if parts.hypervisor.running(entry.vmid) else "stopped"


async def storages(call: Call) -> Reply:
    """Storages of this node that the token may see, with the room that is left."""
    chosen = [entry for entry in call.parts.storage.config().values() if _wanted(call, entry)]
    return data_reply([await _storage(call, entry) for entry in chosen])


async def volumes(call: Call) -> Reply:
    """Volumes of one storage of this node."""
    values = call.values
    entry = call.parts.storage.config().get(values["storage"])
    if entry is None or not entry.on_node(call.parts.guests.node):
        raise NotFound(f"storage '{values['storage']}' does not exist")
    async with call.parts.child_turn(call.rights.token, None):
        listed = await call.parts.storage.volumes(entry.id, values["vmid"])
    wanted = [volume for volume in listed if values["content"] in (None, volume.content)]
    return data_reply([_volume(volume) for volume in wanted])


def _volume(volume: Volume) -> dict[str, Any]:
    shown = {
        "volid": volume.volid,
        "content": volume.content,
        "format": volume.format,
        "size": volume.size_bytes,
    }
    return shown if volume.vmid is None else {**shown, "vmid": volume.vmid}


def _wanted(call: Call, entry: StorageEntry) -> bool:
    values = call.values
    return (
        SEE_STORAGE.is_met(call.rights, {"storage": entry.id})
        and entry.on_node(call.parts.guests.node)
        and (entry.enabled or not values["enabled"])
        and values["storage"] in (None, entry.id)
        and (not values["content"] or not entry.content.isdisjoint(split_list(values["content"])))
    )


async def _storage(call: Call, entry: StorageEntry) -> dict[str, Any]:
    shown = {
        "storage": entry.id,
        "type": entry.type,
        "content": ",".join(sorted(entry.content)),
        "enabled": int(entry.enabled),
        "active": int(entry.enabled),
        "shared": int(entry.shared),
        **({"converts": 1} if call.parts.storage.converts else {}),
    }
    available_bytes = await _available_bytes(call, entry)
    return shown if available_bytes is None else {**shown, "avail": available_bytes}


async def _available_bytes(call: Call, entry: StorageEntry) -> int | None:
    if not entry.enabled:
        return None
    try:
        async with call.parts.child_turn(call.rights.token, None):
            return await call.parts.storage.available_bytes(entry.id)
    except BackendFailed:
        return None


async def certificates(call: Call) -> Reply:
    """The certificate in use."""
    return data_reply([{"filename": CERTIFICATE_FILE, "fingerprint": call.parts.fingerprint()}])


async def cpu_model(call: Call) -> Reply:
    """A custom CPU model."""
    name = call.values["cputype"].removeprefix("custom-")
    model = call.parts.cpu_model(name)
    if model is None:
        raise TunnelError(f"Custom cputype '{name}' not found")
    return data_reply({"cputype": f"custom-{name}", **model})


async def own_permissions(call: Call) -> Reply:
    """What the token itself may do: a dry run names what is missing before anything is moved."""
    path = call.values["path"]
    return data_reply({path: dict.fromkeys(sorted(call.rights.privileges(path)), 1)})


async def bridges(call: Call) -> Reply:
    """Bridges of this node."""
    return data_reply([{"iface": name, "type": "bridge", "active": 1} for name in call.parts.bridges()])


async def nodes(call: Call) -> Reply:
    """The nodes of the cluster."""
    local = call.parts.guests.node
    names = sorted({local, *call.parts.nodes()})
    return data_reply([_node(name, number, local) for number, name in enumerate(names, start=1)])


def _node(name: str, number: int, local: str) -> dict[str, Any]:
    """Whether another node is up is not for us to know, so `online` is left out there."""
    shown = {"type": "node", "id": f"node/{name}", "name": name, "nodeid": number, "local": int(name == local)}
    return {**shown, "online": 1} if name == local else shown


async def version(_call: Call) -> Reply:
    """Which API this is."""
    repoid = PRODUCT.replace("/", "-")
    return data_reply({"version": f"{RELEASE}.0", "release": RELEASE, "repoid": repoid})


async def description(call: Call) -> Reply:
    """The API as an OpenAPI document."""
    return data_reply(call.parts.description())


async def moves(call: Call) -> Reply:
    """Moves that come to this host and go from it."""
    return data_reply(list(await call.parts.moves()))


async def metrics(call: Call) -> Reply:
    """What is counted, for Prometheus."""
    counting = call.parts.counting
    return Reply(status=200, reason="OK", body=counting.page(), content_type=counting.content_type)
