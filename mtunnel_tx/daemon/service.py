"""The daemon: joins the parts, and starts and stops them in the one order that is safe.

Start: one daemon per state directory → door → what a crash left is settled → the port opens.
Stop: the port closes → tunnels end by the handover rule → relays → door.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from mtunnel_tx import __version__
from mtunnel_tx.backends.access import FileAccess
from mtunnel_tx.backends.files import ReactorThreads, create_file, refusal
from mtunnel_tx.backends.guests import GuestFiles
from mtunnel_tx.backends.journal import FileJournal
from mtunnel_tx.backends.proxmox import ProxmoxMachines
from mtunnel_tx.backends.qemu import QemuMachines
from mtunnel_tx.backends.storage import PvesmStorage
from mtunnel_tx.backends.systemd import Notifier
from mtunnel_tx.backends.tasks import FileTasks
from mtunnel_tx.config import Settings, find_tls, make_private_directory
from mtunnel_tx.errors import BadRequest, TunnelError, WrongState
from mtunnel_tx.http.api import make_site
from mtunnel_tx.http.crossing import cross_over
from mtunnel_tx.http.forward import Elsewhere
from mtunnel_tx.http.handshake import Handshake
from mtunnel_tx.http.openapi import describe_api
from mtunnel_tx.http.operation import Parts
from mtunnel_tx.http.table import BASE, OPERATIONS
from mtunnel_tx.http.upgrade import upgrade
from mtunnel_tx.local import make_guests, make_machines, make_proxmox_machines, make_storage
from mtunnel_tx.net.admission import Admission
from mtunnel_tx.net.commandsocket import listen_control
from mtunnel_tx.net.controlsocket import listen_door
from mtunnel_tx.ports.journal import Journal
from mtunnel_tx.ports.lines import Answerer, Listening
from mtunnel_tx.ports.streams import Route
from mtunnel_tx.stream.link import Relays
from mtunnel_tx.stream.peer import dial
from mtunnel_tx.stream.pump import Pump
from mtunnel_tx.stream.stream import StreamLimits
from mtunnel_tx.tls.certificate import fingerprint
from mtunnel_tx.tls.protocol import TlsContext, TlsFactory
from mtunnel_tx.tunnel.qemu.table import QEMU_COMMANDS
from mtunnel_tx.tunnel.registry import Registry
from mtunnel_tx.tunnel.services import Services, TunnelLimits
from mtunnel_tx.workers.pool import WorkerPool
from mtunnel_tx.workers.program import WorkerProgram

log = Logger()
THREADS = 8
TICKET_KEY_BYTES = 32
NETWORK = Path("/sys/class/net")


class Daemon(Service):
    """Everything that `twistd mtunnel` runs. `failed` is called with the reason when the start comes to nothing."""

    name = "mtunnel"

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        failed: Callable[[str], None],
        *,
        notifier: Notifier | None = None,
        make_journal: Callable[[ReactorThreads, Path], Journal] = FileJournal,
    ) -> None:
        self._settings = settings
        self._make_journal = make_journal
        self._reactor = reactor
        self._failed = failed
        self._notifier = notifier or Notifier({}, 0)
        self._tls = make_tls(settings)
        self._pool = ThreadPool(0, THREADS, "files")
        self._ports: list[Any] = []  # IListeningPort, which is no type for mypy
        self._door: Listening | None = None
        self._lock: IO[bytes] | None = None
        self._workers = make_workers(settings, reactor, Pump(reactor)) if settings.workers else None
        self._relays: Relays = self._workers.relay if self._workers else Pump(reactor)
        self._machines: QemuMachines | ProxmoxMachines | None = None
        self._starting: Deferred[None] | None = None
        self.registry: Registry | None = None

    def startService(self) -> None:
        """Start in the background; a failure is told to `failed`."""
        super().startService()
        self._pool.start()
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._give_up)

    def stopService(self) -> Deferred[None]:
        """End every tunnel by the handover rule."""
        super().stopService()
        self._notifier.stopping()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        for port in self._ports:
            await _ended(port.stopListening())
        if self.registry is not None:
            await self.registry.stop()
        await self._relays.stop()
        if self._workers is not None:
            await self._workers.stop()
        if self._door is not None:
            await self._door.close()
        if self._machines is not None:
            self._machines.close()
        self._pool.stop()
        if self._lock is not None:
            self._lock.close()

    def reload(self) -> None:
        """Read certificate and key again, for new connections; after an error the old ones stay."""
        if self._ports:
            # Else it only becomes ready.
            self._notifier.reloading()
        try:
            tls = find_tls(self._settings)
            self._tls.reload(tls.certificate, tls.key)
            if self._workers is not None:
                self._workers.certify(self._tls.files)
            log.info("certificate and key were read again")
        except TunnelError as error:
            log.error("certificate and key stay as they are: {reason}", reason=error.text)
        if self._ports:
            self._notifier.ready()

    async def _start(self) -> None:
        settings = self._settings
        own = () if settings.profile == "proxmox" else (settings.machine_dir,)
        for folder in (settings.state_dir, settings.runtime_dir, *own):
            make_private_directory(folder)
        settings.lock_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock_state(settings.state_dir)
        registry, parts = self._join()
        door = Door(self, registry, self._stop_reactor)
        self._door = await listen_door(
            self._reactor, settings.runtime_dir / "control.sock", door.commands, settings.limits
        )
        if self._machines is not None:
            await self._machines.prepare()
        await registry.recover()
        self.registry = registry
        if self._workers is not None:
            await self._workers.start(self._tls.files)
        await self._listen(parts)
        self._notifier.ready()

    def summary(self) -> str:
        """One line on what goes on, for people."""
        if self.registry is None:
            return "starting"
        drain = ", takes no new ones" if self.registry.draining else ""
        return f"tunnels: {len(self.registry.live())}, waiting for settle: {len(self.registry.held)}{drain}"

    async def _listen(self, parts: Parts) -> None:
        limits = self._settings.limits
        site = make_site(parts, self._reactor, limits)
        admission = Admission(limits, self._reactor)
        factory: Any = TlsFactory(self._tls, site, self._reactor, handshake_s=limits.handshake_s, admission=admission)
        if self._workers is not None:
            factory = self._workers.factory(site, admission)
        for text in self._settings.listen:
            try:
                self._ports.append(await serverFromString(self._reactor, text).listen(factory))
            except Exception as error:
                raise TunnelError(f"cannot listen on '{text}': {_reason(error)}") from error
        log.info("listening on {addresses}", addresses=", ".join(self.addresses()))

    def addresses(self) -> list[str]:
        """Where the daemon listens, as `HOST:PORT` or a path."""
        return [_shown(port.getHost()) for port in self._ports]

    def workers(self) -> list[dict[str, int]]:
        """The processes that carry streams, as `mtunnel status` shows them."""
        return self._workers.status() if self._workers else []

    def _join(self) -> tuple[Registry, Parts]:
        settings, reactor = self._settings, self._reactor
        threads = ReactorThreads(reactor, self._pool)
        access = FileAccess(settings.pve_dir, reactor)
        guests = make_guests(threads, settings)
        storage = make_storage(reactor, settings)
        tasks = FileTasks(settings.state_dir, settings.node, reactor)
        machines = self._machines = self._make_machines(threads, guests, storage)
        services = Services(
            access=access,
            guests=guests,
            storage=storage,
            hypervisor=machines,
            journal=self._make_journal(threads, settings.state_dir),
            tasks=tasks,
            clock=reactor,
            threads=threads,
            listen=self._listen_control,
            bridge_exists=lambda name: (NETWORK / name).exists(),
            random_bytes=os.urandom,
            ticket_key=_ticket_key(settings.state_dir / "ticket.key"),
            runtime_dir=settings.runtime_dir,
            machine_dir=settings.machine_dir,
            limits=_tunnel_limits(settings),
        )
        registry = Registry(services)
        parts = Parts(
            access=access,
            tunnels=registry,
            guests=guests,
            storage=storage,
            hypervisor=machines,
            tasks=tasks,
            nodes=lambda: _nodes(settings),
            bridges=lambda: sorted(path.name for path in NETWORK.iterdir()),
            fingerprint=self._own_fingerprint,
            upgrader=self._upgrade,
            elsewhere=self._make_elsewhere(),
            description=lambda: describe_api(OPERATIONS, QEMU_COMMANDS.values(), BASE),
        )
        return registry, parts

    def _make_machines(
        self, threads: ReactorThreads, guests: GuestFiles, storage: PvesmStorage
    ) -> QemuMachines | ProxmoxMachines:
        if self._settings.profile == "proxmox":
            return make_proxmox_machines(self._reactor, self._settings, guests)
        return make_machines(threads, self._settings, storage)

    def _stop_reactor(self) -> None:
        """The last tunnel may also have ended because we are being stopped."""
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    async def _listen_control(self, path: Path, answerer: Answerer) -> Listening:
        return await listen_control(self._reactor, path, answerer, self._settings.limits)

    async def _upgrade(self, request: Any, handshake: Handshake, route: Route) -> None:
        """Join a websocket with the socket that its route names."""
        route.check_room()
        local = await dial(self._reactor, route.file)
        limits = _stream_limits(self._settings)
        await upgrade(request, handshake, local, route, relays=self._relays, limits=limits, reactor=self._reactor)

    def _own_fingerprint(self) -> str:
        return fingerprint(self._tls.files.certificate)

    def _make_elsewhere(self) -> Elsewhere:
        settings, limits = self._settings, _stream_limits(self._settings)
        cross = partial(cross_over, relays=self._relays, limits=limits, reactor=self._reactor)
        return Elsewhere(
            settings.forward,
            self._reactor,
            node=settings.node,
            own_fingerprint=self._own_fingerprint,
            cross_over=cross,
        )

    def _give_up(self, failure: Failure) -> None:
        """Say why there is no daemon."""
        if failure.check(CancelledError):
            return
        error = failure.value
        if isinstance(error, OSError):
            error = refusal(error)
        if not isinstance(error, TunnelError):
            log.failure("unexpected failure at the start", failure)
        reason = error.text if isinstance(error, TunnelError) else str(error)
        log.critical("cannot start: {reason}", reason=reason)
        self._failed(reason)


class Door:
    """What `mtunnel status`, `settle` and `drain` ask for."""

    def __init__(self, daemon: Daemon, registry: Registry, drained: Callable[[], None]) -> None:
        self._daemon = daemon
        self._registry = registry
        self._drained = drained
        self.commands = {"status": self._status, "settle": self._settle, "drain": self._drain}

    async def _status(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "listening": self._daemon.addresses(),
            "workers": self._daemon.workers(),
            "draining": self._registry.draining,
            "tunnels": [asdict(tunnel) for tunnel in self._registry.live()],
            "held": {str(vmid): reason for vmid, reason in sorted(self._registry.held.items())},
        }

    async def _settle(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        vmid, discard = request.get("vmid"), request.get("discard")
        if not isinstance(vmid, int) or not isinstance(discard, bool):
            raise BadRequest("settle takes a number `vmid` and a truth value `discard`")
        if self._daemon.registry is None:
            raise WrongState("what a crash left is being looked at; try again once the port is open")
        return {"left": await self._registry.settle(vmid, discard=discard)}

    async def _drain(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take no new tunnels, and tell `drained` when the last one has ended."""
        self._registry.drain(self._drained)
        return {"tunnels": len(self._registry.live())}


def make_tls(settings: Settings) -> TlsContext:
    """Certificate and key, tried. Raises: TunnelError: they cannot be used."""
    group_reads = settings.profile == "proxmox"
    return TlsContext(settings.tls.certificate, settings.tls.key, group_reads=group_reads)


def make_workers(settings: Settings, reactor: Any, here: Relays) -> WorkerPool:
    """The processes that do TLS and carry streams; `here` runs those of our own."""
    program = WorkerProgram(reactor, os.environ, user=settings.user, label=str(settings.state_dir))
    handshake_s = settings.limits.handshake_s
    return WorkerPool(reactor, count=settings.workers, spawn=program.spawn, here=here, handshake_s=handshake_s)


def _lock_state(state_dir: Path) -> IO[bytes]:
    """Two daemons on one state would undo each other's tunnels. Raises: WrongState."""
    file = (state_dir / "daemon.lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise WrongState(f"another daemon works on '{state_dir}'") from error
    return file


def _ticket_key(path: Path) -> bytes:
    """The key that signs tickets, made on first use, mode 0600. Raises: WrongState: what is there is none."""
    with suppress(FileExistsError):
        create_file(path, os.urandom(TICKET_KEY_BYTES).hex(), 0o600)
    try:
        key = bytes.fromhex(path.read_text("ascii"))
    except ValueError:
        key = b""
    if len(key) != TICKET_KEY_BYTES:
        raise WrongState(f"'{path}' holds no key; remove it, and the next start makes one")
    return key


def _nodes(settings: Settings) -> list[str]:
    folder = settings.pve_dir / "nodes"
    found = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    return sorted(found | {settings.node})


def _tunnel_limits(settings: Settings) -> TunnelLimits:
    limits = settings.limits
    return TunnelLimits(
        connect_s=limits.connect_s,
        tunnels=limits.tunnels,
        tunnels_per_token=limits.tunnels_per_token,
        streams_per_tunnel=limits.streams_per_tunnel,
        config_bytes=limits.config_bytes,
    )


def _stream_limits(settings: Settings) -> StreamLimits:
    limits = settings.limits
    return StreamLimits(
        frame_bytes=limits.frame_bytes,
        stall_s=limits.stall_s,
        dead_peer_s=limits.dead_peer_s,
        half_close_s=limits.half_close_s,
    )


def _reason(error: Exception) -> str:
    """Why nothing listens; where systemd holds the socket, only a look-up fails."""
    if isinstance(error, KeyError):
        return f"systemd passed no socket named {error}"
    return "systemd passed fewer sockets" if isinstance(error, IndexError) else str(error)


def _shown(address: Any) -> str:
    """`HOST:PORT` of an address, or a socket's path."""
    host = getattr(address, "host", None)
    return f"{host}:{address.port}" if host else os.fsdecode(getattr(address, "name", b"") or b"?")


async def _ended(stopping: Any) -> None:
    if isinstance(stopping, Deferred):
        await stopping
