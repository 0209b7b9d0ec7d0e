"""Image files of the host: what their headers say, and whether they refer to other files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from twisted.internet.threads import deferToThreadPool

from mtunnel_tx.backends.child import run
from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.pve.imagefile import ImageFacts, inspect_image

_INFO_S = 60.0
_LIMITS = ("prlimit", "--as=2147483648", "--cpu=60", "--")


def read_image(path: str, format: str) -> ImageFacts:
    """Read an image's header. Blocks; opens no other file. Raises: BackendFailed, ImageRefused."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise BackendFailed(f"unable to open '{path}': {error.strerror}") from error
    try:
        length = os.lseek(fd, 0, os.SEEK_END)
        return inspect_image(format, lambda offset, count: os.pread(fd, count, offset), length)
    finally:
        os.close(fd)


async def find_reference(reactor: Any, path: str, format: str, env: Mapping[str, str]) -> str | None:
    """Why an image needs another file; None: it needs none.

    The header is read first, because `qemu-img info`, which decides, opens the files that an image refers to.
    Raises: BackendFailed, TimedOut.
    """
    if format not in ("qcow2", "vmdk"):
        return None
    try:
        facts = await deferToThreadPool(reactor, reactor.getThreadPool(), read_image, path, format)
    except TunnelError as error:
        return error.text
    if facts.elsewhere:
        return facts.elsewhere
    argv = [*_LIMITS, "qemu-img", "info", "-U", "-f", format, "--output=json", "--", path]
    output = await run(reactor, argv, env, _INFO_S, name="qemu-img info")
    return _reference(json.loads(output[output.find("{") :]))


def _reference(info: Mapping[str, Any]) -> str | None:
    for key in ("full-backing-filename", "backing-filename"):
        if key in info:
            return "image has a backing file"
    details = info.get("format-specific", {}).get("data", {})
    return "image has an external data file" if "data-file" in details else None
