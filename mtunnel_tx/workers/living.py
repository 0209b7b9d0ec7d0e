"""Flows of an earlier daemon's (ports.LivingFlow): workers have gone on with them, or they are parked."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.http.resumptions import Lasting, Resumption, Resumptions
from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.ports.holding import FlowPositions, Kept, LivingFlow, Store
from mtunnel_tx.ports.streams import Route
from mtunnel_tx.stream.flow import Flow, FlowTerms
from mtunnel_tx.unread import count_unread
from mtunnel_tx.waiting import in_time
from mtunnel_tx.workers.carried import dismiss, read_reason
from mtunnel_tx.workers.channel import (
    VERSION,
    Message,
    MessageChannel,
    Nonsense,
    close_unasked,
    read_count,
)
from mtunnel_tx.workers.keeping import PREFIX, KeptFlow
from mtunnel_tx.workers.parking import ENDS, PARKED, RUNNING, StoredFlow, begin_stored, read_parked
from mtunnel_tx.workers.relay import WorkerRelay

log = Logger()
ANSWER_S = 10.0
"""A worker that does not say by then how far a flow is hangs, and has none."""
MOST_HEARD = 100
"""No honest worker says more of one flow before it is adopted, apart from counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finder:
    """What found flows go on with. terms: of a flow that leads to a route, and may be a resumable one."""

    reactor: Reactor
    relay: WorkerRelay
    resumptions: Resumptions
    terms: Callable[[Route, Resumption | None], FlowTerms]


class FoundFlow:
    """One of them; `look` has to be awaited before anything else is asked.

    Args: value, files: as KeptFlow has put them. Raises: BackendFailed, LookupError, TypeError, ValueError: they cannot
    be understood.
    """

    def __init__(self, finder: Finder, name: str, value: Any, files: Sequence[Any]) -> None:
        if "version" not in value or value["version"] != VERSION:
            version = value.get("version", 1) if isinstance(value, dict) else "?"
            raise BackendFailed(f"it was kept in words of version {version}, not {VERSION}")
        self.vmid: int = value["vmid"]
        self.suffix: str = value["suffix"]
        named = dict(zip(value["has"], files, strict=True))
        self._finder = finder
        worker = int(value.get("worker", 0))
        self._lasting = None if value["resume"] is None else Lasting(**value["resume"])
        self._kept = KeptFlow(finder.relay.store, self._owner, name=name, told=value["told"], worker=worker)
        self._local: socket.socket = named.get("local") or socket.socket(socket.AF_UNIX)
        self._stored = self._read(value["parked"], named["file"]) if value["parked"] is not None else None
        self._runs: bool = value["runs"]
        self._heard: list[Message] = []
        self._has_learned = False
        self._is_adopted = False
        self._asked: Deferred[None] | None = None
        self._answered: Message | None = None
        self._channel: MessageChannel | None = None
        self._is_open = "channel" in named
        if self._is_open:
            self._channel = MessageChannel(finder.reactor, named["channel"], self._hear, self._close)

    def _owner(self) -> Message:
        """As in FlowTerms, until it is adopted."""
        lasting = None if self._lasting is None else self._lasting.as_json()
        return {"vmid": self.vmid, "suffix": self.suffix, "resume": lasting}

    def _read(self, message: Message, file: Any) -> StoredFlow:
        """Raises: BackendFailed."""
        if self._lasting is None:
            raise BackendFailed("a plain flow cannot be parked")
        try:
            return read_parked(message, [file], self._lasting.window_bytes)
        except Nonsense as error:
            raise BackendFailed(str(error)) from error

    async def look(self) -> None:
        """Find out whether a worker runs it. What was granted and has not begun will not."""
        if self._channel is None and self._stored is None and self._lasting is not None:
            self._stored = begin_stored(self._finder.reactor.seconds())
            return
        said = await self._ask()
        if self._channel is None or (said is not None and said.get("terms") is True):
            return
        has_begun = said is None and self._is_open  # it hangs: nobody knows
        if self._lasting is not None and not has_begun and not self._runs:
            self._take_back(self._stored or begin_stored(self._finder.reactor.seconds()))
        else:
            # It may have moved bytes since, and a worker that hangs may still do so: it ends, and is not parked.
            self._runs = self._runs or has_begun
            self._channel.close()

    async def _ask(self) -> Message | None:
        """Returns: None: there is no answer."""
        if self._channel is not None:
            self._channel.drain()
        if self._channel is None or not self._is_open:
            return None
        self._answered = None
        asked = self._asked = Deferred()
        self._channel.send({"ask": True})
        await in_time(self._finder.reactor, ANSWER_S, asked)
        return self._answered

    async def positions(self) -> FlowPositions:
        """See ports.LivingFlow."""
        said = await self._ask()
        if said is not None:
            taken, sent, queued = (read_count(said, key) for key in ("taken", "out", "queued"))
            return FlowPositions(taken_bytes=taken, sent_bytes=sent, queued_bytes=queued)
        if self._channel is not None or self._stored is None:
            raise BackendFailed("its flow has ended")
        numbers, queued_bytes = self._stored.numbers, 0 if self._local.fileno() < 0 else count_unread(self._local)
        return FlowPositions(
            taken_bytes=numbers["taken"], sent_bytes=numbers["sent"], queued_bytes=queued_bytes, is_parked=True
        )

    def _hear(self, message: Message, files: list[Any]) -> None:
        if message.get("over") == PARKED and self._lasting is not None:
            self._take_back(read_parked(message, files, self._lasting.window_bytes))
            return
        close_unasked(files)
        if "asked" in message:
            self._learn(message)
            self._answer(message)
            return
        self._note_running(message)
        if "over" in message:
            if len(self._heard) >= MOST_HEARD:
                raise Nonsense("more than can be said of a flow")
            self._heard.append(message)

    def _learn(self, said: Message) -> None:
        """The daemon before may have heard, and not have kept, that it runs, and which ends were told."""
        if self._has_learned:
            return
        self._has_learned, counts = True, {key: read_count(said, key) for key in ("in", "out")}
        self._note_running(said)
        if self._runs and self._lasting is not None:
            self._heard.insert(0, {**counts, "over": RUNNING})
        for event, reason in _read_ends(said):
            self._heard.append({**counts, "over": event, "reason": reason})

    def _note_running(self, message: Message) -> None:
        counts = [read_count(message, key) for key in ("in", "out") if key in message]
        is_running = message.get("over") == RUNNING or message.get("runs") is True
        self._runs = self._runs or is_running or any(counts)

    def _answer(self, message: Message | None) -> None:
        self._answered = message
        if self._asked is not None and not self._asked.called:
            self._asked.callback(None)

    def _take_back(self, stored: StoredFlow) -> None:
        """No worker runs it; a worker that has given it back forgets it when it is kept here."""
        channel, self._channel = self._channel, None
        assert channel is not None
        if self._stored is not None and self._stored is not stored:
            self._stored.file.close()
        self._stored, self._runs = stored, False
        self._note_heard()
        channel.received = lambda _message, files: close_unasked(files)
        self._kept.park(stored, self._local).addCallback(lambda is_safe: dismiss(channel) if is_safe else None)
        self._answer(None)

    def _note_heard(self) -> None:
        for message in self._heard:
            if message.get("over") == "local" and "local" not in [event for event, _ in self._kept.told]:
                self._kept.told.append(["local", read_reason(message)])

    def _close(self) -> None:
        self._is_open = False
        self._answer(None)

    def adopt(self, route: Route) -> None:
        """See ports.LivingFlow."""
        finder, stored, resumption = self._finder, self._stored, None
        if self._lasting is not None:
            since_s = stored.since_s if stored is not None and self._channel is None else None
            resumption = finder.resumptions.restore(route, self._lasting, since_s)
        flow = Flow(finder.relay, self._local, finder.terms(route, resumption))
        try:
            route.opened(flow)
        except Exception:
            if resumption is not None:
                finder.resumptions.drop(resumption)
            raise
        if resumption is not None:
            resumption.begin(flow)
        self._is_adopted, self._kept.owner = True, flow.terms.owner
        if self._channel is None:
            assert stored is not None, "a plain flow has a channel"
            finder.relay.go_on_parked(flow, self._kept, stored)
        else:
            finder.relay.go_on(
                flow, self._kept, self._channel, self._heard, is_open=self._is_open, value=stored, runs=self._runs
            )

    def abandon(self) -> None:
        """See ports.LivingFlow."""
        if self._is_adopted:
            return
        if self._channel is not None:
            self._channel.close()
        if self._stored is not None:
            self._stored.file.close()
        self._local.close()
        self._kept.drop()


def _read_ends(said: Message) -> list[tuple[str, str | None]]:
    """Those that a worker says it has told; one of an older release says nothing of them. Raises: Nonsense."""
    ends = said.get("ends", [])
    if not isinstance(ends, list) or len(ends) > len(ENDS):
        raise Nonsense("no list of ends")
    if not all(isinstance(end, list) and len(end) == 2 and end[0] in ENDS for end in ends):
        raise Nonsense("no end of a flow")
    return [(event, read_reason({"reason": reason})) for event, reason in ends]


class UnreadFlow:
    """One that cannot be understood (ports.LivingFlow): nobody adopts it, and it ends when its programs have."""

    suffix = ""

    def __init__(self, store: Store, name: str, value: Any) -> None:
        vmid = value.get("vmid") if isinstance(value, dict) else None
        self.vmid = vmid if isinstance(vmid, int) else 0
        self._store = store
        self._name = name

    async def positions(self) -> FlowPositions:
        """Nobody knows them."""
        raise BackendFailed("it cannot be understood")

    def adopt(self, route: Route) -> None:
        """Nobody can."""
        raise BackendFailed("it cannot be understood")

    def abandon(self) -> None:
        """See ports.LivingFlow."""
        self._store.drop(self._name)


async def find_flows(finder: Finder, store: Store, kept: Kept) -> Sequence[LivingFlow]:
    """All that are there."""
    found: list[FoundFlow] = []
    unread: list[UnreadFlow] = []
    for name in kept.names:
        if name.startswith(PREFIX):
            value = None
            try:
                value, files = await store.get(name)
                found.append(FoundFlow(finder, name, value, files))
            except (BackendFailed, LookupError, TypeError, ValueError) as error:
                log.warn("a flow of an earlier daemon ends: {reason}", reason=str(error))
                unread.append(UnreadFlow(store, name, value))
    await gatherResults([Deferred.fromCoroutine(flow.look()) for flow in found])
    return [*found, *unread]
