"""Another connection for a flow that has lost its own: `GET …/mtunnelattach`.

Order of checks: the token; then name and key of the flow, which have to be this token's (401, late); privileges again
(403); the generation (409); whether the flow still runs (410, with what became of it; 503 while that is being decided).
"""

from __future__ import annotations

from mtunnel_tx.errors import BadRequest, NotYet
from mtunnel_tx.http.handshake import NoWebsocket, check_handshake, with_header
from mtunnel_tx.http.operation import Call, takes
from mtunnel_tx.http.parameters import read_header
from mtunnel_tx.http.replies import Reply, encode, plain_reply
from mtunnel_tx.http.resumptions import FlowEndedBefore, Tombstone
from mtunnel_tx.http.upgrade import check_connected, leave_http
from mtunnel_tx.pve.needs import Need
from mtunnel_tx.wire.requests import VM
from mtunnel_tx.wire.resuming import HEADER, VERSION, AttachClaim, read_claim
from mtunnel_tx.wire.schema import Property, String

_WHEN = "once more, of a flow that the token may attach to"
ATTACH_NEEDS = (Need("/vms/{vmid}", ("VM.Allocate",), _WHEN), Need("/", ("Sys.Incoming",), _WHEN))
ATTACH = takes({**VM, "id": Property(String(), "the flow, as the answer to its first connection named it", True)})


async def attach(call: Call) -> Reply | None:
    """Let this connection carry a flow; it takes the place of the one that there may be."""
    request, values = call.request, call.values
    claim = read_claim(read_header(request, HEADER.encode("ascii")))
    found = call.parts.resumptions.find(values["vmid"], values["id"], claim, call.rights.token)
    assert claim is not None, "without one nothing is found"
    for need in ATTACH_NEEDS:
        need.check(call.rights, values)
    if isinstance(found, Tombstone):
        return _gone(found)
    found.check(claim.generation)
    try:
        await _take_over(call, claim)
    except NoWebsocket as error:
        return plain_reply(error.status, error.text)
    except FlowEndedBefore as error:
        return _gone(error.tombstone)
    return None


async def _take_over(call: Call, claim: AttachClaim) -> None:
    """Raises: NoWebsocket, BadRequest: it asks for none. FlowEndedBefore, WrongState: somebody was faster."""
    request, values, resumptions = call.request, call.values, call.parts.resumptions
    if read_header(request, b"upgrade") is None:
        raise BadRequest("only a websocket can be attached")
    handshake = check_handshake(request)
    await check_connected(request, resumptions.clock)
    found = resumptions.find(values["vmid"], values["id"], claim, call.rights.token)
    if isinstance(found, Tombstone):
        raise FlowEndedBefore(found)
    found.check(claim.generation)
    found.attaching(claim.generation)
    flow = found.flow
    peer = await leave_http(request, with_header(handshake.answer, HEADER, VERSION))
    assert flow is not None, "a flow that is known runs"
    if (found.offer.id, found.generation) != (values["id"], claim.generation):
        peer.close()  # a younger connection was faster
        return
    flow.attach(peer)


def _gone(tombstone: Tombstone) -> Reply:
    """410, and what became of the flow, for whoever has to know. Raises: NotYet: that is being decided."""
    if tombstone.is_undecided:
        raise NotYet(f"the tunnel of VM {tombstone.vmid} is being ended")
    said = {"verdict": tombstone.verdict, "reason": tombstone.reason, "orderly": tombstone.orderly}
    text = f"the flow has ended: {tombstone.verdict}"
    return Reply(status=FlowEndedBefore.status, reason=text, body=encode({"data": said, "message": f"{text}\n"}))
