"""Looks at a VM that would come, by the very checks of the commands that would bring it, and says all that they would.

Nothing is made, and nothing is locked: what holds now may be otherwise when the VM comes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from mtunnel_tx.errors import TunnelError, refusing
from mtunnel_tx.ports.storage import Volume
from mtunnel_tx.pve.findings import Findings, Severity, judge_leftover, judge_room
from mtunnel_tx.pve.guestconf import GuestConfig, read_sent_config
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.tunnel.checks import check_bridge, usable_storage
from mtunnel_tx.tunnel.disks import check_mirrored_size, choose_format, plan_import
from mtunnel_tx.tunnel.qemu.conditions import Conditions
from mtunnel_tx.tunnel.services import Services
from mtunnel_tx.wire.checkrequest import CheckCall, ComingDisk

Answer = dict[str, Any]
_IMAGES = ("images", "rootdir")


async def check_move(services: Services, rights: Rights, call: CheckCall, findings: Findings) -> Answer:
    """Args: findings: what was found about the VMID already.

    Returns: `findings`, and `disks`: what would become of each (protocol.md section 10).
    """
    look = _Look(services, rights, call, findings)
    entries = look.find_places()
    async with services.child_turn(rights.token, None):
        await look.look_at_config()
    planned = look.plan_disks(entries)
    free_bytes = {name: await look.look_at_storage(name, planned) for name in entries}
    disks = [{**row, "free": free_bytes.get(row["storage"])} for row in planned]
    return {"findings": [finding.as_json() for finding in findings], "disks": disks}


class _Look:
    def __init__(self, services: Services, rights: Rights, call: CheckCall, findings: Findings) -> None:
        self._services = services
        self._rights = rights
        self._call = call
        self._findings = findings
        self._is_vmid_free = not list(findings)

    def find_places(self) -> dict[str, StorageEntry]:
        """The storages that can be used, by their names."""
        entries: dict[str, StorageEntry] = {}
        for name in dict.fromkeys((*self._call.storages, *(disk.how.storage for disk in self._call.disks))):
            try:
                entries[name] = usable_storage(self._services, self._rights, name)
            except TunnelError as error:
                self._findings.add("storage", name, error.line)
        for name in self._call.bridges:
            try:
                check_bridge(self._services, name)
            except TunnelError as error:
                self._findings.add("bridge", name, error.line)
        return entries

    # The config

    async def look_at_config(self) -> None:
        """What `config` and `start` would refuse."""
        call, refused = self._call, self._findings.refused
        conditions = Conditions(
            services=self._services,
            rights=self._rights,
            vmid=call.vmid,
            runs_here=call.online,
            machine=call.machine,
            refused=refused,
        )
        if call.firewall is not None and self._is_short(conditions, "firewall config", call.firewall):
            _, warnings = await conditions.read_firewall(call.firewall)
            self._tell(warnings)
        if not self._is_short(conditions, "config", call.conf):
            return
        conf, warnings = await self._services.threads.run(read_sent_config, call.conf, call.vmid, refused)
        self._tell(warnings)
        await conditions.check(conf, {disk.volume: disk.size_bytes for disk in call.disks})
        await self._look_at_host(conf)

    def _is_short(self, conditions: Conditions, what: str, text: str) -> bool:
        """What is too long is refused, and not read."""
        try:
            conditions.check_length(what, text)
        except TunnelError as error:
            self._findings.refused("", error)
            return False
        return True

    def _tell(self, warnings: Sequence[str]) -> None:
        for text in warnings:
            self._findings.add("vm", "", text, Severity.WARN)

    async def _look_at_host(self, conf: GuestConfig) -> None:
        """A VM that comes while it runs needs room now; one that is off need not run here, unless no other is left."""
        findings, hypervisor = self._findings, self._services.hypervisor
        if self._call.online:
            if not any(finding.severity is Severity.REFUSE for finding in findings):
                with refusing(findings.refused):
                    await hypervisor.check_room(conf, self._call.machine)
            if self._call.postcopy:
                with refusing(findings.refused):
                    await hypervisor.check_postcopy()
        else:
            hypervisor.check(conf, findings.refused if self._call.delete else findings.warned)

    # The disks

    def plan_disks(self, entries: dict[str, StorageEntry]) -> list[dict[str, Any]]:
        """What would become of each disk: `key`, `storage`, `format`, `stream`; nothing of those that cannot come."""
        return [row for disk in self._call.disks if disk.how.storage in entries for row in self._plan(disk, entries)]

    def _plan(self, disk: ComingDisk, entries: dict[str, StorageEntry]) -> Iterator[dict[str, Any]]:
        entry = entries[disk.how.storage]
        format, stream = disk.how.format, None
        try:
            if disk.mirrored:
                format = choose_format(entry, disk.how.format)
                check_mirrored_size(format, disk.size_bytes)
            else:
                _, stream = plan_import(self._services, self._call.vmid, entry, disk.how)
        except TunnelError as error:
            self._findings.add("disk", disk.key, f"cannot go to storage '{entry.id}': {error.line}")
            return
        if format != disk.how.format:
            text = f"{disk.how.format} becomes {format} on storage '{entry.id}'"
            self._findings.add("disk", disk.key, text, Severity.CHANGE)
        yield {"key": disk.key, "storage": entry.id, "format": format, "stream": stream}

    async def look_at_storage(self, name: str, planned: Collection[dict[str, Any]]) -> int | None:
        """Its room, and what an earlier VM left there. Returns: the bytes that are free; None: not known."""
        storage, turn = self._services.storage, self._services.child_turn
        keys = {row["key"] for row in planned if row["storage"] == name}
        disks = [disk for disk in self._call.disks if disk.key in keys]
        try:
            async with turn(self._rights.token, None):
                free_bytes = await storage.available_bytes(name)
            async with turn(self._rights.token, None):
                found = await storage.volumes(name, self._call.vmid)
            reason = await storage.why_unwritable(name, self._call.vmid)
        except TunnelError as error:
            self._findings.add("storage", name, f"storage '{name}' does not answer: {error.line}")
            return None
        if reason is not None:
            self._findings.add("storage", name, f"storage '{name}': {reason}")
        for finding in judge_room(
            name,
            size_bytes=sum(disk.size_bytes for disk in disks),
            written_bytes=sum(disk.written_bytes for disk in disks),
            free_bytes=free_bytes,
            strict=self._call.strict_space,
        ):
            self._findings.add(finding.about, finding.name, finding.text, finding.severity)
        await self._find_leftovers(name, found, disks)
        return free_bytes

    async def _find_leftovers(self, storage: str, found: Sequence[Volume], disks: Sequence[ComingDisk]) -> None:
        """Volumes of the VMID that no guest's config names; a cloud-init drive is made of a config, and no loss.

        Where the VMID is taken they may be those of a VM that is on its way, or waits for `mtunnel settle`.
        """
        if not self._is_vmid_free:
            return
        coming = {disk.how.volname for disk in disks}
        for volid in [volume.volid for volume in found if volume.content in _IMAGES]:
            if not await self._services.threads.run(self._services.guests.naming, volid):
                finding = judge_leftover(storage, volid, self._call.vmid, coming, remakes=True)
                self._findings.add(finding.about, finding.name, finding.text, finding.severity)
