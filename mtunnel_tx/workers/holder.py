"""The daemon's end of the holder (`hold/`): ports.Store over its socket."""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BackendFailed, os_reason
from mtunnel_tx.hold import VERSION
from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.ports.clock import Timer
from mtunnel_tx.ports.holding import HasDescriptor, Kept
from mtunnel_tx.sessions import kill_session
from mtunnel_tx.waiting import Occasion, in_time
from mtunnel_tx.workers.channel import Message, MessageChannel, close_unasked

log = Logger()

NOT_STARTED = 127
LOST = -9
AGAIN_S = 1.0
ENDED = "the holder has ended"
Ask = Callable[..., "Deferred[tuple[Message, list[socket.socket]]]"]


class HeldChild:
    """A program that the holder runs (ports.Child).

    Args: taken: lines that an earlier daemon has dealt with. keeps_end: the holder remembers its end until `kill`.
    """

    def __init__(
        self, reactor: Reactor, ask: Ask, name: str, pid: int = 0, taken: int = 0, *, keeps_end: bool = False
    ) -> None:
        self.pid = pid
        self.taken = taken
        self.keeps_end = keeps_end
        self._reactor = reactor
        self._ask = ask
        self.name = name
        self._lines: deque[str] = deque()
        self._code: int | None = None
        self._change = Occasion()

    async def next_line(self, wait_s: float) -> str | None:
        """See ports.Child. What was taken before is forgotten by the holder."""
        end_s = self._reactor.seconds() + wait_s
        self._ask("told", name=self.name, next=self.taken)
        while not self._lines:
            left_s = end_s - self._reactor.seconds()
            if self.exhausted() or left_s <= 0:
                return None
            await in_time(self._reactor, left_s, self._change.wait())
        self.taken += 1
        return self._lines.popleft()

    def exhausted(self) -> bool:
        """See ports.Child."""
        return self._code is not None and not self._lines

    async def ended(self) -> int:
        """See ports.Child."""
        while self._code is None:
            await self._change.wait()
        return self._code

    async def kill(self) -> None:
        """See ports.Child."""
        was_kept, self.keeps_end = self.keeps_end, False
        if self._code is None:
            self._ask("kill", name=self.name)
        elif was_kept:
            self._ask("forget", name=self.name)
        await self.ended()

    def hear(self, message: Message) -> None:
        """What the holder says of it: a line, or its end."""
        if "code" in message:
            self.end(message["code"])
        elif message["number"] >= self.taken + len(self._lines):
            self._lines.append(message["line"])
            self._change.happen_soon(self._reactor)

    def end(self, code: int) -> None:
        """It has ended."""
        self._code = code
        self._change.happen_soon(self._reactor)

    def fail(self, reason: str) -> None:
        """It was never started."""
        self._lines.append(reason)
        self.end(NOT_STARTED)


class HolderClient:
    """ports.Store.

    Args: sock: connected to a holder. again: starts another one when this one has ended; its programs count as ended
    then. Raises: BackendFailed.
    """

    def __init__(self, reactor: Reactor, sock: socket.socket, again: Callable[[], socket.socket]) -> None:
        self._reactor = reactor
        self._again = again
        self._children: dict[str, HeldChild] = {}
        self._asked: dict[int, Deferred[tuple[Message, list[socket.socket]]]] = {}
        self._number = 0
        self._pids: dict[str, int] = {}
        self._is_closing = False
        self._timer: Timer | None = None
        self._channel: MessageChannel | None = MessageChannel(reactor, sock, self._hear, self._close)

    async def hello(self, restart_s: float) -> Kept:
        """Say who we are. Args: restart_s: how long it shall wait for another daemon.

        Raises: BackendFailed: it is of another version.
        """
        said, _ = await self._ask("hello", restart_s=restart_s)
        if said.get("version") != VERSION:
            raise BackendFailed(f"a holder of version {said.get('version')} runs")
        self._pids = {name: one["pid"] for name, one in said["programs"].items()}
        return Kept(names=tuple(said["names"]), programs=tuple(self._pids))

    def watch(self) -> None:
        """See ports.Store."""
        for name in self._pids:
            if name not in self._children:
                self.adopt(name)
                self._tell("kill", name=name)
        self._tell("watch")

    async def finish(self) -> None:
        """End the holder, and all that it runs."""
        self._is_closing = True
        with suppress(BackendFailed):
            await self._ask("finish")

    def close(self) -> None:
        """Leave it alone: it waits for the next daemon."""
        self._is_closing = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._channel is not None:
            self._channel.close()

    def put(self, name: str, value: object, sockets: Sequence[HasDescriptor] = ()) -> Deferred[bool]:
        """See ports.Store."""
        kept: Deferred[bool] = self._ask("put", sockets, name=name, value=value).addCallback(lambda _: True)
        return kept.addErrback(self._warn, name)

    def _warn(self, failure: Failure, name: str) -> bool:
        """What lay there before is not true any more."""
        if not self._is_closing:
            self.drop(name)
            log.warn("{name} will not survive a restart: {reason}", name=name, reason=failure.value)
        return not self._is_closing

    async def get(self, name: str) -> tuple[Any, list[Any]]:
        """See ports.Store."""
        said, sockets = await self._ask("get", name=name)
        return said["value"], sockets

    def drop(self, name: str) -> None:
        """See ports.Store."""
        self._tell("drop", name=name)

    def spawn(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        stdin: socket.socket | None = None,
        *,
        keeps_end: bool = False,
    ) -> HeldChild:
        """See ports.Store."""
        child = self._children[name] = HeldChild(self._reactor, self._tell, name, keeps_end=keeps_end)
        sockets = () if stdin is None else (stdin,)

        def started(said: tuple[Message, list[socket.socket]]) -> None:
            child.pid = said[0]["pid"]

        started_or_not = self._ask("spawn", sockets, name=name, argv=list(argv), env=dict(env))
        started_or_not.addCallbacks(started, lambda failure: self._not_started(name, str(failure.value)))
        return child

    def _not_started(self, name: str, reason: str) -> None:
        self._children.pop(name).fail(f"{reason}\n")

    def adopt(self, name: str, taken: int = 0, *, keeps_end: bool = False) -> HeldChild:
        """See ports.Store."""
        pid = self._pids.get(name, 0)
        child = self._children[name] = HeldChild(self._reactor, self._tell, name, pid, taken, keeps_end=keeps_end)
        return child

    def _tell(self, do: str, **values: Any) -> Deferred[Any]:
        """Ask for something whose answer says nothing."""
        return self._ask(do, **values).addErrback(lambda failure: failure.trap(BackendFailed))

    def _ask(
        self, do: str, sockets: Sequence[HasDescriptor] = (), **values: Any
    ) -> Deferred[tuple[Message, list[socket.socket]]]:
        if self._channel is None:
            return fail(BackendFailed(ENDED))
        self._number += 1
        answered = self._asked[self._number] = Deferred()
        try:
            self._channel.send({"do": do, "id": self._number, **values}, sockets)
        except OSError as error:
            del self._asked[self._number]
            return fail(BackendFailed(os_reason(error)))
        return answered

    def _hear(self, message: Message, sockets: list[socket.socket]) -> None:
        if "program" in message:
            self._hear_of(message["program"], message)
            return
        answered = self._asked.pop(message.get("id") or 0, None)
        if answered is None:
            close_unasked(sockets)
            log.error("the holder answers what was not asked: {reason}", reason=clean(str(message.get("error"))))
        elif "error" in message:
            answered.errback(BackendFailed(f"the holder refuses: {message['error']}"))
        else:
            answered.callback((message, sockets))

    def _hear_of(self, name: str, message: Message) -> None:
        child = self._children.get(name)
        if child is not None:
            child.hear(message)
        if "code" in message:
            self._children.pop(name, None)
            if child is None or not child.keeps_end:
                self._tell("forget", name=name)

    def _close(self) -> None:
        self._channel = None
        asked, self._asked = self._asked, {}
        for answered in asked.values():
            answered.errback(BackendFailed(ENDED))
        if not self._is_closing:
            log.error("{ended}, and what it ran; another one is started", ended=ENDED)
            self._end_children()
            self._timer = self._reactor.callLater(AGAIN_S, self._begin_again)

    def _end_children(self) -> None:
        children, self._children = self._children, {}
        for child in children.values():
            if child.pid:
                kill_session(child.pid)
            child.end(LOST)

    def _begin_again(self) -> None:
        if self._is_closing:
            return
        try:
            self._channel = MessageChannel(self._reactor, self._again(), self._hear, self._close)
            self._tell("watch")
        except BackendFailed as error:
            log.error("{reason}", reason=error.text)
            self._timer = self._reactor.callLater(AGAIN_S, self._begin_again)


def connect_holder(path: Path) -> socket.socket | None:
    """Returns: None: no holder runs."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    return sock


def start_holder(reactor: Any, path: Path, restart_s: float) -> socket.socket:
    """Start a holder that outlives us. Returns: connected to it. Raises: BackendFailed."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(4)
            _spawn(reactor, listener, restart_s, path.with_suffix(".stderr"))
        sock = connect_holder(path)
    except OSError as error:
        raise BackendFailed(f"the holder cannot be started: {os_reason(error)}") from error
    if sock is None:
        raise BackendFailed("the holder cannot be started")
    return sock


def last_words(path: Path) -> str:
    """What the holder of this socket has said last on its standard error; empty: nothing."""
    try:
        lines = path.with_suffix(".stderr").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return clean(lines[-1]) if lines else ""


def _spawn(reactor: Any, listener: socket.socket, restart_s: float, output: Path) -> None:
    # The last word is for `ps`.
    argv = ("setsid", "--", sys.executable, "-P", "-m", "mtunnel_tx.hold", str(restart_s), str(output.parent))
    with output.open("wb") as file:
        fds = {0: listener.fileno(), 1: file.fileno(), 2: file.fileno()}
        reactor.spawnProcess(ProcessProtocol(), "setsid", argv, env=_environment(), childFDs=fds)


def _environment() -> dict[str, str]:
    kept = ("PATH", "LANG", "PYTHONPATH", "COVERAGE_PROCESS_START")
    return {name: os.environ[name] for name in kept if name in os.environ}
