"""A VM's config as the target gets it: other volumes, other bridges, everything else as it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath

from mtunnel_tx.checks import FormatError
from mtunnel_tx.pve.drive import is_drive_key, parse_drive
from mtunnel_tx.pve.guestconf import GuestConfig, format_guest_config

_SURROGATES = 0xDC00
"""What Python adds to a byte that is no UTF-8 (PEP 383)."""
_LONE = re.compile("[\udc80-\udcff]")
_NET = re.compile(r"net[0-9]+")

Rename = Callable[[str], str]
"""A name here to its name there."""


def find_bridges(conf: GuestConfig) -> Iterator[str]:
    """The bridges that the network cards of a VM are on, each once."""
    return iter(dict.fromkeys(name for _, name in iter_bridges(conf) if name))


def iter_bridges(conf: GuestConfig) -> Iterator[tuple[str, str | None]]:
    """Each network card by its key, and its bridge, if it has one."""
    return ((key, _bridge(value)) for key, value in sorted(conf.options.items()) if _NET.fullmatch(key))


def _bridge(net: str) -> str | None:
    return next((part.removeprefix("bridge=") for part in net.split(",") if part.startswith("bridge=")), None)


def rewrite_config(conf: GuestConfig, volids: Mapping[str, str], bridge: Rename, storage: Rename) -> str:
    """Returns: the text of `config`.

    Args: volids: volume ids here to those there, of every drive that holds a volume. bridge, storage: where each
        bridge, and the storage for the state of a suspended VM, is called otherwise there.
    """
    sent = conf.copy()
    sent.options.pop("lock", None)
    for key, value in sent.options.items():
        if is_drive_key(key):
            sent.options[key] = _rewrite_drive(key, value, volids)
        elif _NET.fullmatch(key):
            sent.options[key] = ",".join(_rewrite_part(part, bridge) for part in value.split(","))
        elif key == "vmstatestorage":
            sent.options[key] = storage(value)
    return format_guest_config(sent)


def sent_firewall(text: str | None) -> str | None:
    """Firewall rules as a target can read them. Args: text: bytes that are no UTF-8 stand in it as lone surrogates.

    They are letters of a comment that an old editor wrote as Latin-1; JSON has no room for single bytes.
    """
    return None if text is None else _LONE.sub(lambda found: chr(ord(found[0]) - _SURROGATES), text)


def _rewrite_drive(key: str, value: str, volids: Mapping[str, str]) -> str:
    try:
        drive = parse_drive(key, value)
    except FormatError:
        return value  # it stands in the way of a move, and only the look before that comes here
    if not drive.has_volume:
        return value
    volume, options = volids[drive.volume], dict(drive.options)
    if _format(volume) != _format(drive.volume):
        options.pop("format", None)
    return str(replace(drive, volume=volume, options=options))


def _format(volume: str) -> str:
    return PurePath(volume).suffix or ".raw"


def _rewrite_part(part: str, bridge: Rename) -> str:
    return f"bridge={bridge(part.removeprefix('bridge='))}" if part.startswith("bridge=") else part
