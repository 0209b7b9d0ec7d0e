"""All live tunnels (ports.Tunnels): opening them, finding their sockets, ending them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock, gatherResults
from twisted.logger import Logger

from mtunnel_tx.errors import InvalidParameters, NotFound, TunnelError, Unauthenticated, WrongState, refusing
from mtunnel_tx.ports.events import TunnelOpened
from mtunnel_tx.ports.holding import Survivors
from mtunnel_tx.ports.journal import TaskLog
from mtunnel_tx.ports.streams import Route
from mtunnel_tx.ports.tunnels import Decision, LateAnswer, Opened, TunnelStatus
from mtunnel_tx.pve.findings import Findings
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestlayout import LAYOUTS, QEMU_LAYOUT
from mtunnel_tx.tunnel.adoption import adopt
from mtunnel_tx.tunnel.checks import check_bridge, usable_storage
from mtunnel_tx.tunnel.claim import Claim, marked
from mtunnel_tx.tunnel.commandsession import CommandSession
from mtunnel_tx.tunnel.ending import Ending, end
from mtunnel_tx.tunnel.guestkind import GuestKind
from mtunnel_tx.tunnel.kinds import KINDS
from mtunnel_tx.tunnel.ledger import Ledger, Owed
from mtunnel_tx.tunnel.recovery import QuietTask, Undone, find_claim, recover, tell_end
from mtunnel_tx.tunnel.services import Services
from mtunnel_tx.tunnel.settling import decide, foresee, look, settle
from mtunnel_tx.tunnel.sockets import SocketRoute
from mtunnel_tx.tunnel.tunnel import Tunnel
from mtunnel_tx.tunnel.verdict import Verdict
from mtunnel_tx.tunnel.verdicts import Verdicts
from mtunnel_tx.wire.checkrequest import CheckCall
from mtunnel_tx.wire.socketkinds import COMMANDS
from mtunnel_tx.wire.ticket import check_ticket, make_ticket, normalise

log = Logger()


class Registry:
    """The daemon's tunnels by VMID. `held` names those whose journal waits for somebody's decision, and why."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._sessions: dict[int, CommandSession] = {}
        self._opening: dict[int, str] = {}
        self._settling = DeferredLock()
        self.held: dict[int, str] = {}
        self._drained: Callable[[], None] | None = None
        self._stopping = False
        self._opened: Deferred[None] | None = None
        self._verdicts = Verdicts()
        services.observers.add(self._verdicts.observe)

    async def recover(self, survivors: Survivors | None = None) -> None:
        """Go on with what survived an earlier daemon, and finish the rest, before any tunnel may be opened."""
        undone: dict[int, Undone] = {}
        async with self._settling:
            async for session in adopt(self._services, survivors or Survivors(), self._gone, undone):
                self._sessions[session.tunnel.vmid] = session
            self.held.update(await recover(self._services, self._sessions, undone))

    async def open(
        self,
        vmid: int,
        token: str,
        storages: Sequence[str],
        bridges: Sequence[str],
        address: str = "",
        *,
        kind: str = QEMU_LAYOUT.word,
    ) -> Opened:
        """Checks, the claim, and a tunnel that waits for its command connection.

        Raises: TunnelError, PermissionDenied: a storage or bridge cannot be used. InvalidParameters: VMID taken.
        """
        self._check_room(token)
        rights = self._services.access.rights(token)
        for storage in storages:
            usable_storage(self._services, rights, storage)
        for bridge in bridges:
            check_bridge(self._services, bridge)
        if vmid in self._sessions or vmid in self._opening:
            raise _taken(self._exists(vmid))
        self._opening[vmid] = token
        try:
            return await self._open(KINDS[kind], vmid, token, address)
        finally:
            del self._opening[vmid]
            self._tell_if_opened()
            self._tell_if_drained()

    async def check(self, call: CheckCall, token: str, *, kind: str = QEMU_LAYOUT.word) -> Mapping[str, Any]:
        """See ports.Tunnels."""
        findings = Findings()
        with refusing(findings.refused):
            self._check_room(token)
        with refusing(findings.refused):
            if call.vmid in self._sessions or call.vmid in self._opening:
                raise WrongState(self._exists(call.vmid))
            self._check_free(call.vmid)
        with refusing(findings.refused):
            if reason := self._services.guests.why_unwritable():
                raise WrongState(reason)
        return await KINDS[kind].check(self._services, self._services.access.rights(token), call, findings)

    def _exists(self, vmid: int) -> str:
        return f"VM {vmid} already exists on node '{self._services.guests.node}'"

    async def _open(self, kind: GuestKind, vmid: int, token: str, address: str) -> Opened:
        services, ledger = self._services, Ledger(self._services.journal, Owed(vmid=vmid), stands=False)
        try:
            task = await self._claim(kind, ledger, token, address)
            session = await self._begin(kind, ledger, task, address)
        except Exception:
            await self._give_up(ledger)
            raise
        self._sessions[vmid] = session
        session.tunnel.tell(TunnelOpened(tunnel=session.tunnel.facts))
        name = session.tunnel.sockets.name(COMMANDS)
        ticket = make_ticket(services.ticket_key, token, name, services.wall())
        return Opened(upid=session.tunnel.task.upid, ticket=ticket, socket=name)

    async def _begin(self, kind: GuestKind, ledger: Ledger, task: TaskLog, address: str) -> CommandSession:
        task.line("mtunnel started")
        session = CommandSession(Tunnel(self._services, kind, ledger, task, address), self._gone)
        try:
            await session.listen()
        except TunnelError as error:
            task.finish(error.text)
            raise
        return session

    async def _give_up(self, ledger: Ledger) -> None:
        """The claim goes as well; where it cannot, the VMID is held."""
        ending = await end(Claim(self._services, ledger, QuietTask()))
        if ending.problem is not None:
            self.held[ledger.owed.vmid] = ending.problem
            log.error("VM {vmid} is held: {reason}", vmid=ledger.owed.vmid, reason=ending.problem)
            tell_end(self._services, ledger.owed, ending, "it could not be opened")

    def _check_room(self, token: str) -> None:
        limits = self._services.limits
        tokens = [session.tunnel.token for session in self._sessions.values()] + list(self._opening.values())
        if self._stopping:
            raise WrongState("this daemon is being stopped and takes no new tunnels")
        if self.draining:
            raise WrongState("this daemon is being drained and takes no new tunnels")
        if len(tokens) >= limits.tunnels:
            raise WrongState(f"no more than {limits.tunnels} tunnels at once")
        if tokens.count(token) >= limits.tunnels_per_token:
            raise WrongState(f"no more than {limits.tunnels_per_token} tunnels at once for one token")

    async def _claim(self, kind: GuestKind, ledger: Ledger, token: str, address: str) -> TaskLog:
        """Make the VMID this tunnel's: a journal, then a locked empty config, under the config lock."""
        guests, vmid = self._services.guests, ledger.owed.vmid
        try:
            async with guests.locked(vmid, self._services.limits.claim_lock_s):
                self._check_free(vmid)
                task = self._services.tasks.start(kind.layout.task_type, vmid, token)
                try:
                    now_s = self._services.wall()
                    await ledger.open(kind.layout.word, token, now_s, upid=task.upid, address=address)
                    await guests.create(vmid, marked(GuestConfig(), "create"))
                except TunnelError as error:
                    task.finish(error.text)
                    raise
        except InvalidParameters:
            raise
        except TunnelError as error:
            raise _taken(error.text) from error
        return task

    def _check_free(self, vmid: int) -> None:
        if reason := self._services.journal.why_taken(vmid):
            raise InvalidParameters({"vmid": reason})
        for entry in self._services.guests.entries():
            if entry.vmid == vmid:
                label = LAYOUTS[entry.kind].label
                raise WrongState(f"{label} {vmid} already exists on node '{entry.node}'")

    def route(self, vmid: int, path: str, token: str, ticket: str) -> Route:
        """Where a websocket leads; the path is looked up, never opened."""
        self._services.guests.read(vmid)
        check_ticket(ticket, self._services.ticket_key, token, path, self._services.wall())
        session = self._sessions.get(vmid)
        socket = session.tunnel.sockets.find("/" + normalise(path)) if session else None
        if session is None or socket is None or session.tunnel.token != token:
            raise Unauthenticated("permission denied - invalid PVETUNNEL ticket")
        return SocketRoute(session.tunnel.sockets, socket)

    async def abandon(self, vmid: int, token: str, upid: str) -> None:
        """End a tunnel whose source has lost its connection, and says by another one that it will not come back.

        Raises: NotFound: this token has no such tunnel. WrongState: its source is connected.
        """
        session = self._sessions.get(vmid)
        if session is None or not session.tunnel.belongs_to(token, upid):
            raise NotFound(f"VM {vmid} has no such tunnel of yours")
        if not session.tunnel.parking.has_commands:
            raise WrongState(f"the source of VM {vmid} is connected")
        self._check_not_stopping()
        session.tunnel.task.line("given up by its source, whose program had ended")
        await session.stop()

    async def digest(self, vmid: int, token: str, volid: str, *, content: bool = False) -> str:
        """See ports.Tunnels. Raises: WrongState: the tunnel ended meanwhile."""
        session = self._sessions.get(vmid)
        if session is None or session.tunnel.token != token or volid not in session.tunnel.own.volumes:
            raise NotFound(f"volume '{volid}' is not of a live tunnel of yours")
        return await session.tunnel.requests.run(self._digest(vmid, token, volid, content=content))

    async def _digest(self, vmid: int, token: str, volid: str, *, content: bool) -> str:
        async with self._services.child_turn(token, vmid):
            return await self._services.storage.digest(volid, content=content)

    def live(self) -> list[TunnelStatus]:
        """Every tunnel, by VMID."""
        return [session.tunnel.status() for _, session in sorted(self._sessions.items())]

    async def settle(self, vmid: int, *, discard: bool) -> list[str]:
        """Decide about a tunnel that was held. Returns: the volumes that stay.

        Raises: WrongState: it is live, or the daemon is being stopped.
        """
        async with self._settling:
            self._check_not_stopping()  # only now, as is what follows: it may have waited for another one
            if vmid in self._sessions or vmid in self._opening:
                raise WrongState(f"VM {vmid} has a live tunnel")
            claim = self._find_held(vmid)
            decision = Decision.DISCARD if discard else Decision.RUN
            owed, verdict = claim.owed, foresee(claim, decision)
            left = await settle(claim, decision)
            self._settled(owed, verdict, "settled by somebody")
        return left

    def _check_not_stopping(self) -> None:
        if self._stopping:
            raise WrongState("this daemon is being stopped")

    def _settled(self, owed: Owed, verdict: Verdict, reason: str) -> None:
        self.held.pop(owed.vmid, None)
        log.info("VM {vmid} is {verdict}: {reason}", vmid=owed.vmid, verdict=verdict.value, reason=reason)
        tell_end(self._services, owed, Ending(verdict), reason, is_known=True)

    async def come_late(self, vmid: int, token: str, upid: str, decision: Decision | None = None) -> LateAnswer:
        """See ports.Tunnels."""
        self._check_not_stopping()
        session = self._sessions.get(vmid)
        if session is not None and session.tunnel.belongs_to(token, upid):
            await self._end_for_latecomer(session)
        async with self._settling:
            self._check_not_stopping()  # it may have waited
            claim = self._find_standing(vmid, token, upid)
            if claim is None:
                return await self._find_past(vmid, token, upid)
            if decision is None:
                return await look(claim)
            owed = claim.owed
            verdict = await decide(claim, decision)
            self._settled(owed, verdict, "as its source said, which came late")
        return LateAnswer(verdict=verdict.value)

    async def _end_for_latecomer(self, session: CommandSession) -> None:
        """Raises: WrongState: nobody is late."""
        if not session.tunnel.parking.has_commands and not session.is_ending:
            raise WrongState(f"the source of VM {session.tunnel.vmid} is connected")
        session.tunnel.task.line("its source asks by another connection what becomes of the VM")
        await session.stop()

    def _find_standing(self, vmid: int, token: str, upid: str) -> Claim | None:
        """The journal of that tunnel, which nobody serves any more; None: it is gone, or another one's."""
        if vmid in self._sessions or vmid in self._opening:
            return None
        try:
            claim = find_claim(self._services, vmid)
        except NotFound:
            return None
        return claim if (claim.owed.token, claim.owed.upid) == (token, upid) else None

    async def _find_past(self, vmid: int, token: str, upid: str) -> LateAnswer:
        """Raises: NotFound: nobody remembers it."""
        verdict = self._verdicts.find(vmid, token, upid) or await self._services.remember(vmid, token, upid)
        if verdict is None or verdict == Verdict.HOLD.value:  # what was held stands no more, and nobody said why
            raise NotFound(f"VM {vmid} has no such tunnel of yours")
        return LateAnswer(verdict=verdict)

    def _find_held(self, vmid: int) -> Claim:
        """Raises: NotFound, WrongState, BackendFailed: as `find_claim`."""
        try:
            return find_claim(self._services, vmid)
        except NotFound as error:
            if self.held.pop(vmid, None) is None:
                raise
            hand = "look at its config, volumes and QEMU, and remove the lock by hand"
            raise WrongState(
                f"the journal of VM {vmid} is gone, and nothing is known of it any more: {hand}"
            ) from error

    @property
    def draining(self) -> bool:
        """No new tunnels are taken."""
        return self._drained is not None

    def drain(self, drained: Callable[[], None]) -> None:
        """Take no new tunnels; `drained` is called when the last one has ended, at once where there is none."""
        self._drained = drained
        self._tell_if_drained()

    def _tell_if_drained(self) -> None:
        if self._drained is not None and not self._sessions and not self._opening:
            self._drained()

    async def stop(self) -> None:
        """Take no new tunnels, and end every one by the handover rule; what is being settled is settled first."""
        self._stopping = True
        if self._opening:
            self._opened = Deferred()
            await self._opened
        await gatherResults([Deferred.fromCoroutine(session.stop()) for session in list(self._sessions.values())])
        # A settling that has begun is finished before the daemon ends.
        async with self._settling:
            pass

    async def leave(self) -> None:
        """Leave every tunnel as it is, for the next daemon; a command that is being done may end first."""
        self._stopping = True
        await gatherResults([Deferred.fromCoroutine(session.leave()) for session in self._sessions.values()])
        async with self._settling:  # as in `stop`
            pass

    def _tell_if_opened(self) -> None:
        if self._opened is not None and not self._opening:
            self._opened.callback(None)

    def _gone(self, session: CommandSession, ending: Ending) -> None:
        self._sessions.pop(session.tunnel.vmid, None)
        if ending.problem is not None:
            self.held[session.tunnel.vmid] = ending.problem
        self._tell_if_drained()


def _taken(reason: str) -> InvalidParameters:
    return InvalidParameters({"vmid": f"unable to create empty VM config - {reason}\n"})
