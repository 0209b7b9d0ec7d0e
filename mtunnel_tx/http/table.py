"""What can be asked for over HTTP: every operation, what it takes, needs and does; and which one a path means."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

from mtunnel_tx.http import attaching, opening, resources, results, tasks
from mtunnel_tx.http.operation import Operation
from mtunnel_tx.pve.guestlayout import QEMU_LAYOUT
from mtunnel_tx.wire import checkrequest, requests

BASE = ("api2", "json")
METRICS = ("metrics",)
"""Where Prometheus looks if nobody says otherwise."""
_VM = f"/nodes/{{node}}/{QEMU_LAYOUT.word}/{{vmid}}"
_TASK = "/nodes/{node}/tasks/{upid}"

OPERATIONS = (
    Operation(
        method="POST",
        path=f"{_VM}/mtunnel",
        summary="open a tunnel for a VM that comes",
        handler=opening.open_tunnel,
        gives=results.OPENED,
        takes=requests.MTUNNEL,
        needs=opening.OPEN_NEEDS,
        fails=(409, 504),
    ),
    Operation(
        method="POST",
        path=f"{_VM}/mtunnelcheck",
        summary="what would stand in the way of a VM that would come; nothing is made",
        handler=opening.check_move,
        gives=results.CHECKED,
        takes=checkrequest.CHECK,
        needs=opening.OPEN_NEEDS,
        ends_with_client=True,
        fails=(409, 504),
    ),
    Operation(
        method="GET",
        path=f"{_VM}/mtunnelwebsocket",
        summary="a websocket to a socket of a tunnel; its ticket says who may",
        handler=opening.join_socket,
        gives=results.SOCKET,
        takes=requests.WEBSOCKET,
        upgrades=True,
        fails=(409, 502),
    ),
    Operation(
        method="GET",
        path=f"{_VM}/mtunnelattach",
        summary="another connection for a flow that has lost its own; the header `Mtunnel-Resume` says who may",
        handler=attaching.attach,
        gives=results.SOCKET,
        takes=attaching.ATTACH,
        needs=attaching.ATTACH_NEEDS,
        upgrades=True,
        fails=(409, 410),
    ),
    Operation(
        method="POST",
        path=f"{_VM}/mtunnelabandon",
        summary="end a tunnel of this token whose source has lost its connection, and will not come back",
        handler=opening.abandon,
        gives=results.ABANDONED,
        takes=opening.ABANDON,
        fails=(409,),
    ),
    Operation(
        method="POST",
        path=f"{_VM}/mtunnellate",
        summary="what became of a VM whose tunnel of this token is over; one that is held is decided by its source",
        handler=opening.come_late,
        gives=results.LATE,
        takes=opening.LATE,
        needs=opening.LATE_NEEDS,
        fails=(409, 504),
    ),
    Operation(
        method="GET",
        path=f"{_VM}/mtunneldigest",
        summary="the SHA-256 of a volume that a live tunnel of this token made",
        handler=opening.digest,
        gives=results.DIGEST,
        takes=opening.DIGEST,
        ends_with_client=True,
        fails=(409, 504),
    ),
    Operation(
        method="GET",
        path="/cluster/resources",
        summary="guests of all nodes",
        handler=resources.guests,
        gives=results.GUESTS,
        takes=resources.GUESTS,
        needs=(resources.SEE_GUEST,),
    ),
    Operation(
        method="GET",
        path="/nodes/{node}/storage",
        summary="storages of this node, and the room that is left",
        handler=resources.storages,
        gives=results.STORAGES,
        takes=resources.STORAGES,
        needs=(resources.SEE_STORAGE,),
        ends_with_client=True,
        fails=(409, 504),
    ),
    Operation(
        method="GET",
        path="/nodes/{node}/storage/{storage}/content",
        summary="volumes of a storage",
        handler=resources.volumes,
        gives=results.VOLUMES,
        takes=resources.VOLUMES,
        needs=(resources.SEE_VOLUMES,),
        ends_with_client=True,
        fails=(409, 504),
    ),
    Operation(
        method="GET",
        path="/nodes/{node}/certificates/info",
        summary="the fingerprint of the certificate in use",
        handler=resources.certificates,
        gives=results.CERTIFICATES,
        takes=resources.CERTIFICATES,
    ),
    Operation(
        method="GET",
        path="/cluster/qemu/custom-cpu-models/{cputype}",
        summary="a custom CPU model",
        handler=resources.cpu_model,
        gives=results.MODEL,
        takes=resources.MODEL,
        needs=(resources.SEE_MODEL,),
    ),
    Operation(
        method="GET",
        path="/cluster/status",
        summary="the nodes, and which of them this is",
        handler=resources.nodes,
        gives=results.NODES,
        needs=(resources.SEE_CLUSTER,),
    ),
    Operation(
        method="GET",
        path="/version",
        summary="which API this is",
        handler=resources.version,
        gives=results.VERSION,
    ),
    Operation(
        method="GET",
        path="/mtunnel/openapi",
        summary="this description",
        handler=resources.description,
        gives=results.DESCRIPTION,
    ),
    Operation(
        method="GET",
        path="/mtunnel/moves",
        summary="moves that come to this host and go from it, and how far they are",
        handler=resources.moves,
        gives=results.MOVES,
        needs=(resources.SEE_MOVES,),
    ),
    Operation(
        method="GET",
        path="/mtunnel/metrics",
        summary="metrics in Prometheus' text format; also at /metrics",
        handler=resources.metrics,
        gives=results.TEXT,
        needs=(resources.SEE_MOVES,),
        is_text=True,
    ),
    Operation(
        method="GET",
        path="/access/permissions",
        summary="what this token may do on a path",
        handler=resources.own_permissions,
        gives=results.PERMISSIONS,
        takes=resources.PERMISSIONS,
    ),
    Operation(
        method="GET",
        path="/nodes/{node}/network",
        summary="bridges of this node",
        handler=resources.bridges,
        gives=results.BRIDGES,
        takes=resources.BRIDGES,
    ),
    Operation(
        method="GET",
        path=f"{_TASK}/status",
        summary="whether a task runs, and how it ended",
        handler=tasks.task_status,
        gives=results.TASK_STATUS,
        takes=tasks.STATUS,
        needs=(tasks.SEE_TASKS,),
        owner_of="upid",
    ),
    Operation(
        method="GET",
        path=f"{_TASK}/log",
        summary="lines of a task's log",
        handler=tasks.task_log,
        gives=results.TASK_LOG,
        takes=tasks.LOG,
        needs=(tasks.SEE_TASKS,),
        owner_of="upid",
    ),
)


def split_path(path: bytes) -> tuple[str, ...]:
    """Decoded components; empty ones are dropped, a `/` that was escaped stays inside its component."""
    parts = path.decode("utf-8", "replace").split("/")
    return tuple(unquote(part, errors="replace") for part in parts if part)


def shown_path(path: tuple[str, ...]) -> str:
    """A path as the message of a 501 shows it: without the base."""
    rest = path[len(BASE) :] if path[: len(BASE)] == BASE else path
    return "/" + "/".join(rest)


def find_operation(method: str, path: tuple[str, ...]) -> tuple[Operation, dict[str, str]] | None:
    """Returns: the operation and its parameters in the path; None: there is none for this path and method."""
    path = (*BASE, "mtunnel", "metrics") if path == METRICS else path
    if path[: len(BASE)] != BASE:
        return None
    for operation in OPERATIONS:
        values = _match(operation.path.strip("/").split("/"), path[len(BASE) :])
        if values is not None and operation.method == method:
            return operation, values
    return None


def _match(pattern: Sequence[str], path: Sequence[str]) -> dict[str, str] | None:
    if len(pattern) != len(path):
        return None
    values = {}
    for expected, part in zip(pattern, path, strict=True):
        if expected.startswith("{"):
            values[expected[1:-1]] = part
        elif expected != part:
            return None
    return values
