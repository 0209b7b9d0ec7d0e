"""Tunnels of an earlier daemon that go on: their flows, their disk import and their QEMU outlived it.

The journal says what stands, the notes what went over the command connection, and the store has the rest. Where
anything does not fit, the tunnel is left to the recovery, which ends it by the handover rule.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.errors import NotFound, TunnelError, WrongState
from mtunnel_tx.ports.events import TunnelOpened
from mtunnel_tx.ports.holding import FlowPositions, LivingFlow, Store, Survivors
from mtunnel_tx.ports.storage import ImportRequest
from mtunnel_tx.tunnel.commandsession import CommandSession, Gone
from mtunnel_tx.tunnel.imports import EndedChild, ImportJob
from mtunnel_tx.tunnel.kinds import KINDS
from mtunnel_tx.tunnel.ledger import Ledger, fold
from mtunnel_tx.tunnel.recovery import Undone
from mtunnel_tx.tunnel.services import Services
from mtunnel_tx.tunnel.transcript import Transcript, fold_notes
from mtunnel_tx.tunnel.tunnel import Tunnel
from mtunnel_tx.unread import count_unread
from mtunnel_tx.waiting import Task, pause
from mtunnel_tx.wire.socketkinds import COMMANDS, DISK_IMPORT, SOCKET_KINDS, find_socket_kind

log = Logger()
LOOK_S = 0.05
MOST_LOOKS = 100
"""So often the positions of the command flow are looked at until they stand still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A tunnel that may go on. job: of its disk import, as its notes have it."""

    ledger: Ledger
    transcript: Transcript
    flows: Sequence[LivingFlow]
    job: Mapping[str, Any] | None

    @property
    def vmid(self) -> int:
        return self.ledger.owed.vmid


async def adopt(
    services: Services, survivors: Survivors, gone: Gone, undone: dict[int, Undone]
) -> AsyncIterator[CommandSession]:
    """Go on with what can go on. What works for others is ended: nothing may come after what recovery frees.

    Yields: the sessions. Args: gone: as for CommandSession. undone: gets those, by VMID, that had begun to go on.
    """
    candidates = [found for vmid in services.notes.standing() if (found := _look_at(services, survivors, vmid))]
    children = {one.vmid: _child(services, survivors, one) for one in candidates if one.job is not None}
    if services.store is not None:
        services.store.watch()
    await services.storage.end_orphans([child.pid for child in children.values()])
    for candidate in candidates:
        try:
            yield await _go_on(services, candidate, children.get(candidate.vmid), gone, undone)
        except Exception as error:
            _log_refusal(candidate.vmid, error)
            if candidate.vmid in children:
                await children[candidate.vmid].kill()
    for flow in survivors.flows:
        flow.abandon()


def _log_refusal(vmid: int, error: Exception) -> None:
    """Whatever it is, the daemon has to start, and the journal knows what is to be done."""
    if not isinstance(error, TunnelError):
        log.failure("unexpected failure while the tunnel of VM {vmid} was taken over", vmid=vmid)
    log.warn("the tunnel of VM {vmid} does not go on: {reason}", vmid=vmid, reason=str(error))


def _look_at(services: Services, survivors: Survivors, vmid: int) -> _Candidate | None:
    try:
        return _candidate(services, survivors, vmid)
    except Exception as error:
        _log_refusal(vmid, error)
        return None


def _candidate(services: Services, survivors: Survivors, vmid: int) -> _Candidate:
    """Raises: TunnelError: why it cannot go on."""
    notes, records = services.notes.read(vmid), services.journal.read(vmid)
    if notes is None or records is None:
        raise NotFound("its notes or its journal cannot be read")
    owed, transcript = fold(vmid, records), fold_notes(notes)
    flows = [flow for flow in survivors.flows if flow.vmid == vmid]
    if owed.kind not in KINDS or owed.rolling_back:
        raise WrongState("it was being rolled back")
    if f"commands/{vmid}" not in survivors.kept.names or COMMANDS.suffix not in [flow.suffix for flow in flows]:
        raise WrongState("its command connection is gone")
    job = transcript.state.get("import")
    # A volume counts as made only when its child has ended well.
    if job is not None and job["name"] not in survivors.kept.programs and job["made"] not in owed.volumes:
        raise WrongState("its disk import is gone")
    unread = [flow.vmid for flow in survivors.flows if not flow.suffix]
    if vmid in unread or (unread and job is not None and job["made"] is None):
        raise WrongState("one of its streams cannot be understood")
    ledger = Ledger(services.journal, owed, stands=True, count=len(records))
    return _Candidate(ledger=ledger, transcript=transcript, flows=flows, job=job)


def _store(services: Services) -> Store:
    assert services.store is not None, "who has notes has a store"
    return services.store


def _child(services: Services, survivors: Survivors, candidate: _Candidate) -> Any:
    assert candidate.job is not None
    name, taken = candidate.job["name"], candidate.job["taken"]
    if name not in survivors.kept.programs:
        return EndedChild(name, taken)
    return _store(services).adopt(name, taken, keeps_end=True)


async def _go_on(
    services: Services, candidate: _Candidate, child: Any, gone: Gone, undone: dict[int, Undone]
) -> CommandSession:
    """Raises: TunnelError."""
    await services.guests.tidy(candidate.vmid)
    _, (sock,) = await _store(services).get(f"commands/{candidate.vmid}")
    try:
        unsaid = await _find_unsaid(services, candidate, sock)
        tunnel = _restore(services, candidate, child)
    except Exception:
        sock.close()
        raise
    session = CommandSession(tunnel, gone, candidate.transcript)
    tunnel.tell(TunnelOpened(tunnel=tunnel.facts))
    try:
        for flow in candidate.flows:
            tunnel.sockets.lead_back(flow, ended=_ended(tunnel, flow))
        tunnel.task.line("the daemon was started again: this task goes on")
        await session.go_on(sock, unsaid)
    except Exception as error:
        sock.close()
        undone[tunnel.vmid] = Undone(reason=str(error), traffic=tunnel.facts.traffic())
        await _undo(tunnel)
        raise
    log.info("the tunnel of VM {vmid} goes on", vmid=tunnel.vmid)
    return session


async def _undo(tunnel: Tunnel) -> None:
    """Nothing of it goes on, and the recovery comes to a tunnel without streams. Programs end first."""
    await tunnel.end_children()
    tunnel.sockets.abort_streams(SOCKET_KINDS)


def _ended(tunnel: Tunnel, flow: LivingFlow) -> Any:
    if flow.suffix == DISK_IMPORT.suffix and tunnel.disk_import is not None:
        return tunnel.disk_import.stream_ended
    return _nobody


async def _nobody(_orderly: bool) -> None:
    """Nothing depends on the end of this flow."""


async def _find_unsaid(services: Services, candidate: _Candidate, sock: socket.socket) -> bytes:
    """Which bytes of replies were never sent. Raises: TunnelError: bytes are lost, or the positions do not settle."""
    flow = next(flow for flow in candidate.flows if flow.suffix == COMMANDS.suffix)
    heard_bytes, before = candidate.transcript.heard_bytes, None
    for _ in range(MOST_LOOKS):
        unread_bytes = count_unread(sock)
        now = await flow.positions()
        if now.taken_bytes > heard_bytes + count_unread(sock):
            raise WrongState("bytes of a command are lost")
        if now == before and _is_settled(now, heard_bytes, unread_bytes):
            return _unsaid(candidate.transcript, now)
        before = now
        await pause(services.clock, LOOK_S)
    raise WrongState("its command connection does not come to rest")


def _is_settled(now: FlowPositions, heard_bytes: int, unread_bytes: int) -> bool:
    """What waits for the peer is being sent, unless the flow is parked."""
    return (now.is_parked or now.queued_bytes == 0) and now.taken_bytes == heard_bytes + unread_bytes


def _unsaid(transcript: Transcript, now: FlowPositions) -> bytes:
    unsaid = transcript.unsaid(now.sent_bytes + now.queued_bytes)
    if unsaid is None:
        raise WrongState("bytes of a reply are lost")
    return unsaid


def _restore(services: Services, candidate: _Candidate, child: Any) -> Tunnel:
    """Raises: TunnelError: its task log cannot be written."""
    facts, state, owed = candidate.transcript.facts, candidate.transcript.state, candidate.ledger.owed
    task = services.tasks.go_on(facts["upid"])
    kind = KINDS[owed.kind]
    tunnel = Tunnel(services, kind, candidate.ledger, task, facts["address"], facts["since_s"])
    tunnel.drives.update(state.get("drives", {}))
    tunnel.parking.before_s = state.get("interrupted_s", 0.0)
    if candidate.job is not None:
        tunnel.disk_import = _restore_import(tunnel, candidate.job, child)
    for suffix in state.get("sockets", [COMMANDS.suffix]):
        _restore_socket(tunnel, suffix)
    if not owed.whole and tunnel.claim.runs():
        tunnel.watch = Task(kind.watch(tunnel))
    return tunnel


def _restore_socket(tunnel: Tunnel, suffix: str) -> None:
    kind = find_socket_kind(f"{tunnel.vmid}{suffix}")
    if kind is DISK_IMPORT and tunnel.disk_import is not None:
        tunnel.sockets.add(kind, ended=tunnel.disk_import.stream_ended)
    else:
        tunnel.sockets.add(kind)


def _restore_import(tunnel: Tunnel, job: Mapping[str, Any], child: Any) -> ImportJob:
    request = ImportRequest(**{**job["request"], "socket": Path(job["request"]["socket"])})
    restored = ImportJob(tunnel.services, tunnel.own, tunnel.task, request, tunnel.vmid)
    restored.go_on(child, job["made"])
    return restored
