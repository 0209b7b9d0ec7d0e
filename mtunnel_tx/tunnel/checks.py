"""Which storages and volumes a token may use; the checks come in Proxmox's order and have Proxmox's texts."""

from __future__ import annotations

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.needs import Need
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.pve.volume import VolumeId, find_owner, parse_volume_id
from mtunnel_tx.tunnel.services import Services

ALLOCATE = Need("/storage/{storage}", ("Datastore.AllocateSpace",), "for each storage that it uses")
ANY_VOLUME = Need("/storage/{storage}", ("Datastore.Allocate",), "for volumes of the config that are not the VM's own")
READ_ONLY_VOLUME = Need(
    "/storage/{storage}",
    ("Datastore.AllocateSpace", "Datastore.Audit"),
    "or, where the volume is an ISO or import image, or a snippet",
)


def known_storage(services: Services, storage: str) -> StorageEntry:
    """Raises: TunnelError: `storage 'X' does not exist`."""
    entry = services.storage.config().get(storage)
    if entry is None:
        raise TunnelError(f"storage '{storage}' does not exist")
    return entry


def usable_storage(services: Services, rights: Rights, storage: str) -> StorageEntry:
    """The storage check of protocol.md section 6. Raises: TunnelError, PermissionDenied."""
    entry = known_storage(services, storage)
    if not entry.enabled:
        raise TunnelError(f"storage '{storage}' is disabled")
    if entry.nodes is not None and services.guests.node not in entry.nodes:
        raise TunnelError(f"storage '{storage}' is not available on node '{services.guests.node}'")
    ALLOCATE.check(rights, {"storage": storage})
    if "images" not in entry.content:
        raise TunnelError(f"storage '{storage}' does not support vm images")
    return entry


def check_bridge(services: Services, bridge: str) -> None:
    """Raises: TunnelError: this host has no such bridge."""
    if not services.bridge_exists(bridge):
        raise TunnelError(f"bridge '{bridge}' does not exist")


def refuse_foreign(entry: StorageEntry, volume: VolumeId, vmid: int) -> None:
    """Raises: TunnelError: the volume is an image of another guest, by its folder, its name or its base."""
    if find_owner(entry, volume.name).is_foreign(vmid):
        raise TunnelError(f"volume '{volume}' does not belong to VM {vmid}")


def check_volume_access(entry: StorageEntry, rights: Rights, volume: VolumeId, vmid: int) -> None:
    """The access rules of formats.md section 3. Raises: TunnelError: `missing privileges to access V`."""
    refuse_foreign(entry, volume, vmid)
    values = {"storage": volume.storage}
    if ANY_VOLUME.is_met(rights, values):
        return
    owner = find_owner(entry, volume.name)
    if owner.content in ("images", "rootdir") and owner.vmid == vmid:
        return
    if owner.content in ("iso", "import") and READ_ONLY_VOLUME.is_met(rights, values):
        return
    raise TunnelError(f"missing privileges to access {volume}")


def check_snippet(services: Services, rights: Rights, text: str) -> None:
    """A snippet, whose text the guest will see. Raises: TunnelError: no such storage, or the token may not read it."""
    volume = parse_volume_id(text)
    known_storage(services, volume.storage)
    values = {"storage": volume.storage}
    if not (ANY_VOLUME.is_met(rights, values) or READ_ONLY_VOLUME.is_met(rights, values)):
        raise TunnelError(f"missing privileges to access {volume}")
