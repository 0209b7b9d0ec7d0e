"""Volumes for guests: on which storage, in which format, under which name; and what may be freed."""

from __future__ import annotations

from collections.abc import Iterable

from mtunnel_tx.checks import FormatError
from mtunnel_tx.errors import BadRequest, NotFound, TunnelError
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.pve.drive import drive_interface
from mtunnel_tx.pve.driveformats import DRIVES_PER_INTERFACE
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestrules import iter_volumes
from mtunnel_tx.pve.sizes import parse_size
from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.pve.volume import find_owner, next_disk_name, parse_volume_id

_IMAGE_FORMATS = ("qcow2", "raw", "vmdk")
_PREFERRED = "qcow2"


def choose_storage(host: PlainHost, wanted: str | None, content: str = "images") -> StorageEntry:
    """The storage that was asked for, else the first one that takes this content.

    Raises: NotFound: there is none; BadRequest: it is disabled, of another node, or for something else.
    """
    entries = host.storage.config()
    if wanted is None:
        usable = (entry for entry in entries.values() if _problem(host, entry, content) is None)
        if (found := next(usable, None)) is None:
            remedy = "see storage.cfg" if entries else "'mtunnel init' makes the first one"
            raise NotFound(f"no storage takes {content}: {remedy}")
        return found
    if wanted not in entries:
        raise NotFound(f"storage '{wanted}' does not exist; there are {', '.join(entries) or 'none'}")
    if problem := _problem(host, entries[wanted], content):
        raise BadRequest(f"storage '{wanted}' {problem}")
    return entries[wanted]


def _problem(host: PlainHost, entry: StorageEntry, content: str) -> str | None:
    if not entry.enabled:
        return "is disabled"
    if not entry.on_node(host.guests.node):
        return f"is not available on node '{host.guests.node}'"
    return None if content in entry.content else f"takes no {content}"


def choose_format(entry: StorageEntry, wanted: str | None) -> str:
    """The format of a new disk: what was asked for, what the storage is set to, else one that can have snapshots.

    Raises: BadRequest: the storage cannot have it.
    """
    usable = [name for name in entry.valid_formats if name in _IMAGE_FORMATS]
    if wanted is not None and wanted not in usable:
        raise BadRequest(f"storage '{entry.id}' has no format '{wanted}', but {', '.join(usable)}")
    if wanted is not None:
        return wanted
    preferred = _PREFERRED if "format" not in entry.options and _PREFERRED in usable else entry.default_format
    return preferred if preferred in usable else usable[0]


async def free_name(host: PlainHost, entry: StorageEntry, vmid: int, format: str, more: Iterable[str]) -> str:
    """The id of the next volume of a VM. Args: more: volumes that are taken besides those on the storage."""
    listed = [volume.volid for volume in await host.storage.volumes(entry.id, vmid)]
    taken = [parse_volume_id(volid).name.rpartition("/")[2] for volid in (*listed, *more)]
    name = next_disk_name(vmid, taken, format)
    return full_name(entry, vmid, name)


def full_name(entry: StorageEntry, vmid: int, name: str) -> str:
    """The volume id of an image: where there are files each VM has a folder, elsewhere a name has no ending."""
    return f"{entry.id}:{vmid}/{name}" if entry.has_files else f"{entry.id}:{name.rpartition('.')[0]}"


def read_size(text: str) -> int:
    """`20G`, `512M`; a number alone is GiB, as in Proxmox's own commands. Raises: BadRequest."""
    try:
        size_bytes = parse_size(f"{text}G" if text.replace(".", "", 1).isdecimal() else text.upper())
    except FormatError as error:
        raise BadRequest(f"'{text}' is no size such as 20G or 512M") from error
    if not 0 < size_bytes <= 1 << 50 or size_bytes % 1024:
        raise BadRequest(f"'{text}' is no size of a disk: up to 1024T, in steps of 1K")
    return size_bytes


def free_key(conf: GuestConfig, bus: str) -> str:
    """The first free drive of a bus: `scsi1`. Raises: BadRequest: all are in use."""
    keys = (f"{bus}{index}" for index in range(DRIVES_PER_INTERFACE[bus]))
    for key in keys:
        if key not in conf.options:
            return key
    raise BadRequest(f"there are {DRIVES_PER_INTERFACE[bus]} {bus} drives at most")


def own_volumes(host: PlainHost, conf: GuestConfig, vmid: int) -> list[str]:
    """The volumes that a config and its snapshots name and that belong to the VM itself, each once."""
    sections = [conf, *(GuestConfig(options=section.options) for section in conf.sections.values())]
    named = (volume for section in sections for _, volume in iter_volumes(section))
    return list(dict.fromkeys(volid for volid in named if is_own(host, volid, vmid)))


def is_own(host: PlainHost, volid: str, vmid: int) -> bool:
    """Whether a volume is a disk that belongs to a VM by its name; a path, and a CD image, belong to none."""
    try:
        volume = parse_volume_id(volid)
        owner = find_owner(host.storage.config()[volume.storage], volume.name)
    except (TunnelError, KeyError):
        return False
    return owner.content == "images" and owner.vmid == vmid


def keep_unused(conf: GuestConfig, volid: str) -> None:
    """Name a volume that no drive has."""
    conf.options[free_key(conf, "unused")] = volid


def image_format(host: PlainHost, volid: str) -> str:
    """The format of a volume's image: where there are files, its name says so; elsewhere there is none but raw."""
    volume = parse_volume_id(volid)
    entry = host.storage.config().get(volume.storage)
    return volume.name.rpartition(".")[2] if entry is not None and entry.has_files else "raw"


async def free_unnamed(host: PlainHost, volids: Iterable[str]) -> list[str]:
    """Free those volumes that no config names. Returns: those that stay since one does."""
    kept = []
    for volid in volids:
        if host.guests.naming(volid):
            kept.append(volid)
        else:
            await host.storage.free(volid)
    return kept


def is_disk(key: str) -> bool:
    """Whether a drive's key is that of a disk that a guest sees."""
    return drive_interface(key) not in ("unused", "efidisk", "tpmstate")
