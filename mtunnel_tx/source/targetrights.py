"""What can be known of a target that makes no checks of its own: what its API tells of a token's rights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mtunnel_tx.errors import Forbidden, NotFound, PermissionDenied, TunnelError
from mtunnel_tx.pve.findings import Findings, Severity, reason_of, subject_of
from mtunnel_tx.pve.guestconf import GuestConfig, format_guest_config, read_sent_config
from mtunnel_tx.pve.guestformats import CHECKS
from mtunnel_tx.pve.guestkeys import check_config_privileges
from mtunnel_tx.pve.guestrules import check_consistency
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.roles import ALL_PRIVILEGES
from mtunnel_tx.pve.users import UserConfig
from mtunnel_tx.source.inventory import SourceDisk
from mtunnel_tx.source.order import Order, SourceWorld
from mtunnel_tx.source.rewriting import find_bridges
from mtunnel_tx.source.target import NotImplementedThere, objects

MOST_PATHS = 64
"""A VM with so many bridges and mappings is none."""


class ToldRights(Rights):
    """The rights of a token by what a target told; where it told nothing, the token may do everything.

    Args: held: access paths to privileges. `asked`: every path that was looked at.
    """

    __slots__ = ("_held", "asked")

    def __init__(self, token: str, held: Mapping[str, frozenset[str]]) -> None:
        super().__init__(UserConfig(), token)
        self._held = held
        self.asked: dict[str, None] = {}

    def privileges(self, path: str) -> frozenset[str]:
        self.asked[path] = None
        return self._held.get(path, ALL_PRIVILEGES)


class TargetRights:
    """Asks about one order.

    Args: found: takes what stands in the way. conf: as it will be sent, bridges apart.
    """

    def __init__(self, order: Order, world: SourceWorld, found: Findings, conf: GuestConfig) -> None:
        self._order = order
        self._world = world
        self._found = found
        self._conf = self._as_sent(conf)
        self._tells = True

    def _as_sent(self, conf: GuestConfig) -> GuestConfig:
        """Read again as a target reads it; what Proxmox does not take stands in the way. Snapshots do so already."""
        current = conf.copy()
        current.sections.clear()
        text = format_guest_config(current)
        return read_sent_config(text, self._order.target_vmid, self._unreadable)[0]

    def _unreadable(self, key: str, error: TunnelError) -> None:
        if key and key not in CHECKS:
            text = f"'{key}' is not known here, and may not be there"
            self._found.add("key", key, text, Severity.WARN)
        else:
            self._found.refused(key, error)

    async def check(self, disks: Sequence[SourceDisk]) -> bool:
        """Returns: whether the target tells anything of the token's rights. Raises: TunnelError: it does not answer."""
        check_consistency(self._conf, self._found.refused)
        told: dict[str, frozenset[str]] = {}
        for path in self._paths(disks):
            if (held := await self._ask(path)) is not None:
                told[path] = held
        rights = ToldRights(self._world.target.token, told)
        for path, privilege in self._needed(disks):
            if privilege not in rights.privileges(path):
                self._found.add("vm", "", PermissionDenied(path, privilege).line)
        check_config_privileges(self._conf, self._order.target_vmid, rights, self._found_denied)
        return bool(told)

    def _found_denied(self, key: str, error: TunnelError) -> None:
        self._found.add(subject_of(key), key, reason_of(error))

    def _paths(self, disks: Sequence[SourceDisk]) -> list[str]:
        """Every path that matters."""
        everything = ToldRights(self._world.target.token, {})
        check_config_privileges(self._conf, self._order.target_vmid, everything, lambda _key, _error: None)
        return list(dict.fromkeys((*(path for path, _ in self._needed(disks)), *everything.asked)))[:MOST_PATHS]

    def _needed(self, disks: Sequence[SourceDisk]) -> Iterator[tuple[str, str]]:
        yield f"/vms/{self._order.target_vmid}", "VM.Allocate"
        yield "/", "Sys.Incoming"
        for name in dict.fromkeys(self._order.storage_or_same(disk.volid.storage) for disk in disks):
            yield f"/storage/{name}", "Datastore.AllocateSpace"

    async def _ask(self, path: str) -> frozenset[str] | None:
        if not self._tells:
            return None
        try:
            held = await self._world.target.get("access", "permissions", path=path)
        except (NotImplementedThere, NotFound, Forbidden):
            self._tells = False  # nothing is known then; the tunnel itself will tell
            return None
        there = held.get(path) or {} if isinstance(held, dict) else None
        return frozenset(map(str, there)) if isinstance(there, dict) else None

    async def check_bridges(self, node: str) -> bool:
        """Returns: whether the target tells which bridges there are. Raises: TunnelError: it does not answer."""
        try:
            listed = await self._world.target.get("nodes", node, "network", type="any_bridge")
        except (NotImplementedThere, NotFound, Forbidden):
            return False
        known = {str(entry.get("iface")) for entry in objects(listed)}
        for name in dict.fromkeys(map(self._order.bridge_or_same, find_bridges(self._conf))):
            if name not in known:
                self._found.add("bridge", name, f"bridge '{name}' is not there, or the token may not use it")
        return True
