"""What a config is held against before it may become this node's: its keys, the token's rights, scripts and volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mtunnel_tx.errors import InvalidParameters, Refusal, TunnelError, at_once, refusing
from mtunnel_tx.pve.cloudinit import iter_snippets
from mtunnel_tx.pve.firewall import format_firewall
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestkeys import check_config_privileges
from mtunnel_tx.pve.guestrules import check_consistency, iter_drives, iter_volumes, require_options
from mtunnel_tx.pve.needs import Need
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.volume import find_owner, parse_volume_id
from mtunnel_tx.tunnel.checks import check_snippet, check_volume_access, known_storage
from mtunnel_tx.tunnel.services import Services

FIREWALL = Need("/vms/{vmid}", ("VM.Config.Network",), "for firewall rules")
_DISK_CONTENT = frozenset(("images", "rootdir", "iso", "import"))
"""What a drive can hold; scripts, templates and backups are none."""
_NOTHING_COMES: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """For one VM and one token.

    Args: runs_here: it will be started here; a VM that stays off need not be able to run here. machine: the machine
    type that it runs with at its source, where that is known. refused: takes what is not met, in Proxmox's order: the
    command `config` ends with the first, a check before a move remembers all.
    """

    services: Services
    rights: Rights
    vmid: int
    runs_here: bool
    machine: str | None = None
    refused: Refusal = at_once

    def check_length(self, what: str, text: str) -> None:
        """Raises: TunnelError: the text is longer than `limits.config_bytes`."""
        most = self.services.limits.config_bytes
        if len(text.encode("utf-8", "replace")) > most:
            raise TunnelError(f"vm {self.vmid} - {what} is longer than {most} bytes")

    async def read_firewall(self, text: str) -> tuple[str, list[str]]:
        """Returns: the text as it will be written, empty where nothing of it is left; and warnings."""
        canonical, warnings = await self.services.threads.run(format_firewall, text)
        if canonical:
            with refusing(self.refused, "firewall"):
                FIREWALL.check(self.rights, {"vmid": self.vmid})
        return canonical, warnings

    async def check(self, conf: GuestConfig, coming: Mapping[str, int] = _NOTHING_COMES) -> dict[str, int]:
        """Args: coming: the sizes in bytes of volumes that are still to be sent, by what the config calls them.

        Returns: the size in bytes of the volume of each drive.
        """
        refused = self.refused
        with refusing(refused):
            require_options(conf)
        # A network card may name some thousand VLANs, each with a right of its own.
        await self.services.threads.run(check_config_privileges, conf, self.vmid, self.rights, refused)
        await self._check_hookscript(conf)
        if "vmstatestorage" in conf.options:
            with refusing(refused, "vmstatestorage"):
                known_storage(self.services, conf.options["vmstatestorage"])
        check_consistency(conf, refused)
        if self.runs_here:
            self.services.hypervisor.check(conf, refused, self.machine)
        refuse_allocation(conf, refused)
        with refusing(refused, "cicustom"):
            for _, snippet in iter_snippets(conf):
                check_snippet(self.services, self.rights, snippet)
        return await self._check_volumes(conf, coming)

    async def _check_hookscript(self, conf: GuestConfig) -> None:
        """Only root may set one, and nobody else learns which there are."""
        script = conf.options.get("hookscript")
        if script is not None and self.rights.is_root and await self._size_of(script) is None:
            with refusing(self.refused, "hookscript"):
                raise InvalidParameters({"hookscript": f"script '{script}' does not exist\n"})

    async def _size_of(self, volid: str) -> int | None:
        try:
            return await self.services.storage.size_bytes(str(parse_volume_id(volid)))
        except TunnelError:
            return None

    async def _check_volumes(self, conf: GuestConfig, coming: Mapping[str, int]) -> dict[str, int]:
        """Each is asked for once, however many keys name it: that takes programs."""
        known_bytes = dict(coming)
        sizes_bytes: dict[str, int] = {}
        for key, volume in iter_volumes(conf):
            with refusing(self.refused, key):
                if volume not in known_bytes:
                    known_bytes[volume] = await self._check_volume(volume)
                sizes_bytes[key] = known_bytes[volume]
        return sizes_bytes

    async def _check_volume(self, text: str) -> int:
        """Returns: the actual size in bytes of a volume that is there and that the token may use."""
        if text.startswith("/"):
            raise TunnelError("Only root can pass arbitrary filesystem paths.")
        volume = parse_volume_id(text)
        entry = known_storage(self.services, volume.storage)
        check_volume_access(entry, self.rights, volume, self.vmid)
        content = find_owner(entry, volume.name).content
        if content not in _DISK_CONTENT:
            raise TunnelError(f"volume '{volume}' is no disk image, but of content '{content}'")
        size_bytes = await self.services.storage.size_bytes(str(volume))
        if size_bytes is None:
            raise TunnelError(f"volume '{volume}' does not exist")
        reason = await self.services.storage.refers_elsewhere(str(volume))
        if reason is not None:
            raise TunnelError(f"volume '{volume}': {reason}")
        return size_bytes


def refuse_allocation(conf: GuestConfig, refused: Refusal = at_once) -> None:
    """Args: refused: takes each drive's value that would make a new volume."""
    for key, drive in iter_drives(conf):
        if drive.allocates:
            text = f"{key}: '{drive.volume}' would make a new volume, which a tunnel's config may not"
            refused(key, TunnelError(text))
