"""The calls of a tunnel: open it, reach its sockets, compare what has arrived."""

from __future__ import annotations

from mtunnel_tx.http.operation import Call, takes
from mtunnel_tx.http.replies import Reply, data_reply
from mtunnel_tx.http.websocket import open_websocket
from mtunnel_tx.net.admission import address_of
from mtunnel_tx.ports.tunnels import Decision
from mtunnel_tx.pve.needs import Need
from mtunnel_tx.wire.requests import VM, MtunnelCall, WebsocketCall
from mtunnel_tx.wire.schema import Boolean, Enum, Property, String

OPEN_NEEDS = (
    Need("/vms/{vmid}", ("VM.Allocate",)),
    Need("/", ("Sys.Incoming",)),
    Need("/storage/{storage}", ("Datastore.AllocateSpace",), "for each of `storages`"),
)
DIGEST = takes(
    {
        **VM,
        "volume": Property(String(), "a volume that a live tunnel of this token made", True),
        "content": Property(
            Boolean(), "of what a guest reads (as the stream `raw+size`), whatever the image format", default=False
        ),
    }
)

ABANDON = takes({**VM, "upid": Property(String(), "the tunnel's task, as the call that opened it told it", True)})


LATE_NEEDS = (Need("/vms/{vmid}", ("VM.Allocate",)), Need("/", ("Sys.Incoming",)))
LATE = takes(
    {
        **VM,
        "upid": Property(String(), "the tunnel's task, as the call that opened it told it", True),
        "decision": Property(
            Enum(tuple(decision.value for decision in Decision)),
            "of a VM that is held: `run`, `keep`: it is the target's, and runs, or stays paused; `discard`: it is not",
        ),
    }
)


async def open_tunnel(call: Call) -> Reply:
    """Claim the VMID, and wait for the source's command connection."""
    sent: MtunnelCall = call.values
    address = address_of(call.request.getClientAddress())
    opened = await call.parts.tunnels.open(sent.vmid, call.rights.token, sent.storages, sent.bridges, address)
    return data_reply({"upid": opened.upid, "ticket": opened.ticket, "socket": opened.socket})


async def check_move(call: Call) -> Reply:
    """Say what would stand in the way, and make nothing."""
    return data_reply(await call.parts.tunnels.check(call.values, call.rights.token))


async def join_socket(call: Call) -> Reply | None:
    """Become a websocket that leads to a socket of the tunnel; the ticket says who may."""
    sent: WebsocketCall = call.values
    route = call.parts.tunnels.route(sent.vmid, sent.socket, call.rights.token, sent.ticket)
    return await open_websocket(call.request, route, sent.socket, call.parts.upgrader)


async def abandon(call: Call) -> Reply:
    """End a tunnel that waits for a source whose program has ended; it is judged as if its time were over."""
    values = call.values
    await call.parts.tunnels.abandon(values["vmid"], call.rights.token, values["upid"])
    return data_reply({"upid": values["upid"]})


async def come_late(call: Call) -> Reply:
    """Tell what became of a VM whose tunnel is over; one that is held is decided by its source."""
    values = call.values
    decision = Decision(values["decision"]) if values["decision"] is not None else None
    answer = await call.parts.tunnels.come_late(values["vmid"], call.rights.token, values["upid"], decision)
    return data_reply(
        {
            "verdict": answer.verdict,
            "machine": answer.machine,
            "whole": int(answer.is_whole),
            "given-up": int(answer.is_given_up),
        }
    )


async def digest(call: Call) -> Reply:
    """Tell a volume's SHA-256."""
    values = call.values
    asked = call.parts.tunnels.digest(values["vmid"], call.rights.token, values["volume"], content=values["content"])
    return data_reply({"sha256": await asked})
