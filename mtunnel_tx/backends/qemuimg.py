"""ports.Images by `qemu-img`: every format is named, and no file is followed that an image names by itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtunnel_tx.backends.child import run
from mtunnel_tx.backends.files import ReactorThreads, make_folder
from mtunnel_tx.backends.foreignimages import look_at_image
from mtunnel_tx.errors import BackendFailed, BadRequest
from mtunnel_tx.ports.images import ImagePlace, SourceImage
from mtunnel_tx.pve.imagefile import ImageFacts, read_image_info

INFO_S = 60.0
WORK_S = 7 * 24 * 3600.0
_READ_BYTES = 1 << 20
_HASHED_BYTES = 64 << 20
"""Hashed at once: so long somebody who interrupts has to wait."""
_INFO_LIMITS = ("prlimit", "--as=2147483648", "--cpu=60", "--")


class QemuImages:
    """ports.Images.

    Args: environ: the children's whole environment, with the word that they are known by.
    """

    def __init__(self, threads: ReactorThreads, environ: Mapping[str, str]) -> None:
        self._threads = threads
        self._environ = dict(environ)

    async def look(self, place: ImagePlace, format: str | None) -> SourceImage:
        """See ports.Images."""
        seen = await self._threads.run(look_at_image, place, format)
        if seen.size_bytes:
            return seen
        facts = await self._info(_node(seen), limits=_INFO_LIMITS)
        if facts.encrypted or facts.backing is not None:
            raise BadRequest(f"{place.path}: it is encrypted, or needs another image")
        return replace(seen, size_bytes=facts.size_bytes)

    async def convert(self, source: SourceImage, target: Path, format: str) -> None:
        """See ports.Images."""
        # A new block device may hold what somebody else left there.
        known = [] if target.is_block_device() else ["--target-is-zero"]
        await self._run(WORK_S, "convert", "-n", *known, "-O", format, _node(source), str(target))

    async def resize(self, path: Path, format: str, size_bytes: int) -> None:
        """See ports.Images."""
        await self._run(WORK_S, "resize", "-f", format, "--", str(path), str(size_bytes))

    async def snapshots(self, path: Path) -> list[str]:
        """See ports.Images."""
        return list((await self._info("-U", "-f", "qcow2", "--", str(path))).snapshots)

    async def take_snapshot(self, path: Path, name: str) -> None:
        """See ports.Images."""
        await self._snapshot("-c", path, name)

    async def apply_snapshot(self, path: Path, name: str) -> None:
        """See ports.Images."""
        await self._snapshot("-a", path, name)

    async def delete_snapshot(self, path: Path, name: str) -> None:
        """See ports.Images."""
        await self._snapshot("-d", path, name)

    async def copy(self, source: Path, target: Path) -> None:
        """See ports.Images."""
        await self._threads.run(make_folder, target.parent, 0o755)
        words = ["cp", "--reflink=auto", "--sparse=auto", "--", str(source), str(target)]
        await run(self._threads.reactor, words, self._environ, WORK_S)
        await run(self._threads.reactor, ["sync", "--", str(target)], self._environ, WORK_S)

    async def is_same(self, one: Path, other: Path) -> bool:
        """See ports.Images."""
        if one.stat().st_size != other.stat().st_size:
            return False
        try:
            await run(self._threads.reactor, ["cmp", "--silent", "--", str(one), str(other)], self._environ, WORK_S)
        except BackendFailed as error:
            if "exit code 1:" in error.text:
                return False
            raise
        return True

    async def digest(self, place: ImagePlace, algorithm: str) -> str:
        """See ports.Images."""
        hashed = hashlib.new(algorithm)
        length_bytes = place.path.stat().st_size if place.length_bytes is None else place.length_bytes
        for begin in range(0, length_bytes, _HASHED_BYTES):
            count = min(_HASHED_BYTES, length_bytes - begin)
            await self._threads.run(_hash_part, hashed, place.path, place.offset_bytes + begin, count)
        return hashed.hexdigest()

    async def _info(self, *arguments: str, limits: Sequence[str] = ()) -> ImageFacts:
        return read_image_info(json.loads(await self._run(INFO_S, "info", "--output=json", *arguments, limits=limits)))

    async def _snapshot(self, option: str, path: Path, name: str) -> None:
        image = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}}
        await self._run(WORK_S, "snapshot", option, name, f"json:{json.dumps(image)}")

    async def _run(self, timeout_s: float, *arguments: str, limits: Sequence[str] = ()) -> str:
        argv = [*limits, "qemu-img", *arguments]
        try:
            return await run(self._threads.reactor, argv, self._environ, timeout_s, name=f"qemu-img {arguments[0]}")
        except BackendFailed as error:
            raise BackendFailed(" ".join(error.text.split())) from error


def _hash_part(hashed: Any, path: Path, offset_bytes: int, count: int) -> None:
    with path.open("rb") as file:
        file.seek(offset_bytes)
        while count > 0 and (data := file.read(min(_READ_BYTES, count))):
            hashed.update(data)
            count -= len(data)


def _node(image: SourceImage) -> str:
    """An image as qemu-img opens it, whatever its path looks like; a base image only where it stands on one."""
    place = image.place
    is_device = place.path.is_block_device()
    file: dict[str, Any] = {"driver": "host_device" if is_device else "file", "filename": os.fspath(place.path)}
    if place.length_bytes is not None:
        file = {"driver": "raw", "offset": place.offset_bytes, "size": place.length_bytes, "file": file}
    node: dict[str, Any] = {"driver": image.format, "file": file}
    if image.format == "qcow2" and not image.is_clone:
        node["backing"] = None
    return f"json:{json.dumps(node)}"
