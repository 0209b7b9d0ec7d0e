"""The guest agent: a program that may run in the guest, and answers JSON lines through a serial port."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure

from mtunnel_tx.backends.lines import LineProtocol
from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BackendFailed, TimedOut, TunnelError
from mtunnel_tx.ports.storage import Report
from mtunnel_tx.waiting import within

ANSWER_S = 3.0
TRIM_S = 600.0
LINE_BYTES = 4 << 20
_FLUSH = b"\xff"
_numbers = count(1)


class Agent(LineProtocol):
    """A connection to the port, for one command at a time. The guest is not trusted: what it sends is only text."""

    longest_bytes = LINE_BYTES

    def __init__(self, reactor: Any) -> None:
        super().__init__()
        self._reactor = reactor
        self._waiting: Deferred[bytes] | None = None
        self._lost = False

    async def synchronise(self, wait_s: float) -> None:
        """Check that an agent answers, and drop answers to earlier commands. Raises: TimedOut, BackendFailed."""
        number = next(_numbers)
        end_s = self._reactor.seconds() + wait_s
        self._send(_FLUSH, "guest-sync-delimited", {"id": number})
        while True:
            line = await self._line(end_s - self._reactor.seconds(), "guest-sync-delimited")
            if _parse(line.rpartition(_FLUSH)[2]).get("return") == number:
                return

    async def call(self, command: str, wait_s: float) -> Any:
        """Run a command. Raises: BackendFailed: the guest refuses; TimedOut."""
        self._send(b"", command, {})
        answer = _parse(await self._line(wait_s, command))
        if "error" in answer or "return" not in answer:
            error = answer.get("error")
            reason = error.get("desc") if isinstance(error, dict) else None
            raise BackendFailed(clean(str(reason or "the answer cannot be read"))[:200])
        return answer["return"]

    def _send(self, prefix: bytes, command: str, arguments: Mapping[str, Any]) -> None:
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self.write_line(prefix + json.dumps(request).encode("ascii"))

    async def _line(self, wait_s: float, command: str) -> bytes:
        if self._lost:
            raise BackendFailed("QEMU closed the guest agent's port")
        self._waiting = Deferred()
        line: bytes = await within(self._reactor, wait_s, self._waiting, f"qga command '{command}' - got timeout")
        return line

    def take_line(self, line: bytes) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(line)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802, ARG002
        self._lost = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.errback(Failure(BackendFailed("QEMU closed the guest agent's port")))


def _parse(line: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        answer = json.loads(line)
        if isinstance(answer, dict):
            return answer
    return {}


async def connect_agent(reactor: Any, path: Path, wait_s: float = ANSWER_S) -> Agent:
    """Connect to an agent that answers. Raises: BackendFailed, TimedOut."""
    from twisted.internet.endpoints import UNIXClientEndpoint  # imports all of TLS

    endpoint = UNIXClientEndpoint(reactor, str(path), timeout=wait_s)
    try:
        agent: Agent = await endpoint.connect(Factory.forProtocol(lambda: Agent(reactor)))
    except (ConnectError, OSError) as error:
        raise BackendFailed(f"nobody listens on the guest agent's port: {error}") from error
    try:
        await agent.synchronise(wait_s)
    except BaseException:
        agent.hang_up()
        raise
    return agent


async def trim(reactor: Any, vmid: int, path: Path, report: Report, trim_s: float = TRIM_S) -> None:
    """Let the guest discard the unused blocks of its file systems. Never an error: problems go to `report`."""
    try:
        agent = await connect_agent(reactor, path)
    except (BackendFailed, TimedOut) as error:
        report(f"QEMU Guest Agent is not running - VM {vmid} {error.text}")
        return
    try:
        answer = await agent.call("guest-fstrim", trim_s)
    except TunnelError as error:
        report(f"fstrim failed: {error.text}")
    else:
        for line in _refusals(answer):
            report(line)
    finally:
        agent.hang_up()


def _refusals(answer: Any) -> list[str]:
    """The file systems that were not trimmed, and why."""
    paths = answer.get("paths") if isinstance(answer, dict) else None
    listed = [path for path in paths if isinstance(path, dict)] if isinstance(paths, list) else []
    failed = [f"{path.get('path')}: {path['error']}" for path in listed[:100] if path.get("error")]
    return [f"fstrim failed: {clean(text)[:200]}" for text in failed]
