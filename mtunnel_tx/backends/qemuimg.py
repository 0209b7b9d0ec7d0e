"""ports.Images by `qemu-img`: every format is named, and no file is followed that an image names by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtunnel_tx.backends.child import run
from mtunnel_tx.backends.files import ReactorThreads, make_folder
from mtunnel_tx.backends.foreignimages import look_at_image
from mtunnel_tx.errors import BackendFailed, BadRequest
from mtunnel_tx.ports.images import SourceImage

INFO_S = 60.0
WORK_S = 7 * 24 * 3600.0
_INFO_LIMITS = ("prlimit", "--as=2147483648", "--cpu=60", "--")


class QemuImages:
    """ports.Images.

    Args: environ: the children's whole environment, with the word that they are known by.
    """

    def __init__(self, threads: ReactorThreads, environ: Mapping[str, str]) -> None:
        self._threads = threads
        self._environ = dict(environ)

    async def look(
        self, path: Path, format: str | None, *, offset_bytes: int = 0, length_bytes: int | None = None
    ) -> SourceImage:
        """See ports.Images."""
        seen = await self._threads.run(look_at_image, path, format, offset_bytes, length_bytes)
        if seen.size_bytes:
            return seen
        info = json.loads(await self._run(INFO_S, "info", "--output=json", _node(seen), limits=_INFO_LIMITS))
        if info.get("encrypted") or "backing-filename" in info:
            raise BadRequest(f"{path}: it is encrypted, or needs another image")
        return SourceImage(
            path=path,
            format=seen.format,
            size_bytes=int(info["virtual-size"]),
            offset_bytes=offset_bytes,
            length_bytes=length_bytes,
        )

    async def convert(self, source: SourceImage, target: Path, format: str) -> None:
        """See ports.Images."""
        await self._run(WORK_S, "convert", "-n", "--target-is-zero", "-O", format, _node(source), str(target))

    async def resize(self, path: Path, format: str, size_bytes: int) -> None:
        """See ports.Images."""
        await self._run(WORK_S, "resize", "-f", format, "--", str(path), str(size_bytes))

    async def snapshots(self, path: Path) -> list[str]:
        """See ports.Images."""
        info = json.loads(await self._run(INFO_S, "info", "-U", "-f", "qcow2", "--output=json", "--", str(path)))
        return [str(snapshot["name"]) for snapshot in info.get("snapshots", [])]

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

    async def _snapshot(self, option: str, path: Path, name: str) -> None:
        image = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}}
        await self._run(WORK_S, "snapshot", option, name, f"json:{json.dumps(image)}")

    async def _run(self, timeout_s: float, *arguments: str, limits: Sequence[str] = ()) -> str:
        argv = [*limits, "qemu-img", *arguments]
        try:
            return await run(self._threads.reactor, argv, self._environ, timeout_s, name=f"qemu-img {arguments[0]}")
        except BackendFailed as error:
            raise BackendFailed(" ".join(error.text.split())) from error


def _node(image: SourceImage) -> str:
    """An image as qemu-img opens it, whatever its path looks like; a base image only where it stands on one."""
    is_device = image.path.is_block_device()
    file: dict[str, Any] = {"driver": "host_device" if is_device else "file", "filename": os.fspath(image.path)}
    if image.offset_bytes or image.length_bytes is not None:
        part = {"offset": image.offset_bytes, "size": image.length_bytes}
        file = {"driver": "raw", **{key: value for key, value in part.items() if value is not None}, "file": file}
    node: dict[str, Any] = {"driver": image.format, "file": file}
    if image.format == "qcow2" and not image.is_clone:
        node["backing"] = None
    return f"json:{json.dumps(node)}"
