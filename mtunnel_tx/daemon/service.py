"""The daemon, started and stopped in the one order that is safe.

Start: room for descriptors → one daemon per state directory → control socket → what a crash left is settled → workers →
the ports open.
Stop: the ports close → tunnels end by the handover rule → relays → workers → control socket.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from mtunnel_tx.backends.files import refusal
from mtunnel_tx.backends.journal import FileJournal
from mtunnel_tx.backends.systemd import Notifier
from mtunnel_tx.config import Settings, find_tls
from mtunnel_tx.daemon.compose import (
    Composition,
    MakeJournal,
    compose,
    make_finder,
    make_resumptions,
    make_tls,
    make_workers,
)
from mtunnel_tx.daemon.control import Control
from mtunnel_tx.daemon.descriptors import raise_limit
from mtunnel_tx.daemon.listening import Listeners
from mtunnel_tx.daemon.looking import Looking
from mtunnel_tx.daemon.page import StatusPage
from mtunnel_tx.daemon.state import lock_state, make_directories
from mtunnel_tx.daemon.survival import open_store
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.http.api import ApiResource
from mtunnel_tx.http.channel import LimitedSite
from mtunnel_tx.http.entrance import Entrance
from mtunnel_tx.http.gate import Gate
from mtunnel_tx.http.operation import Parts
from mtunnel_tx.http.resumptions import Resumptions
from mtunnel_tx.net.admission import Admission
from mtunnel_tx.net.controlsocket import listen_control
from mtunnel_tx.ports.holding import Survivors
from mtunnel_tx.ports.lines import Listening
from mtunnel_tx.stream.flow import Relay
from mtunnel_tx.stream.pump import Pump
from mtunnel_tx.tls.protocol import TlsFactory
from mtunnel_tx.tunnel.registry import Registry
from mtunnel_tx.workers.holder import HolderClient

log = Logger()
THREADS = 8


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
        make_journal: MakeJournal = FileJournal,
    ) -> None:
        self._settings = settings
        self._make_journal = make_journal
        self._reactor = reactor
        self._failed = failed
        self._notifier = notifier or Notifier({}, 0)
        self._tls = make_tls(settings)
        self._pool = ThreadPool(0, THREADS, "files")
        self._listeners = Listeners(reactor)
        self._site: Any = None
        self._page: StatusPage | None = None
        self._control: Listening | None = None
        self._store: HolderClient | None = None
        self._lock: ExitStack | None = None
        self._workers = make_workers(settings, reactor, Pump(reactor)) if settings.workers else None
        self._relay: Relay = self._workers.relay if self._workers else Pump(reactor)
        self._composition: Composition | None = None
        self._starting: Deferred[None] | None = None
        self.registry: Registry | None = None

    # Start

    def startService(self) -> None:
        """Start in the background; a failure is told to `failed`."""
        super().startService()
        self._pool.start()
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._give_up)

    async def _start(self) -> None:
        settings = self._settings
        raise_limit(settings)
        make_directories(settings)
        self._lock = lock_state(settings.state_dir)
        resumptions = make_resumptions(self._reactor, settings)
        survivors = await self._find_survivors(resumptions)
        composition = self._composition = self._compose(resumptions)
        self._page = StatusPage(settings, self._reactor, composition.threads, composition)
        admission = Admission(settings.limits, self._reactor, composition.parts.counting.refused)
        control = self._make_control(composition, self._page, admission)
        composition.moves.start()
        path = settings.runtime_dir / "control.sock"
        self._control = await listen_control(self._reactor, path, control.commands(), settings.limits)
        await composition.machines.prepare()
        await composition.registry.recover(survivors)
        self.registry = composition.registry
        if self._workers is not None:
            await self._workers.start(self._tls.files)
        await self._listen(composition.parts, control, self._page, admission)
        self._notifier.ready()

    async def _find_survivors(self, resumptions: Resumptions) -> Survivors:
        self._store, kept = await open_store(self._reactor, self._settings)
        if self._store is None or self._workers is None:
            return Survivors()
        find = partial(make_finder, self._reactor, self._settings, resumptions)
        return Survivors(kept=kept, flows=await self._workers.go_on(self._store, kept, find))

    def _compose(self, resumptions: Resumptions) -> Composition:
        return compose(
            self._reactor,
            self._settings,
            pool=self._pool,
            tls=self._tls,
            relay=self._relay,
            make_journal=self._make_journal,
            workers=self._workers.status if self._workers else list,
            store=self._store,
            resumptions=resumptions,
        )

    def _make_control(self, composition: Composition, page: StatusPage, admission: Admission) -> Control:
        looking = Looking(
            settings=self._settings,
            registry=composition.registry,
            admission=admission,
            addresses=self._listeners.addresses,
            workers=self._workers.status if self._workers else list,
            moves=composition.moves.all,
            pages=page.pages,
        )
        return Control(
            registry=composition.registry,
            look=looking.look,
            is_recovered=lambda: self.registry is not None,
            end=self._stop_reactor,
            make_link=lambda host: page.link(self._listeners.addresses(), host),
        )

    async def _listen(self, parts: Parts, control: Control, page: StatusPage, admission: Admission) -> None:
        limits, gate = self._settings.limits, Gate(self._reactor, parts.counting.login_failed)
        pages = page.open(control, gate)
        entrance = Entrance(ApiResource(parts, self._reactor, gate), *([pages] if pages else []))
        site = self._site = LimitedSite(entrance, self._reactor, limits)
        factory: Any = TlsFactory(self._tls, site, self._reactor, handshake_s=limits.handshake_s, admission=admission)
        if self._workers is not None:
            factory = self._workers.factory(site, admission)
        await self._listeners.open(self._settings.listen, factory)

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

    # Stop

    def stopService(self) -> Deferred[None]:
        """End every tunnel by the handover rule, or leave them all to the next daemon."""
        super().stopService()
        self._notifier.stopping()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        await self._listeners.close()
        if self._page is not None:
            self._page.stop()
        leaves = await self._stop_tunnels()
        if self._site is not None:
            await self._site.resource.stop()
        await (self._leave() if leaves else self._end())
        if self._control is not None:
            await self._control.close()
        if self._composition is not None:
            await self._composition.moves.stop()
            self._composition.machines.close()
            await self._composition.storage.close()
        self._pool.stop()
        if leaves:
            self._let_go()
        if self._lock is not None:
            self._lock.close()

    async def _stop_tunnels(self) -> bool:
        """Returns: they go on without us."""
        registry = self._composition.registry if self._composition is not None else None
        leaves = self._store is not None and registry is not None and bool(registry.live())
        if registry is not None and leaves:
            moves, wait_s = len(registry.live()), self._settings.limits.restart_s
            log.info("left to the next daemon, which has {wait_s:g} s: moves: {moves}", moves=moves, wait_s=wait_s)
            await registry.leave()
        elif self.registry is not None:
            await self.registry.stop()
        return leaves

    async def _leave(self) -> None:
        assert self._workers is not None, "what lives on is in workers"
        await self._workers.leave()

    def _let_go(self) -> None:
        """In one turn of the reactor: nothing may be taken from a worker that the store does not hear of."""
        assert self._store is not None, "what lives on is kept there"
        self._store.close()
        # Else Twisted shuts down every connection at its end, for whoever has it then.
        self._reactor.removeAll()

    async def _end(self) -> None:
        await self._relay.stop()
        if self._workers is not None:
            await self._workers.stop()
        if self._store is not None:
            await self._store.finish()

    def _stop_reactor(self) -> None:
        """The last tunnel may also have ended because we are being stopped."""
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    # While it runs

    def reload(self) -> None:
        """Read certificate and key again, for new connections; after an error the old ones stay."""
        if self._listeners.are_open:
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
        if self._listeners.are_open:
            self._notifier.ready()

    def summary(self) -> str:
        """One line on what goes on, for people."""
        if self.registry is None:
            return "starting"
        drain = ", takes no new ones" if self.registry.draining else ""
        return f"tunnels: {len(self.registry.live())}, waiting for settle: {len(self.registry.held)}{drain}"

    def addresses(self) -> list[str]:
        """Where the daemon listens, as `HOST:PORT` or a path."""
        return self._listeners.addresses()
