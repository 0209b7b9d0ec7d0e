"""Volumes, managed by running `pvesm` (Proxmox's or ours) as a child (ports.Storage)."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from mtunnel_tx.backends.child import OUTPUT_BYTES, PipedChild, checked, run, spawn_child
from mtunnel_tx.backends.files import CachedFile, why_unwritable
from mtunnel_tx.backends.images import ImageFile, find_facts, measure_written, unusable
from mtunnel_tx.backends.keptprogram import KeptPrograms
from mtunnel_tx.backends.orphans import VARIABLE, end_orphans
from mtunnel_tx.errors import BackendFailed, NotFound
from mtunnel_tx.extents import FileExtents, measure_extents
from mtunnel_tx.ports.holding import Store
from mtunnel_tx.ports.storage import Child, ImportRequest, Report, Volume
from mtunnel_tx.pve.imagefile import SECTOR_BYTES, ImageFacts
from mtunnel_tx.pve.storagecfg import StorageEntry, parse_datacenter_config, parse_storage_config
from mtunnel_tx.pve.storagetypes import PROXMOX_STREAMS, STREAM_FORMATS, Layout
from mtunnel_tx.pve.volume import find_owner, parse_dir_volume, parse_volume_id

log = Logger()
ALLOC_S = 600.0
FREE_S = 600.0
QUERY_S = 120.0
_UNIT_BYTES = 1024
_OWN_MODULE = "mtunnel_tx.pvesm"
_OWN_PROGRAM = "mtunnel-pvesm"
DIGEST_S = 24 * 3600.0
VERIFY_S = 24 * 3600.0
_PIPED = ("bash", "-c", 'set -o pipefail; "$@" | sha256sum', "bash")
"""Runs the words behind it, and hashes what they print."""
_CREATED = re.compile(r"successfully created '(.+)'")
_LISTED = re.compile(
    r"(\S.*?)\s+(\S+)\s+(images|rootdir|iso|vztmpl|backup|snippets|import|none)\s+(\d+)(?:\s+(\d+))?\s*", re.ASCII
)
_STATUS_FIELDS = 7
_DIGEST = re.compile(r"^\\?([0-9a-f]{64}) ", re.MULTILINE)


class PvesmStorage:
    """ports.Storage.

    Args: command: the program with its first arguments. environ: the children's whole environment. pve_dir: where
        storage.cfg and datacenter.cfg are. owner: whom the children work for, the daemon's state directory.
        output_bytes: unread output kept of one child. store: where imports run, so that they outlive us. keeps: let our
        own program run between its commands, until `close`.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        command: Sequence[str],
        environ: Mapping[str, str],
        pve_dir: Path,
        owner: str,
        output_bytes: int = OUTPUT_BYTES,
        store: Store | None = None,
        keeps: bool = False,
    ) -> None:
        self._store = store
        self._reactor = reactor
        self._command = tuple(command)
        self._owner = owner
        self._environ = {**environ, "LC_ALL": "C", VARIABLE: owner}
        self._output_bytes = output_bytes
        is_kept = keeps and self.converts
        self._kept = KeptPrograms(reactor, self._command, self._environ) if is_kept else None
        self._storages = CachedFile(pve_dir / "storage.cfg", _parse_storages)
        self._datacenter = CachedFile(pve_dir / "datacenter.cfg", parse_datacenter_config)

    async def close(self) -> None:
        """End the programs that wait for more to do."""
        if self._kept is not None:
            await self._kept.close()

    @property
    def stream_formats(self) -> frozenset[str]:
        """See ports.Storage."""
        return frozenset(STREAM_FORMATS if self.converts else PROXMOX_STREAMS)

    @property
    def converts(self) -> bool:
        """See ports.Storage."""
        return any(word == _OWN_MODULE or Path(word).name == _OWN_PROGRAM for word in self._command)

    def config(self) -> Mapping[str, StorageEntry]:
        """See ports.Storage. Raises: BackendFailed: storage.cfg cannot be read."""
        return self._storages.value()

    def datacenter_bwlimit(self) -> str | None:
        """See ports.Storage. Raises: BackendFailed: datacenter.cfg cannot be read."""
        return self._datacenter.value().get("bwlimit")

    async def alloc(
        self, storage: str, vmid: int, size_bytes: int, format: str, report: Report, *, name: str = ""
    ) -> str:
        """See ports.Storage."""
        size_kib = str(-(-size_bytes // _UNIT_BYTES))
        output = await self._run(ALLOC_S, "alloc", storage, str(vmid), name, size_kib, "-format", format)
        volid = None
        for line in output.splitlines():
            if match := _CREATED.fullmatch(line):
                volid = match[1]
            else:
                report(line)
        if volid is None:
            raise BackendFailed(f"'pvesm alloc' did not say what it made on storage '{storage}'")
        sectors = -(-size_bytes // SECTOR_BYTES)
        if sectors * SECTOR_BYTES % _UNIT_BYTES:
            await self._cut(volid, sectors * SECTOR_BYTES)
        return volid

    async def _cut(self, volid: str, size_bytes: int) -> None:
        """Give a new volume the very size; `pvesm alloc` counts in KiB, QEMU in sectors, and mirrors between equals."""
        path = await self._file(volid)
        if path is None:
            return  # a block storage has its own units
        format = parse_dir_volume(parse_volume_id(volid).name).format
        argv = ["qemu-img", "resize", "-q", "--shrink", "-f", format, "--", path, str(size_bytes)]
        await run(self._reactor, argv, self._environ, ALLOC_S, name="qemu-img resize")

    async def free(self, volid: str) -> None:
        """See ports.Storage."""
        await self._run(FREE_S, "free", volid)

    async def volumes(self, storage: str, vmid: int | None = None) -> list[Volume]:
        """See ports.Storage. Raises: BackendFailed."""
        options = [] if vmid is None else ["-vmid", str(vmid)]
        output = await self._run(QUERY_S, "list", storage, *options)
        matches = map(_LISTED.fullmatch, output.splitlines())
        return [_volume(match) for match in matches if match and match[1].startswith(f"{storage}:")]

    async def why_unwritable(self, storage: str, vmid: int) -> str | None:
        """See ports.Storage. Raises: TunnelError: no such storage."""
        entry = self._entry(storage)
        if not entry.has_files or entry.kind.layout is not Layout.FILES:
            return None
        image = parse_dir_volume(f"{vmid}/vm-{vmid}-disk-0.raw").file(entry)
        reason: str | None = None if image is None else await self._in_thread(_why_no_images, image)
        return reason

    async def path(self, volid: str) -> str:
        """See ports.Storage. Raises: BackendFailed."""
        lines = (await self._run(QUERY_S, "path", volid)).splitlines()
        if not lines:
            raise BackendFailed(f"'pvesm path' did not say where volume '{volid}' is")
        return lines[-1]

    async def size_bytes(self, volid: str) -> int | None:
        """See ports.Storage. Raises: BackendFailed, TunnelError: no such storage, or no volume id."""
        volume = parse_volume_id(volid)
        owner = find_owner(self._entry(volume.storage), volume.name)
        if owner.content not in ("images", "rootdir"):
            size: int | None = await self._in_thread(_file_size, await self.path(volid))
            return size
        listed = await self.volumes(volume.storage, owner.vmid)
        return next((found.size_bytes for found in listed if found.volid == volid), None)

    async def refers_elsewhere(self, volid: str) -> str | None:
        """See ports.Storage. Raises: as `image_facts`."""
        facts = await self.image_facts(volid)
        return facts.why_not_alone if facts is not None else None

    async def image_facts(self, volid: str) -> ImageFacts | None:
        """See ports.Storage. Raises: BackendFailed, TimedOut, TunnelError: no such storage, or no volume id."""
        path = await self._file(volid)
        if path is None:
            return None
        volume = parse_volume_id(volid)
        parsed = parse_dir_volume(volume.name)
        if parsed.format == "subvol":
            return None
        base = None
        if parsed.base is not None:
            base_volid = f"{volume.storage}:{parsed.base}"
            if reason := await self.refers_elsewhere(base_volid):
                return unusable(parsed.format, f"base volume '{base_volid}': {reason}")
            base = await self._file(base_volid)
        in_guest_folder = parsed.content == "images"
        file = ImageFile(path=path, format=parsed.format, base=base, in_guest_folder=in_guest_folder)
        return await find_facts(self._reactor, file, self._environ)

    async def verify(self, volid: str) -> None:
        """See ports.Storage."""
        if self.converts:
            # It may take minutes: the program that is kept has other things to do.
            await run(self._reactor, [*self._command, "verify", volid], self._environ, VERIFY_S, name="pvesm verify")

    async def extend(self, volid: str, size_bytes: int) -> None:
        """See ports.Storage. Raises: BackendFailed: it cannot be written."""
        path = await self._file(volid)
        if path is not None:
            await self._in_thread(partial(_extend_file, size_bytes=size_bytes), path)

    async def extents(self, volid: str) -> FileExtents | None:
        """See ports.Storage."""
        path = await self._file(volid)
        found: FileExtents | None = None if path is None else await self._in_thread(_measure, path)
        return found

    async def written_bytes(self, volid: str) -> int | None:
        """See ports.Storage. Raises: BackendFailed, TimedOut."""
        path = await self._file(volid)
        format = "" if path is None else parse_dir_volume(parse_volume_id(volid).name).format
        return None if path is None else await measure_written(self._reactor, path, format, self._environ)

    async def digest(self, volid: str, *, content: bool = False) -> str:
        """See ports.Storage. Raises: BackendFailed, TimedOut."""
        argv = ["sha256sum", "--", await self.path(volid)]
        if content:
            argv = [*_PIPED, *self._export(volid, "raw+size", with_snapshots=False)]
        output = await run(self._reactor, argv, self._environ, DIGEST_S, name="sha256sum")
        match = _DIGEST.search(output)
        if match is None:
            raise BackendFailed(f"'sha256sum' did not give a digest of volume '{volid}'")
        return match[1]

    async def sync(self, volids: Sequence[str]) -> None:
        """See ports.Storage. Raises: BackendFailed: a volume is not safe on disk."""
        for volid in volids:
            path = await self._file(volid)
            if path is not None:
                await self._in_thread(_sync_file, path)

    async def _file(self, volid: str) -> str | None:
        """A volume's path, without a child where its name tells; None on a storage without files.

        A running VM waits for this.
        """
        volume = parse_volume_id(volid)
        entry = self._entry(volume.storage)
        if not entry.has_files:
            return None
        if entry.kind.layout is Layout.FILES:
            return parse_dir_volume(volume.name).file(entry)
        return await self.path(volid)

    def start_import(self, request: ImportRequest) -> Child:
        """See ports.Storage. Raises: BackendFailed."""
        argv = [*self._command, "import", request.volid, request.stream_format, f"unix://{request.socket}"]
        argv += ["-with-snapshots", str(int(request.with_snapshots))]
        if request.snapshot is not None:
            argv += ["-snapshot", request.snapshot]
        if request.delete_snapshot is not None:
            argv += ["-delete-snapshot", request.delete_snapshot]
        argv += ["-allow-rename", str(int(request.allow_rename))]
        if request.convert:
            argv += ["-convert", "1"]
        if self._store is not None:
            return self._store.spawn(f"import/{secrets.token_hex(8)}", argv, self._environ, keeps_end=True)
        return spawn_child(self._reactor, argv, self._environ, limit_bytes=self._output_bytes)

    def start_export(self, volid: str, stream_format: str, *, with_snapshots: bool, stdout: int) -> PipedChild:
        """See ports.Storage. Raises: BackendFailed."""
        argv = self._export(volid, stream_format, with_snapshots=with_snapshots)
        return spawn_child(self._reactor, argv, self._environ, limit_bytes=self._output_bytes, stdout=stdout)

    def _export(self, volid: str, stream_format: str, *, with_snapshots: bool) -> list[str]:
        return [*self._command, "export", volid, stream_format, "-", "-with-snapshots", str(int(with_snapshots))]

    async def available_bytes(self, storage: str) -> int | None:
        """See ports.Storage. Raises: BackendFailed."""
        for line in (await self._run(QUERY_S, "status", "-storage", storage)).splitlines():
            fields = line.split()
            if len(fields) == _STATUS_FIELDS and fields[0] == storage and fields[2] == "active":
                return int(fields[5]) * 1024 if fields[5].isdigit() else None
        return None

    async def end_orphans(self, but: Collection[int] = ()) -> None:
        """See ports.Storage."""
        count = await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), end_orphans, self._owner, but)
        if count:
            log.warn("ended {count} children of an earlier daemon", count=count)

    def _entry(self, storage: str) -> StorageEntry:
        entry = self.config().get(storage)
        if entry is None:
            raise NotFound(f"storage '{storage}' does not exist")
        return entry

    async def _run(self, timeout_s: float, command: str, *arguments: str) -> str:
        name, words = f"pvesm {command}", [command, *arguments]
        answer = await self._kept.run(words, timeout_s, name) if self._kept is not None else None
        if answer is not None:
            return checked(name, *answer)
        return await run(self._reactor, [*self._command, *words], self._environ, timeout_s, name=name)

    async def _in_thread(self, call: Callable[[str], Any], path: str) -> Any:
        return await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), call, path)


def _why_no_images(image: str) -> str | None:
    folder = Path(image).parent
    return f"'{folder}' is a symbolic link" if folder.is_symlink() else why_unwritable(folder)


def _parse_storages(text: str) -> Mapping[str, StorageEntry]:
    return parse_storage_config(text, _log_skipped)


def _log_skipped(reason: str) -> None:
    log.warn("storage.cfg: {reason}", reason=reason)


def _volume(match: re.Match[str]) -> Volume:
    return Volume(
        volid=match[1],
        format=match[2],
        content=match[3],
        size_bytes=int(match[4]),
        vmid=int(match[5]) if match[5] else None,
    )


def _file_size(path: str) -> int | None:
    """The size of a regular file; None where there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _extend_file(path: str, *, size_bytes: int) -> None:
    size = _file_size(path)
    if size is not None and size < size_bytes:
        try:
            os.truncate(path, size_bytes)
        except OSError as error:
            raise BackendFailed(f"unable to extend '{path}': {error.strerror}") from error


def _measure(path: str) -> FileExtents:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a path of another program's
            return measure_extents(file.fileno(), os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise BackendFailed(f"'{path}': {error.strerror}") from error


def _sync_file(path: str) -> None:
    """Make a file safe on disk, its folder and that one's name; what is no regular file, or gone, is skipped."""
    if _file_size(path) is None:
        return
    for each in (path, *map(str, Path(path).parents[:2])):
        try:
            _sync(each)
        except OSError as error:
            raise BackendFailed(f"unable to sync '{each}': {error.strerror}") from error


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
