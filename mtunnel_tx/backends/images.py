"""Image files of the host: what their headers say, and whether they refer to other files."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThreadPool

from mtunnel_tx.backends.child import run
from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.pve.imagefile import ImageFacts, inspect_image, read_image_info

_INFO_S = 60.0
_LIMITS = ("prlimit", "--as=2147483648", "--cpu=60", "--")
_WITH_HEADER = ("qcow2", "vmdk")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """A volume that is a file.

    `base`: the path of the base volume that its name says it stands on, the only backing file it may have.
    `in_guest_folder`: its folder holds the images of one guest, and may be no symbolic link.
    """

    path: str
    format: str
    base: str | None = None
    in_guest_folder: bool = False


def unusable(format: str, reason: str) -> ImageFacts:
    """An image of which nothing is known but why it cannot be used alone."""
    return ImageFacts(format=format, size_bytes=0, elsewhere=reason)


async def find_facts(reactor: Any, file: ImageFile, env: Mapping[str, str]) -> ImageFacts:
    """What an image says; `elsewhere`: why QEMU would open another file with it, or in its place.

    Links and the header are read first, because `qemu-img info`, which decides, opens the files that an image names.
    Raises: BackendFailed, TimedOut.
    """
    try:
        facts: ImageFacts = await deferToThreadPool(reactor, reactor.getThreadPool(), _look, file)
    except TunnelError as error:
        return unusable(file.format, error.text)
    if facts.elsewhere is not None or file.format not in _WITH_HEADER:
        return facts
    argv = [*_LIMITS, "qemu-img", "info", "-U", "-f", file.format, "--output=json", "--", file.path]
    output = await run(reactor, argv, env, _INFO_S, name="qemu-img info")
    return _with_base(file, read_image_info(json.loads(output[output.find("{") :])))


async def measure_written(reactor: Any, path: str, format: str, env: Mapping[str, str]) -> int | None:
    """How large a new qcow2 image of what an image shows would be; None: its format has no map.

    To be asked of images only that stand alone (`find_facts`). Raises: BackendFailed, TimedOut.
    """
    if format not in _WITH_HEADER:
        return None
    argv = [*_LIMITS, "qemu-img", "measure", "-U", "-f", format, "-O", "qcow2", "--output=json", path]
    output = await run(reactor, argv, env, _INFO_S, name="qemu-img measure")
    required: int = json.loads(output[output.find("{") :])["required"]
    return required


def _look(file: ImageFile) -> ImageFacts:
    """Blocks, and opens that file alone. Raises: BackendFailed, ImageRefused."""
    with _held(file) as held:
        status = os.fstat(held)
        reason = _wrong_kind(status)
        if reason is not None or file.format not in _WITH_HEADER:
            return ImageFacts(format=file.format, size_bytes=status.st_size, elsewhere=reason)
        with open(f"/proc/self/fd/{held}", "rb", buffering=0) as image:  # noqa: PTH123 - what is held, no other
            facts = inspect_image(file.format, partial(_read, image.fileno()), status.st_size)
    return _with_base(file, facts)


@contextmanager
def _held(file: ImageFile) -> Iterator[int]:
    """Open the file for `fstat` only (O_PATH): a link is seen as a link, and a FIFO or a device is not touched."""
    path = Path(file.path)
    flags = os.O_PATH | os.O_NOFOLLOW
    try:
        with ExitStack() as opened:
            folder = os.open(path.parent, os.O_DIRECTORY | (flags if file.in_guest_folder else os.O_PATH))
            opened.callback(os.close, folder)
            held = os.open(path.name, flags, dir_fd=folder)
    except NotADirectoryError as error:
        raise BackendFailed(f"folder '{path.parent}' is a symbolic link, or no folder") from error
    except OSError as error:
        raise BackendFailed(f"unable to open '{path}': {error.strerror}") from error
    try:
        yield held
    finally:
        os.close(held)


def _wrong_kind(status: os.stat_result) -> str | None:
    if stat.S_ISLNK(status.st_mode):
        return "volume is a symbolic link"
    if not stat.S_ISREG(status.st_mode):
        return "volume is no regular file"
    return "volume is a file with another name beside (a hard link)" if status.st_nlink > 1 else None


def _read(fd: int, offset: int, count: int) -> bytes:
    return os.pread(fd, count, offset)


def _with_base(file: ImageFile, facts: ImageFacts) -> ImageFacts:
    """The same, where the backing file is the base volume that the name says."""
    if file.base and facts.backing and _backing_path(file, facts.backing) == os.path.normpath(file.base):
        return replace(facts, elsewhere=None)
    return facts


def _backing_path(file: ImageFile, backing: str) -> str:
    return os.path.normpath(Path(file.path).parent / backing)
