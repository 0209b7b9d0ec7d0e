"""QMP, QEMU's monitor protocol: JSON lines on one connection, several commands at once, events in between.

Every call has a time limit, and the end of the connection fails all calls that wait.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from mtunnel_tx.backends.lines import LineProtocol
from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.waiting import within

log = Logger()
LINE_BYTES = 16 << 20
_OUT_OF_BAND = "oob"
CALL_S = 10.0
Listener = Callable[[str, Mapping[str, Any]], None]
"""Takes an event's name and data."""


class MonitorLost(BackendFailed):
    """The connection to QEMU is lost. It does not say whether QEMU has ended."""


class QmpCommandFailed(BackendFailed):
    """QEMU refused a command; `kind` is its error class, e.g. `CommandNotFound`."""

    def __init__(self, command: str, kind: str, reason: str) -> None:
        super().__init__(f"QEMU refuses '{command}': {clean(reason)}")
        self.kind = kind
        self.reason = clean(reason)


class Monitor(LineProtocol):
    """The client's side of a QMP connection; made by `connect_monitor`, which does the handshake."""

    longest_bytes = LINE_BYTES

    def __init__(self, reactor: Any) -> None:
        super().__init__()
        self.version: Mapping[str, Any] = {}
        self.capabilities: tuple[str, ...] = ()
        self.greeted: Deferred[None] = Deferred()
        self._reactor = reactor
        self._numbers = count(1)
        self._pending: dict[int, tuple[str, Deferred[Any]]] = {}
        self._listeners: list[Listener] = []
        self._loss: MonitorLost | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the connection is lost."""
        return self._loss is not None

    async def call(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        wait_s: float = CALL_S,
        urgent: bool = False,
    ) -> Any:
        """Run one command.

        Args: urgent: QEMU runs it at once, even while its other work stands still; few commands can be (`allow-oob`
            in QEMU's schema).
        Returns: QEMU's `return`. Raises: QmpCommandFailed; TimedOut: a later reply is dropped; MonitorLost.
        """
        if self._loss is not None:
            raise MonitorLost(self._loss.text)
        number = next(self._numbers)
        reply: Deferred[Any] = Deferred()
        self._pending[number] = (command, reply)
        verb = "exec-oob" if urgent and _OUT_OF_BAND in self.capabilities else "execute"
        self._send({verb: command, "arguments": dict(arguments or {}), "id": number})
        try:
            return await within(self._reactor, wait_s, reply, f"QEMU did not answer '{command}' within {wait_s:g} s")
        finally:
            self._pending.pop(number, None)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for each event, and with the event `""` when the connection is lost.

        Returns: a function that removes the listener.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def close(self) -> None:
        """Close the connection; waiting calls fail."""
        self.hang_up()

    def _send(self, message: Mapping[str, Any]) -> None:
        self.write_line(json.dumps(message, separators=(",", ":")).encode("ascii"))

    def take_line(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            self._lose("QEMU's monitor speaks no QMP")
        elif "event" in message:
            self._tell(str(message["event"]), message.get("data", {}))
        elif "QMP" in message:
            self.version = message["QMP"].get("version", {}).get("qemu", {})
            self.capabilities = tuple(message["QMP"].get("capabilities", ()))
            _fire(self.greeted)
        else:
            self._settle(message)

    def _settle(self, message: Mapping[str, Any]) -> None:
        command, reply = self._pending.pop(message.get("id", 0), ("", None))
        if reply is None:
            return  # the caller has given up
        if "error" in message:
            error = message["error"]
            failed = QmpCommandFailed(command, str(error.get("class")), str(error.get("desc")))
            reply.errback(Failure(failed))
        else:
            reply.callback(message.get("return"))

    def _tell(self, name: str, data: Mapping[str, Any]) -> None:
        for listener in list(self._listeners):
            listener(name, data)

    def take_too_much(self) -> None:
        self._lose(f"a line of QEMU's monitor is longer than {LINE_BYTES} bytes")

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802, ARG002
        self._lose("QEMU closed its monitor")

    def _lose(self, reason: str) -> None:
        if self._loss is not None:
            return
        self._loss = MonitorLost(reason)
        self.close()
        self._tell("", {})
        pending, self._pending = self._pending, {}
        for _, reply in pending.values():
            reply.errback(Failure(MonitorLost(reason)))
        if not self.greeted.called:
            self.greeted.errback(Failure(MonitorLost(reason)))


async def connect_monitor(reactor: Any, path: Path, wait_s: float = CALL_S) -> Monitor:
    """Connect to a monitor's UNIX socket and do the handshake. QEMU serves one connection at a time.

    Raises: MonitorLost: nobody listens, or QEMU hangs up. TimedOut: the monitor is in use, or does not answer.
    """
    from twisted.internet.endpoints import UNIXClientEndpoint  # imports all of TLS

    factory = Factory.forProtocol(lambda: Monitor(reactor))
    end_s = reactor.seconds() + wait_s
    try:
        monitor: Monitor = await UNIXClientEndpoint(reactor, str(path), timeout=wait_s).connect(factory)
    except (ConnectError, OSError) as error:
        raise MonitorLost(f"nobody listens on QEMU's monitor: {error}") from error
    try:
        late = f"QEMU did not greet within {wait_s:g} s"
        await within(reactor, end_s - reactor.seconds(), monitor.greeted, late)
        wanted = {"enable": [name for name in monitor.capabilities if name == _OUT_OF_BAND]}
        await monitor.call("qmp_capabilities", wanted, wait_s=max(0.1, end_s - reactor.seconds()))
    except BaseException:
        monitor.close()
        raise
    return monitor


def _fire(waiter: Deferred[None]) -> None:
    if not waiter.called:
        waiter.callback(None)
