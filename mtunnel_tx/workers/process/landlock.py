"""Landlock: what a process may open and reach, for the rest of its life, whoever it runs as.

Source: the kernel's Documentation/userspace-api/landlock.rst. The numbers of the three calls are the same everywhere.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_MOST_FILE_RIGHTS = 16
_NET_SINCE, _SCOPE_SINCE = 4, 6
_NET_RIGHTS = 0b11
_SCOPES = 0b11
"""Abstract UNIX sockets, and signals to processes outside."""
_PR_SET_NO_NEW_PRIVS = 38
_RULESET = struct.Struct("=QQQ")
_PATH_RULE = struct.Struct("=Qi")


class LandlockRefused(Exception):
    """Nothing was restricted; the text says why."""


def allow_only_reading(places: Iterable[Path]) -> None:
    """From now on open nothing but what is below these places, and that to read; connect and bind no TCP socket.

    What is open already stays usable. Raises: LandlockRefused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)
    if version < 1:
        raise LandlockRefused(f"this kernel has no Landlock: {os.strerror(ctypes.get_errno())}")
    rules = _number(libc, _CREATE_RULESET, *_ruleset(version), 0)
    try:
        for place in places:
            with suppress(OSError):  # who cannot open it needs no right to
                _allow(libc, rules, place)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise LandlockRefused(os.strerror(ctypes.get_errno()))
        _number(libc, _RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _ruleset(version: int) -> tuple[bytes, int]:
    """What is restricted, and how many bytes of that a kernel of this version knows."""
    files = (1 << _FILE_RIGHTS.get(version, _MOST_FILE_RIGHTS)) - 1
    net = _NET_RIGHTS if version >= _NET_SINCE else 0
    scopes = _SCOPES if version >= _SCOPE_SINCE else 0
    size = 8 * (1 + (version >= _NET_SINCE) + (version >= _SCOPE_SINCE))
    return _RULESET.pack(files, net, scopes)[:size], size


def _allow(libc: ctypes.CDLL, rules: int, place: Path) -> None:
    number = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        is_folder = stat.S_ISDIR(os.fstat(number).st_mode)
        rights = _READ_FILE | _READ_DIR if is_folder else _READ_FILE
        _number(libc, _ADD_RULE, rules, _BENEATH, _PATH_RULE.pack(rights, number), 0)
    finally:
        os.close(number)


def _number(libc: ctypes.CDLL, call: int, *arguments: bytes | int) -> int:
    number = int(libc.syscall(call, *arguments))
    if number < 0:
        raise LandlockRefused(os.strerror(ctypes.get_errno()))
    return number
