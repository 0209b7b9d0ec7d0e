"""Has an mtunnel-tx say all that stands in the way at its end (`POST …/mtunnelcheck`, protocol.md section 10)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mtunnel_tx import __version__
from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.pve import moved
from mtunnel_tx.pve.findings import Findings, read_findings
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.source.inventory import SourceDisk
from mtunnel_tx.source.links import Json
from mtunnel_tx.source.order import Order, SourceWorld
from mtunnel_tx.source.report import DiskPlace
from mtunnel_tx.source.rewriting import find_bridges, rewrite_config, sent_firewall
from mtunnel_tx.source.target import objects
from mtunnel_tx.wire.formats import MOST_DISKS

CHECK_S = 300.0
"""It may have to list several slow storages."""
LONGEST_BYTES = 1 << 20
"""A longer config, or firewall file, Proxmox does not keep, nor does an mtunnel-tx by default."""


class _SameName(dict[str, str]):
    """Volumes that are not sent yet are called as they are here."""

    def __missing__(self, name: str) -> str:
        return name


class TargetCheck:
    """Asks about one order. Args: found: takes what the target says."""

    def __init__(self, order: Order, world: SourceWorld, found: Findings) -> None:
        self._order = order
        self._world = world
        self._found = found

    async def ask(
        self, node: str, conf: GuestConfig, disks: Sequence[SourceDisk], machine: str | None
    ) -> Mapping[str, DiskPlace]:
        """Args: conf: as it will be sent, disks and bridges apart. machine: the type that it runs with.

        Returns: what would become of the disks, by their keys. Raises: TunnelError: the target does not say.
        """
        path = ("nodes", node, "qemu", str(self._order.target_vmid), "mtunnelcheck")
        answer = await self._world.target.post_json(*path, wait_s=CHECK_S, body=self._question(conf, disks, machine))
        if not isinstance(answer, dict):
            raise BackendFailed("the target's answer to 'mtunnelcheck' is no object")
        for finding in read_findings(answer.get("findings")):
            self._found.add(finding.about, finding.name, finding.text, finding.severity)
        return dict(_read_disks(answer.get("disks")))

    def _question(self, conf: GuestConfig, disks: Sequence[SourceDisk], machine: str | None) -> dict[str, Json]:
        order = self._order
        # A VM that was moved is refused here; that its mark is no key of Proxmox's is no second reason.
        conf = replace(conf, options={key: value for key, value in conf.options.items() if key != moved.KEY})
        return {
            "conf": self._config(conf),
            "firewall-config": self._firewall(),
            "disks": [self._disk(disk) for disk in disks[:MOST_DISKS]],
            "storages": ",".join(dict.fromkeys(order.storage_or_same(disk.volid.storage) for disk in disks)),
            "bridges": ",".join(dict.fromkeys(map(order.bridge_or_same, find_bridges(conf)))),
            "online": int(machine is not None),
            "delete": int(order.delete),
            "machine": machine,
            "strict_space": int(order.strict_space),
            # A word that an older target would refuse.
            **({"postcopy": 1} if machine is not None and order.patience.may_split else {}),
            "sender": f"mtunnel-tx/{__version__}",
        }

    def _config(self, conf: GuestConfig) -> str:
        return rewrite_config(conf, _SameName(), self._order.bridge_or_same, self._order.storage_or_same)

    def _firewall(self) -> str | None:
        return sent_firewall(self._world.guests.read_firewall(self._order.vmid))

    def find_overlong(self, conf: GuestConfig) -> Iterator[str]:
        """What no target takes whose limits are the usual ones, as a sentence each."""
        for what, text in (("config", self._config(conf)), ("firewall config", self._firewall() or "")):
            if len(text.encode("utf-8", "replace")) > LONGEST_BYTES:
                yield f"the {what} of VM {self._order.vmid} is longer than {LONGEST_BYTES} bytes"

    def _disk(self, disk: SourceDisk) -> dict[str, Json]:
        order = self._order
        return {
            "key": disk.label,
            "volume": str(disk.volid),
            "size": disk.size_bytes,
            "written": disk.data_bytes,
            "mirrored": int(disk.mirrored),
            **disk.as_import(disk.name_for(order.vmid, order.target_vmid), order.storage_or_same(disk.volid.storage)),
            "convert": int(disk.needs_conversion),
        }


def _read_disks(rows: Json) -> Iterator[tuple[str, DiskPlace]]:
    for row in objects(rows):
        storage, format, stream = (_text(row.get(name)) for name in ("storage", "format", "stream"))
        free = row.get("free")
        if storage is not None:
            free_bytes = free if isinstance(free, int) and not isinstance(free, bool) else None
            yield str(row.get("key")), DiskPlace(storage=storage, format=format, stream=stream, free_bytes=free_bytes)


def _text(value: Json) -> str | None:
    return clean(value) if isinstance(value, str) else None
