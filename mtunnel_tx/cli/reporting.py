"""A move that this program makes, for all who watch: the terminal, `mtunnel status`, the target, and the history."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.programs import HostPrograms
from mtunnel_tx.checks import clean
from mtunnel_tx.config import Settings, make_private_directory
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.local import make_environ, make_history
from mtunnel_tx.ports.events import ByteCount
from mtunnel_tx.pve.guestlayout import QEMU_LAYOUT
from mtunnel_tx.watch.history import FinishedMove
from mtunnel_tx.watch.leaving import LeavingFile, Recorder, remove_dead
from mtunnel_tx.watch.move import OUTGOING, MoveState
from mtunnel_tx.watch.notices import SentNotices
from mtunnel_tx.watch.reporter import Reporter, StreamDisplay, ignore

if TYPE_CHECKING:
    from mtunnel_tx.daemon.notifying import NoticeTeller


def begin_state(settings: Settings, vmid: int, target_vmid: int | None = None, *, host: str, token: str) -> MoveState:
    """What is known when a move begins."""
    return MoveState(
        direction=OUTGOING,
        vmid=vmid,
        target_vmid=target_vmid or vmid,
        source=settings.node,
        target=host,
        address=host,
        token=token,
        upid="",
        since_s=time.time(),
    )


@asynccontextmanager
async def reported(
    reactor: Any,
    settings: Settings,
    display: StreamDisplay,
    state: MoveState,
    wire: Callable[[], ByteCount],
    *,
    is_recorded: bool,
) -> AsyncIterator[Reporter]:
    """Report a move; at its end it is in the history, where it came to more than a check.

    Args: is_recorded: `mtunnel status` shows it.
    """
    threads = ReactorThreads(reactor, reactor.getThreadPool())
    with suppress(TunnelError):
        make_private_directory(settings.runtime_dir)
    programs = HostPrograms()
    recorder = Recorder(LeavingFile(settings.runtime_dir, state.vmid, programs.this()), threads)
    teller = _make_teller(reactor, settings) if is_recorded else None
    if is_recorded:
        await threads.run(remove_dead, settings.runtime_dir, programs, time.time())
    notify = SentNotices(settings.node, teller or ignore, parked_s=settings.notify.parked_s, seconds=reactor.seconds)
    changed = _Both(recorder, notify) if is_recorded else ignore
    reporter = Reporter(display, reactor, time.time, state, warn=alarm, wire=wire, changed=changed)
    reporter.start()
    try:
        yield reporter
    finally:
        reporter.stop()
        await recorder.close()
        if reporter.state.phase.is_end:
            await _remember(threads, settings, reporter)
        if teller is not None:
            await teller.stop(settings.notify.end_s)


def _make_teller(reactor: Any, settings: Settings) -> NoticeTeller | None:
    """None where nobody wants to know: what it needs takes a while to import."""
    if not settings.notify.command and not settings.notify.urls:
        return None
    from mtunnel_tx.daemon.notifying import NoticeTeller

    return NoticeTeller(reactor, settings.notify, make_environ(settings, os.environ), _complain)


class _Both:
    """Passes a state on to two who want to know."""

    def __init__(self, *heard: Callable[[MoveState], object]) -> None:
        self._heard = heard

    def __call__(self, state: MoveState) -> None:
        for one in self._heard:
            one(state)


def _complain(text: str, facts: Mapping[str, Any]) -> None:
    alarm(text.format(**facts))


def alarm(text: str) -> None:
    """Say on standard error what somebody has to act on."""
    print(f"mtunnel migrate: {clean(text)}", file=sys.stderr, flush=True)


async def _remember(threads: ReactorThreads, settings: Settings, reporter: Reporter) -> None:
    move = finished_move(reporter)
    try:
        await threads.run(make_history(settings).add, move)
    except (OSError, sqlite3.Error, TunnelError) as error:
        reporter.warn(f"the history lacks this move: {error}")


def finished_move(reporter: Reporter) -> FinishedMove:
    """A row of the history."""
    state = reporter.state
    return FinishedMove(
        vmid=state.vmid,
        kind=QEMU_LAYOUT.word,
        direction=state.direction,
        token=state.token,
        peer=state.address,
        upid=state.upid,
        since_s=state.since_s,
        duration_s=round((state.ended_s or state.since_s) - state.since_s, 3),
        outcome=state.phase.value,
        reason=state.reason,
        problem=None,
        bytes_in=state.wire_in_bytes,
        bytes_out=state.wire_out_bytes,
        phases=reporter.phases,
    )
