"""Room on the file system that is kept for the journal: a file that gives way where the disk is full.

A record decides who owns a virtual machine, and images that come in may have filled the disk that it is written to.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from twisted.logger import Logger

log = Logger()
RESERVE_BYTES = 1 << 20
"""Some hundred blocks; a record takes one at most."""
STEP_BYTES = 64 << 10
SHARE = 16
"""Nothing is kept on a file system with less than so many times as much room."""
_FULL = (errno.ENOSPC, errno.EDQUOT)

T = TypeVar("T")
P = ParamSpec("P")


class Reserve:
    """The file, `STATE/reserve`. All of it blocks: call it in threads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self) -> None:
        """Take the room, as far as the file system can promise it and has plenty."""
        with suppress(OSError):
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                room = os.fstatvfs(fd)
                if room.f_bavail * room.f_frsize >= SHARE * RESERVE_BYTES:
                    os.posix_fallocate(fd, 0, RESERVE_BYTES)
            finally:
                os.close(fd)

    def write(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what writes, again and again while the disk is full and there is room to give. Raises: what it raises."""
        while True:
            try:
                return call(*args, **kwargs)
            except OSError as error:
                if error.errno not in _FULL or not self._give_way():
                    raise

    def _give_way(self) -> bool:
        """Free some of the room. Returns: there was some."""
        try:
            size_bytes = self._path.lstat().st_size
            if size_bytes == 0:
                return False
            os.truncate(self._path, max(0, size_bytes - STEP_BYTES))
        except OSError:
            return False
        log.warn("{path}: the disk is full; the journal takes room that was kept for it", path=str(self._path))
        return True
