"""Commands that make volumes: disk, disk-import, query-disk-import."""

from __future__ import annotations

from collections.abc import Sequence

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.ports.events import MoveTold
from mtunnel_tx.ports.moves import LONGEST_LABEL, Expected, TransferKind
from mtunnel_tx.ports.storage import ImportRequest
from mtunnel_tx.pve.drive import Drive, format_drive, format_size
from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.pve.storagetypes import Offer, match_offers
from mtunnel_tx.pve.volume import VolumeId, parse_dir_volume
from mtunnel_tx.tunnel.checks import refuse_foreign, usable_storage
from mtunnel_tx.tunnel.common import Result
from mtunnel_tx.tunnel.imports import ImportJob
from mtunnel_tx.tunnel.services import Services
from mtunnel_tx.tunnel.tunnel import Guest, Tunnel
from mtunnel_tx.wire.args import DiskArgs, ImportArgs, NoArgs
from mtunnel_tx.wire.lines import as_text
from mtunnel_tx.wire.socketkinds import DISK_IMPORT

_MADE_IN_BYTES = 1024


async def allocate(guest: Guest, args: DiskArgs) -> Result:
    """`disk`: an empty volume for a disk that will be mirrored into it."""
    tunnel = guest.tunnel
    entry = usable_storage(tunnel.services, tunnel.rights, args.storage)
    size_bytes = _sent_size(args)
    drive = Drive.from_sent(args.drive)
    wanted = choose_format(entry, args.format)
    check_mirrored_size(wanted, size_bytes)
    volid = await _allocate(tunnel, args.storage, size_bytes, wanted)
    options = {**drive.options, "format": _actual_format(entry, volid, wanted), "size": format_size(size_bytes)}
    drivestr = format_drive(Drive(volid, options))
    tunnel.drives[volid] = drivestr
    _expect(tunnel, _label(args, volid), TransferKind.MIRROR, size_bytes)
    return {"volid": volid, "drivestr": drivestr}


def choose_format(entry: StorageEntry, wanted: str | None) -> str:
    """The image format of a volume that `disk` makes: what the source would like, or else the storage's own."""
    return wanted if wanted and wanted in entry.valid_formats else entry.default_format


def check_mirrored_size(format: str, size_bytes: int) -> None:
    """Raises: TunnelError: no empty image of the very size can be made, and QEMU mirrors between equals only.

    They are made in KiB and then cut to sectors, which no program can do to a vmdk.
    """
    if format == "vmdk" and size_bytes % _MADE_IN_BYTES:
        raise TunnelError(f"an empty vmdk cannot be made with {size_bytes} bytes, no multiple of {_MADE_IN_BYTES}")


def _label(args: DiskArgs, volid: str) -> str:
    """`scsi0`, or the volume where the source does not say."""
    interface, index = args.drive.get("interface"), args.drive.get("index")
    return f"{as_text(interface)}{as_text(index)}" if interface is not None and index is not None else volid


def _expect(tunnel: Tunnel, label: str, kind: TransferKind, size_bytes: int | None = None) -> None:
    expected = Expected(label=clean(label)[:LONGEST_LABEL], kind=kind, total_bytes=size_bytes)
    tunnel.tell(MoveTold(tunnel=tunnel.facts, said=(expected,)))


def _sent_size(args: DiskArgs) -> int:
    size = args.drive.get("size")
    if size is None:
        raise TunnelError("unable to allocate a disk without a size")
    text = as_text(size)
    try:
        size_bytes = int(text if not isinstance(size, bool) else "")
    except ValueError as error:
        raise TunnelError(f"unable to allocate a disk of size '{text}'") from error
    if not 0 < size_bytes < 1 << 62:
        raise TunnelError(f"unable to allocate a disk of {size_bytes} bytes")
    return size_bytes


async def _allocate(tunnel: Tunnel, storage: str, size_bytes: int, format: str) -> str:
    await tunnel.own.will_make(storage)
    try:
        volid = await tunnel.services.storage.alloc(storage, tunnel.vmid, size_bytes, format, tunnel.task.line)
        await tunnel.own.has_made(storage, volid)
    except TunnelError:
        await tunnel.own.made_nothing(storage)
        raise
    return volid


def _actual_format(entry: StorageEntry, volid: str, wanted: str) -> str:
    name = volid.split(":", 1)[1]
    return parse_dir_volume(name).format if entry.has_files else wanted


async def start_import(guest: Guest, args: ImportArgs) -> Result:
    """`disk-import`: run a child that waits for the image on a socket."""
    tunnel = guest.tunnel
    running = tunnel.disk_import
    if running is not None and not running.over:
        raise TunnelError(f"disk import already running as PID '{running.pid}'")
    entry = usable_storage(tunnel.services, tunnel.rights, args.storage)
    request = _import_request(tunnel, entry, args)
    await _remove_old_cloudinit(tunnel, request)
    job = ImportJob(tunnel.services, tunnel.own, tunnel.task, request, tunnel.vmid)
    tunnel.disk_import = job
    try:
        await job.start()
    except TunnelError:
        job.over = True
        raise
    socket = tunnel.sockets.add(DISK_IMPORT, ended=job.stream_ended)
    _expect(tunnel, args.volname.removesuffix(f".{args.format}"), TransferKind.DISK)
    return {"socket": socket.name, "format": request.stream_format}


async def _remove_old_cloudinit(tunnel: Tunnel, request: ImportRequest) -> None:
    """A cloud-init drive keeps its name, by which it is known; what no guest has any more may not stand in its way.

    It is made of a VM's config, so that nothing is lost with it. The VMID is this tunnel's own.
    """
    if request.allow_rename or not Drive(request.volid).is_cloudinit:
        return
    services = tunnel.services
    if services.guests.naming(request.volid) or await services.storage.size_bytes(request.volid) is None:
        return
    tunnel.task.line(f"freeing volume '{request.volid}', a cloud-init drive that no guest has")
    await services.storage.free(request.volid)


def _import_request(tunnel: Tunnel, entry: StorageEntry, args: ImportArgs) -> ImportRequest:
    volume, stream_format = plan_import(tunnel.services, tunnel.vmid, entry, args)
    return ImportRequest(
        volid=str(volume),
        stream_format=stream_format,
        socket=tunnel.sockets.file(DISK_IMPORT),
        with_snapshots=args.with_snapshots,
        allow_rename=args.allow_rename,
        snapshot=args.snapshot,
        delete_snapshot=args.snapshot if args.migration_snapshot else None,
        convert=args.convert and tunnel.services.storage.converts,
    )


def plan_import(services: Services, vmid: int, entry: StorageEntry, args: ImportArgs) -> tuple[VolumeId, str]:
    """Returns: the volume that an import would make, and the stream format. Raises: TunnelError: it cannot be made."""
    if args.format not in entry.valid_formats:
        raise TunnelError(f"unsupported format '{args.format}' for storage type {entry.type}")
    volume = _target_volume(vmid, entry, args)
    known = services.storage.stream_formats
    offered = [stream for stream in args.export_formats if stream in known]
    converts = args.convert and services.storage.converts
    return volume, choose_stream(entry, args.format, offered, with_snapshots=args.with_snapshots, converts=converts)


def _target_volume(vmid: int, entry: StorageEntry, args: ImportArgs) -> VolumeId:
    name = args.volname.removesuffix(f".{args.format}")
    if not name or "/" in name:
        raise TunnelError(f"unable to parse volume filename '{args.volname}'")
    if entry.has_files:
        name = f"{vmid}/{name}.{args.format}"
        parse_dir_volume(name)
    volume = VolumeId(entry.id, name)
    refuse_foreign(entry, volume, vmid)
    return volume


def choose_stream(
    entry: StorageEntry, format: str, offered: Sequence[str], *, with_snapshots: bool, converts: bool = False
) -> str:
    """The first stream format of the exporter's that can become an image of this format on this storage.

    Args: converts: a raw stream may also become an image of another format. Raises: TunnelError: there is none.
    Source: protocol.md section 8.3.
    """
    offers = [Offer(stream, format) for stream in offered]
    chosen = match_offers(offers, entry.kind, with_snapshots=with_snapshots, converts=converts)
    if chosen is None:
        raise TunnelError(f"no matching import/export format found for storage '{entry.id}'")
    return chosen.stream


async def query_import(guest: Guest, _args: NoArgs) -> Result:
    """`query-disk-import`: the child's next line, or how it ended."""
    tunnel = guest.tunnel
    job = tunnel.disk_import
    if job is None or job.over:
        raise TunnelError("no disk import running")
    try:
        return await job.query()
    finally:
        if job.over:
            tunnel.sockets.drop(DISK_IMPORT)
