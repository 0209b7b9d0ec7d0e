"""An open tunnel: the commands that a source sends, each with the patience it deserves (protocol.md section 4)."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BackendFailed, TunnelError, Unreachable
from mtunnel_tx.source.causes import Causes
from mtunnel_tx.source.channel import CommandChannel
from mtunnel_tx.source.inventory import SourceDisk
from mtunnel_tx.source.links import Dial, JoinedSocket, Json, Reactor
from mtunnel_tx.source.outages import Outages
from mtunnel_tx.source.target import BASE, TargetApi, make_path
from mtunnel_tx.waiting import pause, within
from mtunnel_tx.wire.socketkinds import COMMANDS, find_socket_kind

API_VERSION = 2
SHORT_S = 10.0
QUIT_S = 30.0
CLOSE_S = 5.0
"""From our Close to the target's."""
AGAIN_S = 1.0
"""From one try to open a stream to the next one, while the network is lost."""
CONFIG_S = 120.0
START_S = 120.0
LONG_S = 600.0


class TargetTunnel:
    """The tunnel of one VM at the target; closed until `open`.

    Args: node, vmid: where the VM goes. dial: opens websockets. outages: when these have no connection.
    """

    def __init__(
        self,
        reactor: Reactor,
        target: TargetApi,
        dial: Dial,
        *,
        node: str,
        vmid: int,
        outages: Outages | None = None,
    ) -> None:
        self._reactor = reactor
        self._target = target
        self._dial = dial
        self._guest = ("nodes", node, "qemu", str(vmid))
        self._socket_start = f"/run/qemu-server/{vmid}."
        self._commands = CommandChannel(outages.commands, outages.notice_s) if outages else CommandChannel(reactor)
        self._outages = outages
        self._link: JoinedSocket | None = None
        self._causes = Causes(reactor, target.host)
        self._opening: Deferred[str] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether there ever was a command connection, so that there is something to end."""
        return self._link is not None

    async def open(self, storages: Sequence[str], bridges: Sequence[str]) -> str:
        """Claim the VMID, connect, compare versions.

        Returns: the id of the task there, or an empty text. Raises: TunnelError; CancelledError: it was dropped.
        """
        self._opening = Deferred.fromCoroutine(self._open(storages, bridges))
        return await self._opening

    async def _open(self, storages: Sequence[str], bridges: Sequence[str]) -> str:
        opened = await self._target.post(
            *self._guest, "mtunnel", storages=",".join(storages), bridges=",".join(bridges), wait_s=LONG_S / 10
        )
        ticket, path = read_text(opened, "ticket"), read_text(opened, "socket")
        await self._connect(self._url(("ticket", ticket), ("socket", path)))
        check_version(await self._commands.call("version", SHORT_S))
        return clean(str(opened.get("upid", "")))

    async def _connect(self, path_query: str) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            self._link = await self._dial(path_query, theirs)
            self._causes.watch(COMMANDS, self._link)
            ours.setblocking(False)
            factory = Factory.forProtocol(lambda: self._commands)
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)

    def _url(self, *params: tuple[str, str]) -> str:
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in params)
        return f"{BASE}{make_path(*self._guest, 'mtunnelwebsocket')}?{query}"

    async def bandwidth_limit(self, storage: str, override_kib_s: int | None) -> Json:
        """What the target allows for a storage, as it says it: null, a number, or a number as text."""
        fields = {"operation": "migration", "storages": [storage], "bwlimit": override_kib_s}
        return (await self._commands.call("bwlimit", SHORT_S, fields)).get("bwlimit")

    async def start_import(self, disk: SourceDisk, name: str, storage: str) -> tuple[str, str]:
        """Returns: the socket's name on the wire, and the stream's format, one of the disk's."""
        fields = {
            **disk.as_import(name, storage),
            "migration_snapshot": 0,
            # A word that Proxmox does not know.
            **({"convert": 1} if disk.needs_conversion else {}),
        }
        reply = await self._commands.call("disk-import", LONG_S, fields)
        path, stream = read_text(reply, "socket"), read_text(reply, "format")
        if stream not in disk.streams:
            raise BackendFailed("the target wants a stream format that was not offered")
        if not path.startswith(self._socket_start):
            raise BackendFailed("the target names a socket that is not this tunnel's")
        return path, stream

    async def ticket(self, path: str) -> str:
        """A ticket for a socket there; whoever has one has reached the target just now. Raises: TunnelError."""
        return read_text(await self._commands.call("ticket", SHORT_S, {"path": path}), "ticket")

    async def connect_stream(self, path: str, sock: socket.socket, ticket: str | None = None) -> JoinedSocket:
        """Join a socket with one at the target, by this ticket or one of its own; takes `sock` over.

        While the network is lost, it is tried again for as long as the other streams wait for it.
        """
        longest_s = self._outages.longest_s if self._outages else 0.0
        last_s = self._reactor.seconds() + longest_s
        with sock:
            while True:
                try:
                    return await self._connect_once(path, sock.dup(), ticket)
                except Unreachable:
                    if self._reactor.seconds() >= last_s:
                        raise
                    ticket = None
                    await pause(self._reactor, AGAIN_S)

    async def _connect_once(self, path: str, sock: socket.socket, ticket: str | None) -> JoinedSocket:
        try:
            path_query = self._url(("socket", path), ("ticket", ticket or await self.ticket(path)))
        except BaseException:
            sock.close()
            raise
        kind = find_socket_kind(path)
        link = await self._dial(path_query, sock, ends_with_peer=kind.ends_both_at_source)
        self._causes.watch(kind, link)
        return link

    def explain(self, error: TunnelError) -> TunnelError:
        """What failed at first, where that was a connection: the error is what came of it."""
        cause = self._causes.find()
        return error if cause is None else BackendFailed(f"{cause} ({error.text})")

    async def query_import(self) -> Mapping[str, Json]:
        """How the import goes on: `status`, `msg`, `volid`."""
        return await self._commands.call("query-disk-import", SHORT_S)

    async def set_config(self, conf: str, firewall: str | None, dropped: Sequence[str] = ()) -> None:
        """Define the VM at the target. Args: dropped: keys that were left out, for a target that knows the word."""
        told = {"dropped": ",".join(dropped)} if dropped else {}
        await self._commands.call("config", CONFIG_S, {"conf": conf, "firewall-config": firewall, **told})

    async def make_disk(self, storage: str, drive: Mapping[str, Json], format: str) -> dict[str, Json]:
        """An empty disk there, to be mirrored into. Returns: the whole reply, which `start` wants back."""
        fields = {"storage": storage, "drive": drive, "format": format}
        reply = await self._commands.call("disk", LONG_S, fields)
        read_text(reply, "volid")
        read_text(reply, "drivestr")
        return reply

    async def start(self, fields: Mapping[str, Json]) -> Mapping[str, Json]:
        """Start the VM there, waiting for its memory. Returns: sockets and exports."""
        return await self._commands.call("start", START_S, fields)

    async def stop_nbd(self) -> None:
        """The disks are whole there."""
        await self._commands.call("nbdstop", QUIT_S)

    async def resume(self) -> None:
        """Let the VM run there. Raises: CommandRefused: it does not; any other error: nobody knows."""
        await self._commands.call("resume", QUIT_S)

    async def trim(self) -> None:
        """Have the guest say what its file systems do not use."""
        await self._commands.call("fstrim", LONG_S)

    async def stop(self) -> None:
        """End the VM there."""
        await self._commands.call("stop", SHORT_S)

    async def unlock(self) -> None:
        """Hand the VM over: from now on it is the target's. Raises: as `resume`."""
        await self._commands.call("unlock", SHORT_S)

    async def quit(self, *, cleanup: bool) -> None:
        """Say the last word. Args: cleanup: all that the tunnel made is to be removed."""
        await self._commands.call("quit", QUIT_S, {"cleanup": int(cleanup)})

    async def report(self, fields: Mapping[str, Json]) -> None:
        """Say how far the move is; for a target of our own. Raises: CommandRefused: it does not understand."""
        await self._commands.call("progress", LONG_S, fields)

    def drop(self) -> None:
        """Break the command connection off: the target cleans up when it sees that."""
        if self._opening is not None:
            self._opening.cancel()
        self._commands.give_up()
        if self._link is not None:
            self._link.abort()

    async def close(self) -> None:
        """End the command connection, wait until it is gone."""
        self._causes.close()
        self._commands.close()
        if self._link is None:
            return
        ended = Deferred.fromCoroutine(self._link.ended())
        try:
            await within(self._reactor, CLOSE_S, ended, "the target keeps the command connection open")
        except TunnelError:
            self._link.abort()


def check_version(reply: Mapping[str, Json]) -> None:
    """Raises: BackendFailed: that tunnel speaks another protocol."""
    api, age = read_count(reply, "api"), read_count(reply, "age")
    if api < API_VERSION or api - age > API_VERSION:
        raise BackendFailed(f"the target speaks version {api} (back to {api - age}) of the tunnel, not {API_VERSION}")


def read_count(reply: Mapping[str, Json], name: str) -> int:
    """A number that may be written as text, of digits only."""
    value = reply.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).isascii():
        raise BackendFailed(f"the target's reply has no number '{name}'")
    if not str(value).isdigit() or len(str(value)) > 9:
        raise BackendFailed(f"the target's reply has no number '{name}'")
    return int(value)


def read_text(reply: Json, name: str) -> str:
    """Raises: BackendFailed: no such field, or no text in it that could stand in a line."""
    value = reply.get(name) if isinstance(reply, dict) else None
    if not isinstance(value, str) or not value or clean(value) != value:
        raise BackendFailed(f"the target's reply has no '{name}'")
    return value
