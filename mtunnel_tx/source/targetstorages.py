"""The target's storages, looked at before anything is sent: are they there, is there room, do the disks fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mtunnel_tx.checks import clean, split_list
from mtunnel_tx.errors import BadRequest, Forbidden, NotFound, TunnelError
from mtunnel_tx.pve.drive import Drive
from mtunnel_tx.pve.findings import Findings, Severity, judge_room
from mtunnel_tx.pve.storagetypes import STORAGE_TYPES, STREAM_FORMATS, describe_mismatch, match_offers
from mtunnel_tx.source.inventory import SourceDisk
from mtunnel_tx.source.order import Order, SourceWorld
from mtunnel_tx.source.report import Destination
from mtunnel_tx.source.target import NotImplementedThere, is_ours, objects

_MAY_SEE = ("Datastore.AllocateSpace", "Datastore.Audit")


class TargetStorages:
    """Asks about the storages of one order.

    Args: found: takes what stands in the way, and what is worth knowing. vmid_taken: a guest there has the VMID.
    """

    def __init__(self, order: Order, world: SourceWorld, found: Findings, *, vmid_taken: bool) -> None:
        self._vmid_taken = vmid_taken
        self._order = order
        self._world = world
        self._found = found

    async def check(self, disks: Sequence[SourceDisk], repoid: str) -> Mapping[str, Destination]:
        """Args: repoid: what the target says it is.

        Returns: what would become of the disks, by their keys. Raises: TunnelError: it does not answer.
        """
        listed = objects(await self._world.target.get("nodes", "localhost", "storage"))
        storages = {str(entry.get("storage")): entry for entry in listed}
        destinations: dict[str, Destination] = {}
        for name in self._order.storages.targets:
            there = storages.get(name)
            if there is None:
                self._add(name, await self._why_absent(name))
            elif there.get("enabled") in (0, False, "0"):
                self._add(name, f"storage '{name}' is disabled")
            elif "images" not in split_list(str(there.get("content", ""))):
                self._add(name, f"storage '{name}' does not support vm images")
            else:
                mapped = [disk for disk in disks if self._target(disk) == name]
                free = there.get("avail")
                free_bytes = free if isinstance(free, int) and not isinstance(free, bool) else None
                self._check_space(name, free_bytes, mapped)
                self._check_sizes(mapped, repoid)
                await self._find_leftovers(name, mapped, repoid)
                destinations |= dict(self._destinations(name, str(there.get("type")), mapped, free_bytes))
        return destinations

    def _add(self, storage: str, text: str, severity: Severity = Severity.REFUSE) -> None:
        self._found.add("storage", storage, text, severity)

    def _target(self, disk: SourceDisk) -> str | None:
        try:
            return self._order.storages.target(disk.volid.storage)
        except BadRequest:
            return None

    async def _why_absent(self, name: str) -> str:
        """A target shows only what the token may see; where it tells its rights, the two can be told apart."""
        path = f"/storage/{name}"
        try:
            held = await self._world.target.get("access", "permissions", path=path)
        except (NotImplementedThere, NotFound, Forbidden):
            held = None
        rights = held.get(path) or {} if isinstance(held, dict) else None
        if not isinstance(rights, dict):
            return f"storage '{name}' is not there, or the token may not use it"
        if not any(rights.get(privilege) is not None for privilege in _MAY_SEE):
            return f"the token may not use storage '{name}'"
        return f"storage '{name}' is not there"

    def _check_space(self, name: str, free_bytes: int | None, disks: Sequence[SourceDisk]) -> None:
        """What will be written must fit; what the guests may write later is worth a warning."""
        for finding in judge_room(
            name,
            size_bytes=sum(disk.size_bytes for disk in disks),
            written_bytes=sum(disk.data_bytes for disk in disks),
            free_bytes=free_bytes,
            strict=self._order.strict_space,
        ):
            self._add(name, finding.text, finding.severity)

    def _destinations(
        self, name: str, type: str, disks: Sequence[SourceDisk], free_bytes: int | None
    ) -> Iterator[tuple[str, Destination]]:
        """Disks of a running VM are written by QEMU, into whatever image there is; others must fit as a stream."""
        target = STORAGE_TYPES.get(type)
        for disk in disks:
            offer = target and match_offers(disk.offers, target, with_snapshots=disk.with_snapshots)
            if disk.mirrored or target is None:
                yield disk.label, Destination(storage=name, free_bytes=free_bytes)
            elif offer:
                stream = STREAM_FORMATS[offer.stream].dense or offer.stream
                yield disk.label, Destination(storage=name, format=offer.image, stream=stream, free_bytes=free_bytes)
            else:
                own = self._world.storage.config()[disk.volid.storage].type
                reason = describe_mismatch(disk.offers, own, type)
                self._found.add("disk", disk.label, f"{disk.label} cannot go to storage '{name}': {reason}")

    def _check_sizes(self, disks: Sequence[SourceDisk], repoid: str) -> None:
        """Proxmox makes disks in KiB: rounded up, a copy is no copy, and QEMU refuses to mirror into it."""
        for disk in (disk for disk in disks if disk.format == "raw" and disk.size_bytes % 1024 and not is_ours(repoid)):
            size = f"{disk.size_bytes} bytes"
            text = f"{disk.label} has {size}, but Proxmox makes disks in KiB only: resize it first"
            self._found.add("disk", disk.label, text)

    async def _find_leftovers(self, name: str, disks: Sequence[SourceDisk], repoid: str) -> None:
        """Volumes of a VM that is not there may hold what somebody wants, and would be removed with the new one.

        A cloud-init drive is made of a config, but its name is needed; an mtunnel-tx makes it anew.
        """
        vmid = self._order.target_vmid
        if self._vmid_taken:
            return
        try:
            listed = await self._world.target.get("nodes", "localhost", "storage", name, "content", vmid=str(vmid))
        except TunnelError:
            return  # it does not say; the import itself will tell
        images = [entry for entry in objects(listed) if entry.get("content", "images") in ("images", "rootdir")]
        generated = {disk.name_for(self._order.vmid, vmid) for disk in disks if disk.is_cloudinit}
        for volid in sorted(clean(str(entry.get("volid"))) for entry in images):
            text = f"storage '{name}' has '{volid}' of VM {vmid}, which no VM has"
            if not Drive(volid).is_cloudinit or (volid.rpartition("/")[2] in generated and not is_ours(repoid)):
                self._found.add("disk", volid, f"{text}: remove it, or choose another VMID")
            elif volid.rpartition("/")[2] in generated:
                self._found.add("disk", volid, f"{text}: it is made anew", Severity.CHANGE)
            else:
                self._found.add("disk", volid, f"{text}: it stays", Severity.WARN)
