"""A move that this program makes, for all who watch: the terminal, `mtunnel status`, the target, and the history."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.programs import HostPrograms
from mtunnel_tx.config import Settings, make_private_directory
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.local import make_history
from mtunnel_tx.ports.events import ByteCount
from mtunnel_tx.pve.guestlayout import QEMU_LAYOUT
from mtunnel_tx.watch.history import FinishedMove
from mtunnel_tx.watch.leaving import LeavingFile, Recorder, remove_dead
from mtunnel_tx.watch.move import OUTGOING, MoveState
from mtunnel_tx.watch.reporter import Reporter, StreamDisplay, ignore


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
    if is_recorded:
        await threads.run(remove_dead, settings.runtime_dir, programs)
    changed = recorder if is_recorded else ignore
    reporter = Reporter(display, reactor, time.time, state, wire=wire, changed=changed)
    reporter.start()
    try:
        yield reporter
    finally:
        reporter.stop()
        await recorder.close()
        if reporter.state.phase.is_end:
            await _remember(threads, settings, reporter)


async def _remember(threads: ReactorThreads, settings: Settings, reporter: Reporter) -> None:
    move = finished_move(reporter)
    try:
        await threads.run(make_history(settings).add, move)
    except (OSError, sqlite3.Error, TunnelError) as error:
        reporter.say(f"the history lacks this move: {error}")


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
