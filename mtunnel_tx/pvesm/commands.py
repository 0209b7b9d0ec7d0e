"""The commands of mtunnel-pvesm, independent of the storage's type."""

from __future__ import annotations

from collections.abc import Collection

from mtunnel_tx.config import Settings
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.storagecfg import CONTENT_TYPES, StorageEntry
from mtunnel_tx.pve.storagetypes import STREAM_FORMATS
from mtunnel_tx.pve.volume import VolumeId, parse_volume_id
from mtunnel_tx.pvesm.driver import ExportOrder, ImportOrder, ListedVolume, NewImage, StorageUsage
from mtunnel_tx.pvesm.output import say, warn
from mtunnel_tx.pvesm.storages import find_storage, make_driver, open_storage, read_entries
from mtunnel_tx.pvesm.tables import StorageStatus


def allocate(settings: Settings, storage: str, wanted: NewImage) -> None:
    """`alloc`: make an empty image and print its volume id. Raises: TunnelError."""
    driver = open_storage(settings, storage, "images")
    driver.allocate(wanted, lambda volid: say(f"successfully created '{volid}'"))


def free(settings: Settings, volid: str) -> None:
    """`free`: remove a volume. Raises: TunnelError."""
    parsed = parse_volume_id(volid)
    open_storage(settings, parsed.storage).free(parsed.name)


def path(settings: Settings, volid: str) -> str:
    """`path`: find out where a volume is; neither it nor its storage need be there. Raises: TunnelError."""
    parsed = parse_volume_id(volid)
    return str(find_storage(settings, parsed.storage).path(parsed.name))


def list_volumes(settings: Settings, storage: str, vmid: int | None, content: str | None) -> list[ListedVolume]:
    """`list`: list the volumes of a storage, sorted. `vmid`, `content`: None: of all. Raises: TunnelError."""
    driver = open_storage(settings, storage)
    kinds = [kind for kind in CONTENT_TYPES if kind in driver.entry.content and content in (None, kind)]
    return sorted(driver.volumes(kinds, vmid), key=lambda listed: listed.volid.lower())


def storage_status(
    settings: Settings, storage: str | None, kinds: Collection[str] = (), *, enabled: bool = False
) -> list[StorageStatus]:
    """`status`: list the storages of this node, sorted by id.

    Args: storage: only this one; None: all. kinds: only enabled storages that may hold one of these kinds of content;
        empty: all. enabled: only enabled storages.
    """
    entries = read_entries(settings).values()
    wanted = [entry for entry in entries if storage in (None, entry.id) and entry.on_node(settings.node)]
    if enabled or kinds:
        wanted = [entry for entry in wanted if entry.enabled]
    kept = [entry for entry in wanted if not kinds or not entry.content.isdisjoint(kinds)]
    return [_status(settings, entry) for entry in sorted(kept, key=lambda entry: entry.id)]


def _status(settings: Settings, entry: StorageEntry) -> StorageStatus:
    if not entry.enabled:
        return StorageStatus(id=entry.id, type=entry.type, state="disabled", usage=StorageUsage())
    driver = make_driver(settings, entry)
    problem = driver.find_problem() if driver else "type is not supported"
    if driver is None or problem:
        warn(f"unable to activate storage '{entry.id}' - {problem}")
        return StorageStatus(id=entry.id, type=entry.type, state="inactive", usage=StorageUsage())
    return StorageStatus(id=entry.id, type=entry.type, state="active", usage=driver.usage())


def import_volume(settings: Settings, order: ImportOrder, stream: int) -> None:
    """`import`: make a volume from a stream and print its volume id. Raises: TunnelError."""
    parsed = _named_volume(order.volid, "import into")
    driver = open_storage(settings, parsed.storage, "images")
    if order.stream_format not in driver.entry.kind.imports:
        raise TunnelError(f"volume import format '{order.stream_format}' not available for {driver.plugin}")
    if not STREAM_FORMATS[order.stream_format].fits(with_snapshots=order.with_snapshots):
        how = "with" if order.with_snapshots else "without"
        raise TunnelError(f"format {order.stream_format} cannot be imported {how} snapshots")
    driver.receive(parsed.name, order, stream, lambda volid: say(f"successfully imported '{volid}'"))


def export_volume(settings: Settings, order: ExportOrder, target: int) -> None:
    """`export`: write a volume as a stream. Raises: TunnelError; OSError: the target cannot be written."""
    parsed = _named_volume(order.volid, "export")
    open_storage(settings, parsed.storage).send(parsed.name, order, target)


def verify_volume(settings: Settings, volid: str) -> None:
    """`verify`: see that an import would take what `export` sends of a volume's file. Raises: TunnelError."""
    parsed = _named_volume(volid, "verify")
    open_storage(settings, parsed.storage).verify(parsed)


def _named_volume(text: str, verb: str) -> VolumeId:
    try:
        return parse_volume_id(text)
    except TunnelError as error:
        raise TunnelError(f"cannot {verb} volume '{text}'") from error
