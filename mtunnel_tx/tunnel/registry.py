"""All live tunnels (ports.Tunnels): opening them, finding their sockets, ending them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, DeferredLock, gatherResults
from twisted.logger import Logger

from mtunnel_tx.errors import InvalidParameters, NotFound, TunnelError, Unauthenticated, WrongState
from mtunnel_tx.ports.streams import Route
from mtunnel_tx.ports.tunnels import Opened, TunnelStatus
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.tunnel.checks import usable_storage
from mtunnel_tx.tunnel.ledger import Ledger, Owed
from mtunnel_tx.tunnel.live import Tunnel, marked
from mtunnel_tx.tunnel.recovery import Recovery
from mtunnel_tx.tunnel.sockets import Passage
from mtunnel_tx.tunnel.worker import Worker
from mtunnel_tx.tunnel.world import World
from mtunnel_tx.wire.socketkinds import COMMANDS
from mtunnel_tx.wire.ticket import check_ticket, make_ticket, normalise

log = Logger()


class Registry:
    """The daemon's tunnels by VMID. `held` names those whose journal waits for somebody's decision, and why."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._workers: dict[int, Worker] = {}
        self._opening: dict[int, str] = {}
        self._settling = DeferredLock()
        self.held: dict[int, str] = {}
        self._drained: Callable[[], None] | None = None
        self._stopping = False
        self._opened: Deferred[None] | None = None

    async def recover(self) -> None:
        """Finish what a crash left, before any tunnel may be opened."""
        async with self._settling:
            self.held.update(await Recovery(self._world).run())

    async def open(
        self, vmid: int, token: str, storages: Sequence[str], bridges: Sequence[str], address: str = ""
    ) -> Opened:
        """Checks, the claim, and a tunnel that waits for its command connection.

        Raises: TunnelError, PermissionDenied: a storage or bridge cannot be used. InvalidParameters: VMID taken.
        """
        self._check_room(token)
        rights = self._world.access.rights(token)
        for storage in storages:
            usable_storage(self._world, rights, storage)
        for bridge in bridges:
            if not self._world.bridge_exists(bridge):
                raise TunnelError(f"bridge '{bridge}' does not exist")
        if vmid in self._workers or vmid in self._opening:
            raise _taken(f"VM {vmid} already exists on node '{self._world.guests.node}'")
        self._opening[vmid] = token
        try:
            return await self._open(vmid, token, address)
        finally:
            del self._opening[vmid]
            self._tell_if_opened()
            self._tell_if_drained()

    async def _open(self, vmid: int, token: str, address: str) -> Opened:
        world, ledger = self._world, Ledger(self._world.journal, Owed(vmid=vmid), standing=False)
        try:
            await self._claim(ledger, token)
            worker = await self._begin(ledger)
        except Exception:
            await self._give_up(ledger)
            raise
        worker.tunnel.address = address
        self._workers[vmid] = worker
        name = worker.tunnel.sockets.name(COMMANDS)
        ticket = make_ticket(world.ticket_key, token, name, world.clock.seconds())
        return Opened(upid=worker.tunnel.task.upid, ticket=ticket, socket=name)

    async def _begin(self, ledger: Ledger) -> Worker:
        task = self._world.tasks.start(ledger.owed.vmid, ledger.owed.token)
        task.line("mtunnel started")
        worker = Worker(Tunnel(self._world, ledger, task), self._gone)
        try:
            await worker.listen()
        except TunnelError as error:
            task.finish(error.text)
            raise
        return worker

    async def _give_up(self, ledger: Ledger) -> None:
        """The claim goes as well; where it cannot, the VMID is held."""
        try:
            await Recovery(self._world).end(ledger)
        except TunnelError as error:
            self.held[ledger.owed.vmid] = error.text
            log.error("VM {vmid} is held: {reason}", vmid=ledger.owed.vmid, reason=error.text)

    def _check_room(self, token: str) -> None:
        limits = self._world.limits
        tokens = [worker.tunnel.token for worker in self._workers.values()] + list(self._opening.values())
        if self._stopping:
            raise WrongState("this daemon is being stopped and takes no new tunnels")
        if self.draining:
            raise WrongState("this daemon is being drained and takes no new tunnels")
        if len(tokens) >= limits.tunnels:
            raise WrongState(f"no more than {limits.tunnels} tunnels at once")
        if tokens.count(token) >= limits.tunnels_per_token:
            raise WrongState(f"no more than {limits.tunnels_per_token} tunnels at once for one token")

    async def _claim(self, ledger: Ledger, token: str) -> None:
        """Make the VMID this tunnel's: a journal, then a locked empty config, under the config lock."""
        guests, vmid = self._world.guests, ledger.owed.vmid
        try:
            async with guests.locked(vmid, self._world.limits.claim_lock_s):
                self._check_free(vmid)
                await ledger.open(token, self._world.clock.seconds())
                await guests.create(vmid, marked(GuestConfig(), "create"))
        except InvalidParameters:
            raise
        except TunnelError as error:
            raise _taken(error.text) from error

    def _check_free(self, vmid: int) -> None:
        if vmid in self._world.journal.standing():
            raise InvalidParameters({"vmid": f"VM {vmid} waits for 'mtunnel settle {vmid}'"})
        for entry in self._world.guests.entries():
            if entry.vmid == vmid:
                kind = "CT" if entry.kind == "lxc" else "VM"
                raise _taken(f"{kind} {vmid} already exists on node '{entry.node}'")

    def route(self, vmid: int, path: str, token: str, ticket: str) -> Route:
        """Where a websocket leads; the path is looked up, never opened."""
        self._world.guests.read(vmid)
        check_ticket(ticket, self._world.ticket_key, token, path, self._world.clock.seconds())
        worker = self._workers.get(vmid)
        socket = worker.tunnel.sockets.find("/" + normalise(path)) if worker else None
        if worker is None or socket is None or worker.tunnel.token != token:
            raise Unauthenticated("permission denied - invalid PVETUNNEL ticket")
        return Passage(worker.tunnel.sockets, socket)

    async def digest(self, vmid: int, token: str, volid: str) -> str:
        """SHA-256 of a volume that this token's live tunnel made."""
        worker = self._workers.get(vmid)
        if worker is None or worker.tunnel.token != token or volid not in worker.tunnel.own.volumes:
            raise NotFound(f"volume '{volid}' is not of a live tunnel of yours")
        return await self._world.storage.digest(volid)

    def live(self) -> list[TunnelStatus]:
        """Every tunnel, by VMID."""
        return [worker.tunnel.status() for _, worker in sorted(self._workers.items())]

    async def settle(self, vmid: int, *, discard: bool) -> list[str]:
        """Decide about a tunnel that was held. Returns: the volumes that stay. Raises: WrongState: it is live."""
        async with self._settling:
            # Asked when it is our turn: while others were settled, somebody may have opened one.
            if vmid in self._workers or vmid in self._opening:
                raise WrongState(f"VM {vmid} has a live tunnel")
            left = await Recovery(self._world).settle(vmid, discard=discard)
        self.held.pop(vmid, None)
        return left

    @property
    def draining(self) -> bool:
        """No new tunnels are taken."""
        return self._drained is not None

    def drain(self, drained: Callable[[], None]) -> None:
        """Take no new tunnels; `drained` is called when the last one has ended, at once where there is none."""
        self._drained = drained
        self._tell_if_drained()

    def _tell_if_drained(self) -> None:
        if self._drained is not None and not self._workers and not self._opening:
            self._drained()

    async def stop(self) -> None:
        """Take no new tunnels, and end every one by the handover rule; what is being settled is settled first."""
        self._stopping = True
        if self._opening:
            self._opened = Deferred()
            await self._opened
        await gatherResults([Deferred.fromCoroutine(worker.stop()) for worker in list(self._workers.values())])
        # As with a command in work: what somebody decided is done before the daemon ends.
        async with self._settling:
            pass

    def _tell_if_opened(self) -> None:
        if self._opened is not None and not self._opening:
            self._opened.callback(None)

    def _gone(self, worker: Worker, problem: str | None) -> None:
        self._workers.pop(worker.tunnel.vmid, None)
        if problem is not None:
            self.held[worker.tunnel.vmid] = problem
        self._tell_if_drained()


def _taken(reason: str) -> InvalidParameters:
    return InvalidParameters({"vmid": f"unable to create empty VM config - {reason}\n"})
