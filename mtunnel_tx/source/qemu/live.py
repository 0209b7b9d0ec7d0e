"""A VM on its way while it runs: mirrors of its disks, then its memory (`approach`), then the hand-over.

Until the rest of the memory is sent, a failure lets the VM run on here. From then on it stays paused here until the
target has either taken it (`resume`) or said that it removed everything: it never runs twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.ports.moves import MovePhase, Reached, StoodStill
from mtunnel_tx.pve.drive import is_drive_key, parse_drive
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestformats import AGENT
from mtunnel_tx.source.channel import CommandRefused
from mtunnel_tx.source.departure import STANDING, Power, Stage
from mtunnel_tx.source.inventory import SourceDisk
from mtunnel_tx.source.journal import DepartureJournal
from mtunnel_tx.source.links import Json, Running
from mtunnel_tx.source.order import SourceWorld
from mtunnel_tx.source.owner import MIGRATION_OVER, POSTCOPY
from mtunnel_tx.source.pace import Pace
from mtunnel_tx.source.patience import SWITCH_S, Patience
from mtunnel_tx.source.qemu.copying import LiveCopy, find_max_downtime_ms
from mtunnel_tx.source.qemu.forwards import Forwards
from mtunnel_tx.source.tunnel import TargetTunnel, read_text
from mtunnel_tx.waiting import finish, together
from mtunnel_tx.wire import socketkinds

_KEY = re.compile(r"([a-z]+)([0-9]+)")
_MIGRATE_SOCKET = re.compile(rf"/run/qemu-server/[0-9]+{re.escape(socketkinds.MEMORY.suffix)}")
_DATA_SOCKET = re.compile(rf"/run/qemu-server/[^/]+{re.escape(socketkinds.MEMORY.suffix)}")


def is_online(conf: GuestConfig, disk: SourceDisk) -> bool:
    """Whether a running VM has this disk open: then it is mirrored, not exported."""
    key = disk.label
    if disk.is_cloudinit or disk.is_tpm_state or not is_drive_key(key) or key.startswith("unused"):
        return False
    if key.startswith("efidisk"):
        return conf.options.get("bios") == "ovmf"
    return not parse_drive(key, conf.options[key]).is_cdrom


def is_read_only(conf: GuestConfig, disk: SourceDisk) -> bool:
    """Whether QEMU has it open to read only; the one that receives it then cannot let anybody write to it."""
    return parse_drive(disk.label, conf.options[disk.label]).options.get("ro") == "1"


def wants_trim(conf: GuestConfig) -> bool:
    """Whether its config has the guest agent asked for a trim of disks that were copied."""
    agent = AGENT.parse(conf.options["agent"]) if "agent" in conf.options else {}
    return agent.get("enabled") == "1" and agent.get("fstrim_cloned_disks") == "1"


def sent_drive(conf: GuestConfig, disk: SourceDisk) -> dict[str, Json]:
    """A drive as the `disk` command takes it: parsed, size in bytes, without volume and format."""
    found = _KEY.fullmatch(disk.label)
    assert found is not None, "a drive's key"
    options = dict(parse_drive(disk.label, conf.options[disk.label]).options)
    options.pop("format", None)
    return {**options, "interface": found[1], "index": int(found[2]), "size": disk.size_bytes}


class LiveMove:
    """One VM that has a QEMU; `journal` is written before each step after which somebody else might own it."""

    def __init__(
        self, tunnel: TargetTunnel, running: Running, forwards: Forwards, host: SourceWorld, journal: DepartureJournal
    ) -> None:
        self._tunnel = tunnel
        self._running = running
        self._forwards = forwards
        self._host = host
        self._journal = journal
        self._switch_s = SWITCH_S
        self._copy: LiveCopy | None = None
        self._may_split = False

    async def approach(self, drives: Mapping[str, Json], pace: Pace, patience: Patience) -> None:
        """Start the VM there, copy its disks and its memory, until it stands still here and only the rest is left.

        Args: drives: for each mirrored drive the whole reply of `disk`. Raises: TunnelError.
        """
        self._may_split = patience.may_split
        fields = await self._start_fields(drives)
        await self._journal.announce("starting")
        memory_socket, mirrors = self._open_forwards(await self._tunnel.start(fields), drives)
        copy = self._copy = LiveCopy(self._running, self._forwards, self._host, pace, patience, self._journal)
        try:
            await copy.disks(mirrors)
            await copy.memory(memory_socket)
        except Exception:
            await finish(self._run_on())
            raise
        self._switch_s = patience.switch_s + find_max_downtime_ms(pace, patience) / 1000

    async def hand_over(self, drives: Mapping[str, Json]) -> None:
        """Send the rest, and let the VM run there where it ran here.

        The forwards of a paused one stay open: only the answer to `unlock` says that its memory has arrived. Not to be
        cancelled: half of it would leave the VM with nobody. Raises: TunnelError.
        """
        stopped_s = self._host.reactor.seconds()
        self._host.progress.tell(Reached(phase=MovePhase.HAND_OVER))
        try:
            await together(self._running.complete_mirrors(), self._journal.announce("completing"))
            await self._running.switch_over(limit_s=self._switch_s)
            if drives:
                await self._tunnel.stop_nbd()
        except TunnelError:
            await self._run_on()
            raise
        if self._journal.departure.power is Power.RUNNING:
            await self._resume()
            downtime_s = self._host.reactor.seconds() - stopped_s
            self._host.progress.tell(StoodStill(downtime_s=downtime_s))
            self._host.progress.say(f"it runs there; downtime {1000 * downtime_s:.0f} ms")
            await self._see_the_rest_there()
            self._forwards.close()

    async def _see_the_rest_there(self) -> None:
        """Raises: BackendFailed: by post-copy it runs there, and a part of its memory stays here."""
        if self._journal.departure.is_in_parts:
            assert self._copy is not None, "the memory has been sent"
            await self._copy.rest_of_memory()
            await self._journal.note("whole")

    async def _run_on(self) -> None:
        """Let it run on here at once: the rest was not sent, and a target that is out of reach keeps nobody waiting.

        The journal has it first, so that the target never gets it later, whatever becomes of QEMU here. All else is
        done when the target was told (settling.py). Where all was sent, it does not run here.
        """
        await self._take_back()
        self._forwards.close()
        with suppress(TunnelError):  # QEMU has ended, or does not answer: it is looked at again then
            if await self._running.migration() not in MIGRATION_OVER:
                await self._running.cancel_migration()
            if await self._running.migration() != "completed":
                await self._let_run()
                await self._running.speed_up()

    async def _let_run(self) -> None:
        departure = self._journal.departure
        if departure.power is not Power.RUNNING:
            return
        if departure.stage is Stage.COMPLETING:
            await self._journal.announce("runs_on")
        if await self._running.status() in STANDING:
            await self._running.run()

    async def _take_back(self) -> None:
        """QEMU takes a VM back from post-copy only while there is a connection."""
        if self._journal.departure.split:
            with suppress(TunnelError):
                if await self._running.migration() in POSTCOPY:
                    await self._running.cancel_migration()

    async def _resume(self) -> None:
        await self._journal.announce("resuming")
        try:
            await self._tunnel.resume()
        except CommandRefused:
            await self._journal.note("refused")
            await self._take_back()
            raise
        await self._journal.note("resumed")

    async def _start_fields(self, drives: Mapping[str, Json]) -> dict[str, Json]:
        params: dict[str, Json] = {"statefile": "unix", "skiplock": 1}
        params["forcemachine"] = await self._running.machine_type()
        if cpu := self._running.cpu():
            params["forcecpu"] = cpu
        if mtus := await self._running.host_mtus():
            params["nets-host-mtu"] = ",".join(f"{name}={mtu}" for name, mtu in sorted(mtus.items()))
        node = self._host.guests.node
        options: dict[str, Json] = {"type": "websocket", "migratedfrom": node, "remote_node": node}
        options |= {"nbd_proto_version": 1, "nbd": dict(drives)}
        if self._may_split:
            options["postcopy"] = 1
        return {"start_params": params, "migrate_opts": options}

    def _open_forwards(
        self, started: Mapping[str, Json], drives: Mapping[str, Json]
    ) -> tuple[Path, dict[str, tuple[Path, str]]]:
        """Returns: where memory goes; and for each drive where its mirror goes, and the export's name."""
        remote = read_sockets(started)
        paths = {name: self._forwards.open(name) for name in remote}
        memory, *data = remote
        return paths[memory], {key: _find_export(started, key, data, paths) for key in drives}


def read_sockets(started: Mapping[str, Json]) -> list[str]:
    """The target's sockets, that of the memory first. Raises: BackendFailed: not what a target says."""
    migrate = started.get("migrate")
    if not isinstance(migrate, dict) or migrate.get("proto") != "unix":
        raise BackendFailed("the target takes the memory in a way that is not known here")
    addr, others = read_text(migrate, "addr"), migrate.get("unix_sockets", [])
    if not _MIGRATE_SOCKET.fullmatch(addr) or not isinstance(others, list):
        raise BackendFailed("the target names a socket that cannot be one")
    for name in others:
        if not isinstance(name, str) or not _DATA_SOCKET.fullmatch(name):
            raise BackendFailed("the target names a socket that cannot be one")
    return [addr, *others]


def _find_export(
    started: Mapping[str, Json], key: str, sockets: Sequence[str], paths: Mapping[str, Path]
) -> tuple[Path, str]:
    """`nbd:unix:ADDR:exportname=NAME` of one drive."""
    drives = started.get("drives")
    uri = read_text(drives.get(key), "nbd_uri") if isinstance(drives, dict) else ""
    for name in sockets:
        start = f"nbd:unix:{name}:exportname="
        if uri.startswith(start):
            return paths[name], uri.removeprefix(start)
    raise BackendFailed(f"the target exports no disk for {key}")
