"""How a daemon finds what an earlier one has left in the holder, and what it leaves there itself."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mtunnel_tx.config import Settings
from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.ports.holding import Kept
from mtunnel_tx.waiting import in_time, within
from mtunnel_tx.workers.holder import HolderClient, connect_holder, last_words, start_holder

log = Logger()
HELLO_S = 10.0


async def open_store(reactor: Any, settings: Settings) -> tuple[HolderClient | None, Kept]:
    """Find the holder, or start one. Returns: None: tunnels are to end with this daemon. Raises: BackendFailed."""
    path, restart_s = settings.runtime_dir / "hold.sock", settings.limits.restart_s
    start = partial(start_holder, reactor, path, restart_s)
    is_wanted = settings.workers > 0 and restart_s > 0
    sock = connect_holder(path)
    if sock is not None:
        found = HolderClient(reactor, sock, start)
        kept = await _greet(reactor, found, restart_s)
        if is_wanted and kept is not None:
            return found, kept
        # A program that cannot be killed just now must not keep this daemon from its start.
        await in_time(reactor, HELLO_S, Deferred.fromCoroutine(found.finish()))
    if not is_wanted:
        return None, Kept()
    fresh = HolderClient(reactor, start(), start)
    greeting = Deferred.fromCoroutine(fresh.hello(restart_s))
    try:
        return fresh, await within(reactor, HELLO_S, greeting, "the holder is silent")
    except TunnelError as error:
        fresh.close()
        said = last_words(path)
        raise BackendFailed(f"{error.text}; it said: {said}" if said else error.text) from error


async def _greet(reactor: Any, found: HolderClient, restart_s: float) -> Kept | None:
    """Returns: None: it cannot be talked to."""
    try:
        said = Deferred.fromCoroutine(found.hello(restart_s))
        return await within(reactor, HELLO_S, said, "the holder is silent")
    except TunnelError as error:
        log.error("what an earlier daemon has left is ended: {reason}", reason=error.text)
        return None
