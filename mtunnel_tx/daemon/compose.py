"""Joins the parts of a daemon: this host behind the ports, the tunnels, and what the HTTP API talks to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Sequence, Sized
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from twisted.python.threadpool import ThreadPool

from mtunnel_tx.backends.access import FileAccess
from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.guests import GuestFiles
from mtunnel_tx.backends.localmachines import LocalMachines
from mtunnel_tx.backends.notes import FileNotes
from mtunnel_tx.backends.proxmox import ProxmoxMachines
from mtunnel_tx.backends.storage import PvesmStorage
from mtunnel_tx.backends.tasks import FileTasks
from mtunnel_tx.config import Limits, Settings
from mtunnel_tx.daemon.moves import Moves
from mtunnel_tx.daemon.state import read_key
from mtunnel_tx.http.crossing import cross_over
from mtunnel_tx.http.forward import Elsewhere
from mtunnel_tx.http.handshake import Handshake
from mtunnel_tx.http.openapi import describe_api
from mtunnel_tx.http.operation import Parts
from mtunnel_tx.http.parameters import read_header
from mtunnel_tx.http.resumptions import ResumeLimits, Resumptions
from mtunnel_tx.http.table import BASE, OPERATIONS
from mtunnel_tx.http.upgrade import expect_nothing, go_on_unused, make_terms, upgrade
from mtunnel_tx.http.websocket import Upgrader
from mtunnel_tx.local import make_guests, make_history, make_machines, make_proxmox_machines, make_storage
from mtunnel_tx.net.commandsocket import listen_commands, resume_commands
from mtunnel_tx.ports.children import ChildTurn
from mtunnel_tx.ports.events import Observer
from mtunnel_tx.ports.holding import Store
from mtunnel_tx.ports.journal import Journal
from mtunnel_tx.ports.streams import Route
from mtunnel_tx.stream.flow import Flow, Relay
from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.stream.unixside import dial
from mtunnel_tx.tls.certificate import fingerprint
from mtunnel_tx.tls.protocol import TlsContext
from mtunnel_tx.tunnel import audit
from mtunnel_tx.tunnel.observers import Observers
from mtunnel_tx.tunnel.qemu.table import QEMU_COMMANDS
from mtunnel_tx.tunnel.registry import Registry
from mtunnel_tx.tunnel.services import Services, TunnelLimits
from mtunnel_tx.waiting import Quota
from mtunnel_tx.watch.board import Board
from mtunnel_tx.watch.history import HistoryObserver, find_outcome, record_outcome
from mtunnel_tx.watch.metrics import LiveFacts, Metrics
from mtunnel_tx.watch.timedjournal import TimedJournal
from mtunnel_tx.wire.resuming import HEADER, is_asked_for
from mtunnel_tx.workers.living import Finder
from mtunnel_tx.workers.pool import WorkerPool
from mtunnel_tx.workers.program import WorkerProgram
from mtunnel_tx.workers.relay import WorkerRelay

NETWORK = Path("/sys/class/net")
MakeJournal = Callable[[ReactorThreads, Path], Journal]


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """A daemon's parts: its tunnels, what the HTTP API talks to, the virtual machines of this host, its moves, …"""

    registry: Registry
    parts: Parts
    machines: LocalMachines | ProxmoxMachines
    storage: PvesmStorage
    moves: Moves
    journal: Journal
    threads: ReactorThreads


def compose(
    reactor: Any,
    settings: Settings,
    *,
    pool: ThreadPool,
    tls: TlsContext,
    relay: Relay,
    make_journal: MakeJournal,
    workers: Callable[[], Sized],
    resumptions: Resumptions,
    store: Store | None = None,
) -> Composition:
    """Join everything; nothing is started.

    Args: pool: for work with files. workers: the processes that carry streams. store: what tunnels need to outlive this
    daemon. Raises: WrongState: no key for tickets.
    """
    threads = ReactorThreads(reactor, pool)
    host = _make_host(threads, settings, store)
    board, metrics = Board(settings.node, time.time), Metrics(reactor.seconds)
    journal = TimedJournal(make_journal(threads, settings.state_dir), time.monotonic, metrics.appended)
    services = _make_services(threads, settings, host, journal, store, watchers=(board, metrics))
    registry = Registry(services)
    metrics.look_at(_live_facts(registry, workers))
    moves = Moves(board, reactor, threads, settings, metrics.was_late)
    services.observers.add(moves.observe)
    services.observers.add(resumptions.observe)
    parts = _make_parts(reactor, settings, services, registry, host.tasks, tls, relay, resumptions)
    return Composition(
        registry=registry,
        parts=replace(parts, moves=moves.as_json, counting=metrics),
        machines=host.machines,
        storage=host.storage,
        moves=moves,
        journal=journal,
        threads=threads,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Host:
    """What a daemon works with on this host."""

    guests: GuestFiles
    storage: PvesmStorage
    machines: LocalMachines | ProxmoxMachines
    tasks: FileTasks


def _make_host(threads: ReactorThreads, settings: Settings, store: Store | None) -> _Host:
    guests = make_guests(threads, settings)
    storage = make_storage(threads.reactor, settings, store=store, keeps=True)
    machines = _make_machines(threads, settings, guests, storage)
    return _Host(
        guests=guests,
        storage=storage,
        machines=machines,
        tasks=FileTasks(settings.state_dir, settings.node, time.time),
    )


def _make_services(
    threads: ReactorThreads,
    settings: Settings,
    host: _Host,
    journal: Journal,
    store: Store | None,
    *,
    watchers: Sequence[Observer],
) -> Services:
    """What tunnels work with. Args: watchers: who else is told what happens to them."""
    history = make_history(settings)
    return Services(
        access=FileAccess(settings.pve_dir, time.time),
        guests=host.guests,
        storage=host.storage,
        hypervisor=host.machines,
        journal=journal,
        tasks=host.tasks,
        child_turn=_make_child_turn(settings.limits),
        clock=threads.reactor,
        wall=time.time,
        threads=threads,
        **_host_values(settings),
        **_make_command_lines(threads.reactor, settings, store),
        observers=Observers(audit.observe, HistoryObserver(history, threads, time.monotonic), *watchers),
        remember=partial(find_outcome, history, threads),
        record=partial(record_outcome, history, threads),
    )


def _host_values(settings: Settings) -> dict[str, Any]:
    """What tunnels need to know of this host. Raises: WrongState: no key for tickets."""
    return {
        "bridge_exists": lambda name: NETWORK / name in NETWORK.iterdir(),
        "random_bytes": os.urandom,
        "ticket_key": read_key(settings.state_dir / "ticket.key"),
        "runtime_dir": settings.runtime_dir,
        "machine_dir": settings.machine_dir,
        "limits": settings.limits.of(TunnelLimits),
    }


def _live_facts(registry: Registry, workers: Callable[[], Sized]) -> LiveFacts:
    return LiveFacts(
        tunnels=lambda: len(registry.live()),
        held=lambda: len(registry.held),
        workers=lambda: len(workers()),
        is_draining=lambda: registry.draining,
    )


def _make_parts(
    reactor: Any,
    settings: Settings,
    services: Services,
    registry: Registry,
    tasks: FileTasks,
    tls: TlsContext,
    relay: Relay,
    resumptions: Resumptions,
) -> Parts:
    streams = settings.limits.of(FlowLimits)
    return Parts(
        access=services.access,
        child_turn=services.child_turn,
        tunnels=registry,
        guests=services.guests,
        storage=services.storage,
        hypervisor=services.hypervisor,
        tasks=tasks,
        nodes=lambda: _nodes(settings),
        bridges=lambda: sorted(path.name for path in NETWORK.iterdir()),
        fingerprint=lambda: _fingerprint(tls),
        upgrader=_make_upgrader(reactor, relay, streams, resumptions),
        resumptions=resumptions,
        elsewhere=_make_elsewhere(reactor, settings, tls, relay, streams),
        description=lambda: describe_api(OPERATIONS, QEMU_COMMANDS.values(), BASE),
    )


def _make_command_lines(reactor: Any, settings: Settings, store: Store | None) -> dict[str, Any]:
    """Command connections, and what lets them go on in the next daemon."""
    limits = settings.limits
    return {
        "listen": partial(listen_commands, reactor, limits=limits),
        "resume": partial(resume_commands, reactor, limits=limits),
        "notes": FileNotes(settings.runtime_dir),
        "store": store,
    }


def make_tls(settings: Settings) -> TlsContext:
    """Certificate and key, tried. Raises: TunnelError: they cannot be used."""
    group_reads = settings.profile == "proxmox"
    return TlsContext(settings.tls.certificate, settings.tls.key, group_reads=group_reads)


def make_finder(reactor: Any, settings: Settings, resumptions: Resumptions, relay: WorkerRelay) -> Finder:
    """What an earlier daemon's flows go on with."""
    terms = partial(make_terms, limits=settings.limits.of(FlowLimits))
    return Finder(reactor=reactor, relay=relay, resumptions=resumptions, terms=terms)


def make_workers(settings: Settings, reactor: Any, here: Relay) -> WorkerPool:
    """The processes that do TLS and carry streams; `here` runs those of our own."""
    program = WorkerProgram(reactor, os.environ, user=settings.user, label=str(settings.state_dir))
    return WorkerPool(
        reactor,
        count=settings.workers,
        spawn=program.spawn,
        here=here,
        handshake_s=settings.limits.handshake_s,
        explain=program.explain,
    )


def _make_machines(
    threads: ReactorThreads, settings: Settings, guests: GuestFiles, storage: PvesmStorage
) -> LocalMachines | ProxmoxMachines:
    if settings.profile == "proxmox":
        return make_proxmox_machines(threads.reactor, settings, guests)
    return make_machines(threads, settings, storage)


def _make_child_turn(limits: Limits) -> ChildTurn:
    quota = Quota(limits.children)

    def turn(token: str, vmid: int | None) -> AbstractAsyncContextManager[None]:
        owners: dict[Hashable, int] = {token: limits.children_per_token}
        if vmid is not None:
            owners[vmid] = limits.children_per_tunnel
        return quota.turn(owners)

    return turn


def make_resumptions(reactor: Any, settings: Settings) -> Resumptions:
    """The flows that outlive their connections. Raises: WrongState: no key for them."""
    secret = read_key(settings.state_dir / "resume.key")
    return Resumptions(reactor, secret, os.urandom, settings.limits.of(ResumeLimits))


def _make_upgrader(reactor: Any, relay: Relay, limits: FlowLimits, resumptions: Resumptions) -> Upgrader:
    expect = relay.expect if isinstance(relay, WorkerRelay) else expect_nothing
    parts: dict[str, Any] = {"relay": relay, "limits": limits, "reactor": reactor, "expect": expect}

    async def join(request: Any, handshake: Handshake, route: Route) -> None:
        """Join a websocket with the socket that its route names."""
        is_wanted = is_asked_for(read_header(request, HEADER.encode("ascii")))
        unused = route.unused() if is_wanted else None
        if isinstance(unused, Flow):
            await go_on_unused(request, handshake, unused, resumptions, parts["expect"])
            return
        route.check_room()
        local = await dial(reactor, route.file)
        resumption = resumptions.begin(route) if is_wanted else None
        if resumption is None:
            await upgrade(request, handshake, local, route, **parts)
            return
        try:
            await upgrade(request, handshake, local, route, resumption=resumption, **parts)
        except BaseException:
            resumptions.drop(resumption)
            raise

    return join


def _make_elsewhere(reactor: Any, settings: Settings, tls: TlsContext, relay: Relay, limits: FlowLimits) -> Elsewhere:
    return Elsewhere(
        settings.forward,
        reactor,
        node=settings.node,
        own_fingerprint=lambda: _fingerprint(tls),
        cross_over=partial(cross_over, relay=relay, limits=limits, reactor=reactor),
    )


def _fingerprint(tls: TlsContext) -> str:
    return fingerprint(tls.files.certificate)


def _nodes(settings: Settings) -> list[str]:
    folder = settings.pve_dir / "nodes"
    found = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    return sorted(found | {settings.node})
