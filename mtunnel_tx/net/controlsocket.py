"""The control socket, `runtime_dir/control.sock`: `mtunnel status`, `settle` and `drain` ask the daemon through it.

The same JSON lines as on a tunnel's command connection: `{"cmd":NAME,…}` in, `{"success":true,…}` out. Who may open
the socket file (mode 0600) may do everything.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.interfaces import IReactorUNIX
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from mtunnel_tx.config import Limits
from mtunnel_tx.errors import BackendFailed, TimedOut, TunnelError, WrongState
from mtunnel_tx.net.linesocket import listen_lines
from mtunnel_tx.ports.lines import Listening
from mtunnel_tx.wire.lines import command_name, encode_failure, encode_ok, parse_request

log = Logger()

LONGEST_REPLY_BYTES = 64 * 1024 * 1024
PATIENCE_S = 600.0

ControlCommand = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any] | None]]
"""Takes the whole request; returns the fields of the reply. Raises: TunnelError: the caller sees its text."""


class ControlAnswerer:
    """Answers one caller (ports.Answerer)."""

    def __init__(self, commands: Mapping[str, ControlCommand]) -> None:
        self._commands = commands

    async def answer(self, line: bytes) -> bytes:
        try:
            return encode_ok(await self._do(parse_request(line)))
        except TunnelError as error:
            return encode_failure(error.line)
        except Exception:
            log.failure("unexpected failure in a command of the control socket")
            return encode_failure("internal error")

    async def _do(self, request: Mapping[str, Any]) -> Mapping[str, Any] | None:
        name = command_name(request)
        if name not in self._commands:
            raise TunnelError(f"unknown command '{name}' given")
        return await self._commands[name](request)

    def connected(self) -> bool:
        return True

    def disconnected(self) -> None:
        """Nothing is bound to a caller."""


async def listen_control(
    reactor: IReactorUNIX, path: Path, commands: Mapping[str, ControlCommand], limits: Limits | None = None
) -> Listening:
    """Listen for callers.

    Raises: WrongState: another daemon answers there. BackendFailed: `can't listen on 'PATH' - REASON`.
    """
    if _somebody_listens(path):
        raise WrongState(f"another daemon listens on '{path}'")
    return await listen_lines(reactor, path, lambda: ControlAnswerer(commands), limits or Limits())


async def ask(
    reactor: IReactorUNIX, path: Path, request: Mapping[str, Any], patience_s: float = PATIENCE_S
) -> dict[str, Any]:
    """Send one command to the running daemon.

    Returns: its whole reply, also where `success` is false. Raises: BackendFailed: no daemon answers at `path`.
    TimedOut.
    """
    call = _Call(json.dumps(dict(request)).encode())
    try:
        await connectProtocol(UNIXClientEndpoint(reactor, str(path)), call)
        reply = _read_reply(await call.reply.addTimeout(patience_s, reactor))
        log.debug("the daemon at {path} has answered '{command}'", path=path, command=request.get("cmd"))
        return reply
    except (ConnectError, ConnectionDone, OSError) as error:
        raise BackendFailed(f"no daemon answers at '{path}': {_reason(error)}") from error
    except DeferredTimeout as error:
        raise TimedOut(f"no reply from the daemon within {patience_s:.0f} seconds") from error
    finally:
        call.hang_up()


def _reason(error: Exception) -> str:
    """In the words of the system, without its number and without Twisted's."""
    number = getattr(error, "osError", None)
    return os.strerror(number) if isinstance(number, int) else str(error)


def _read_reply(line: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(line)
    except ValueError as error:
        raise BackendFailed("the daemon's reply cannot be read") from error
    if not isinstance(reply, dict):
        raise BackendFailed("the daemon's reply cannot be read")
    return reply


class _Call(LineReceiver):
    """Sends one line, waits for one."""

    delimiter = b"\n"
    MAX_LENGTH = LONGEST_REPLY_BYTES
    transport: Any

    def __init__(self, line: bytes) -> None:
        self.reply: Deferred[bytes] = Deferred()
        self._line = line

    def connectionMade(self) -> None:
        self.sendLine(self._line)

    def lineReceived(self, line: bytes) -> None:
        if not self.reply.called:
            self.reply.callback(line)

    def connectionLost(self, reason: Failure | None = None) -> None:
        if not self.reply.called:
            self.reply.errback(ConnectionDone("it hung up"))

    def hang_up(self) -> None:
        """End the call; nothing where it never began."""
        if self.transport is not None:
            self.transport.loseConnection()


def _somebody_listens(path: Path) -> bool:
    """A UNIX socket says so at once: connecting to one that is merely left over is refused."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True
