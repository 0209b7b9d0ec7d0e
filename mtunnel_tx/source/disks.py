"""One disk on its way: import there, export here, the stream between them, and what became of it.

An end of file of the exporter means nothing until it has exited well. So the socket into the websocket is ours: it
is shut down, which sends Close, only then; in every other case the websocket is aborted, and the target does not take
half a disk for a whole one.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from twisted.internet.defer import CancelledError, Deferred

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.ports.storage import Child, Storage
from mtunnel_tx.pve.drive import TPM_STATE_BYTES
from mtunnel_tx.source.channel import one_line
from mtunnel_tx.source.inventory import SourceDisk
from mtunnel_tx.source.links import JoinedSocket, Json, ProgressListener, Reactor
from mtunnel_tx.source.pipe import PipeToSocket, RateLimit
from mtunnel_tx.source.tunnel import TargetTunnel, read_text
from mtunnel_tx.waiting import finish, first_of, pause
from mtunnel_tx.wire.importlines import explain_failure

QUERY_PAUSE_S = 1.0
REASON_S = 10.0
"""How long to ask for the target's reason after a stream has failed."""
LAST_LINES = 5


class DiskStreamFailed(BackendFailed):
    """The stream of a disk did not get through as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """A disk, what it shall be called there, on which storage, and how fast it may go (0: no limit)."""

    disk: SourceDisk
    name: str
    storage: str
    limit_bytes_s: int


class Shipping:
    """Sends disks through a tunnel, one after another."""

    def __init__(self, reactor: Reactor, tunnel: TargetTunnel, storage: Storage, progress: ProgressListener) -> None:
        self._reactor = reactor
        self._tunnel = tunnel
        self._storage = storage
        self._progress = progress

    async def send(self, shipment: Shipment) -> str:
        """Returns: the volume's id at the target. Raises: TunnelError: with the target's reason where it has one."""
        if shipment.disk.is_tpm_state:
            await self._storage.extend(str(shipment.disk.volid), TPM_STATE_BYTES)
        path, stream = await self._tunnel.start_import(shipment.disk, shipment.name, shipment.storage)
        self._progress.begin(shipment.disk.label, shipment.disk.length_as(stream))
        try:
            return await self._through(shipment, path, stream)
        finally:
            self._progress.finish(shipment.disk.label)

    async def _through(self, shipment: Shipment, path: str, stream: str) -> str:
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            link = await self._tunnel.connect_stream(path, theirs)
            ended = Deferred.fromCoroutine(link.ended())
            try:
                await self._stream(shipment, stream, ours, link, ended)
                return await self._verdict(shipment.disk.label, ended)
            finally:
                if not ended.called:
                    link.abort()

    async def _stream(
        self, shipment: Shipment, stream: str, sink: socket.socket, link: JoinedSocket, ended: Deferred[bool]
    ) -> None:
        try:
            await self._feed(shipment, stream, sink, ended)
        except Exception as error:
            link.abort()
            reason = await finish(self._settle())
            if isinstance(error, BackendFailed) and reason:
                raise DiskStreamFailed(f"{error.text}; target: {reason}") from error
            raise

    async def _feed(self, shipment: Shipment, stream: str, sink: socket.socket, ended: Deferred[bool]) -> None:
        exported = await first_of(self._export(shipment, stream, sink), ended)
        if exported is None:
            raise DiskStreamFailed(f"{shipment.disk.label}: the target ended the stream before all was sent")
        sink.shutdown(socket.SHUT_WR)

    async def _verdict(self, label: str, ended: Deferred[bool]) -> str:
        """What the import says of the disk, who alone knows: the websocket may end long before it, or after it.

        Returns: the volume's id there. Raises: DiskStreamFailed: it failed, or does not say and the stream broke off.
        """
        broken = Deferred.fromCoroutine(self._broken(ended))
        broken.addErrback(lambda failure: failure.trap(CancelledError) and None)
        try:
            volid = await first_of(self._complete(), broken)
        finally:
            broken.cancel()
        if volid is None:
            raise DiskStreamFailed(f"{label}: the connection broke off at the end of the stream")
        return volid

    async def _broken(self, ended: Deferred[bool]) -> None:
        """Fires when the stream has ended badly, and the target had time to notice."""
        if await _shared(ended):
            await Deferred()
        await pause(self._reactor, REASON_S)

    async def _export(self, shipment: Shipment, stream: str, sink: socket.socket) -> int:
        """Run the exporter into the socket. Returns: the bytes it wrote. Raises: DiskStreamFailed: it failed."""
        disk = shipment.disk
        source, child = self._start(disk, stream)
        lines = OutputTail(child)
        try:
            advance = partial(self._progress.advance, disk.label)
            bucket = RateLimit(self._reactor, shipment.limit_bytes_s)
            flow = PipeToSocket(self._reactor, source, sink, bucket, advance)
            moved_bytes = await flow.run()
            code = await child.ended()
        except Exception:
            await finish(child.kill())
            raise
        finally:
            os.close(source)
        if code:
            raise DiskStreamFailed(f"{disk.label}: export failed with exit code {code}: {await lines.text()}")
        return moved_bytes

    def _start(self, disk: SourceDisk, stream: str) -> tuple[int, Child]:
        source, sink = os.pipe()
        try:
            child = self._storage.start_export(str(disk.volid), stream, with_snapshots=disk.with_snapshots, stdout=sink)
        except Exception:
            os.close(source)
            raise
        finally:
            os.close(sink)
        os.set_blocking(source, False)
        return source, child

    async def _complete(self) -> str:
        """Ask until the import has ended. Returns: the volume's id there. Raises: DiskStreamFailed: with its reason."""
        said: deque[str] = deque(maxlen=LAST_LINES)
        while True:
            reply = await self._tunnel.query_import()
            message = self._say(reply)
            match reply.get("status"):
                case "complete":
                    return read_text(reply, "volid")
                case "pending":
                    said.append(message)
                    await pause(self._reactor, 0 if message else QUERY_PAUSE_S)
                case "error":
                    raise DiskStreamFailed(f"target: {explain_failure([*said, message])}")
                case _:
                    raise BackendFailed("the target's reply to 'query-disk-import' has an unknown status")

    def _say(self, reply: Mapping[str, Json]) -> str:
        message = one_line(reply.get("msg"))
        if message in ("", "0"):
            return ""
        self._progress.say(f"target: {message}")
        return message

    async def _settle(self) -> str:
        """Hear the import out, for a while: why it failed, and so that the target knows what it has to remove."""
        said: list[str] = []
        until_s = self._reactor.seconds() + REASON_S
        with suppress(TunnelError):
            while self._reactor.seconds() < until_s:
                reply = await self._tunnel.query_import()
                message = one_line(reply.get("msg"))
                said += [message] if message not in ("", "0") else []
                if reply.get("status") != "pending":
                    break
                await pause(self._reactor, 0 if message else QUERY_PAUSE_S)
        return explain_failure(said[-LAST_LINES:]) if said else ""


def _shared(result: Deferred[bool]) -> Deferred[bool]:
    """Fires with it, leaves it as it is, and may be cancelled alone."""
    copy: Deferred[bool] = Deferred()

    def pass_on(value: bool) -> bool:
        if not copy.called:
            copy.callback(value)
        return value

    result.addCallback(pass_on)
    return copy


class OutputTail:
    """The last lines of a child, read as they come."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._read = Deferred.fromCoroutine(self._follow())

    async def text(self) -> str:
        """All that it said at last, once it has ended."""
        await self._read
        return "; ".join(self._lines) or "it said nothing"

    async def _follow(self) -> None:
        while not self._child.exhausted():
            line = await self._child.next_line(60.0)
            if line and line.strip():
                self._lines.append(clean(line.strip()))
