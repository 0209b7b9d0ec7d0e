"""Keys that somebody wants left out of the config that is sent (`--drop`), and those that cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mtunnel_tx.checks import clean
from mtunnel_tx.pve.drive import is_drive_key
from mtunnel_tx.pve.guestconf import GuestConfig

_IDENTITY = frozenset({"vmgenid", "smbios1", "meta", "name"})
_MACHINE = frozenset(
    {"arch", "bios", "boot", "bootdisk", "cores", "cpu", "kvm", "machine", "memory", "ostype", "scsihw", "sockets"}
)
_STATE = frozenset({"lock", "moved", "parent", "snapstate", "snaptime", "template"})
_OF_THE_HOST = frozenset(
    {"affinity", "autostart", "cpulimit", "cpuunits", "description", "hookscript", "hotplug", "keyboard"}
    | {"migrate_downtime", "migrate_speed", "onboot", "protection", "shares", "startup", "tags", "vmstatestorage"}
)
"""Keys of which a guest that runs sees nothing."""
_CLOUD = re.compile(r"ci[a-z]+|sshkeys|nameserver|searchdomain|ipconfig[0-9]+")


def find_undroppable(conf: GuestConfig, keys: Sequence[str], *, running: bool) -> Iterator[tuple[str, str]]:
    """Yields: each key that cannot be left out, and why, as a sentence."""
    for key in keys:
        reason = _why_not(conf, key, running=running)
        if reason is not None:
            yield key, f"--drop {clean(key)}: {reason}"


def _why_not(conf: GuestConfig, key: str, *, running: bool) -> str | None:
    if key not in conf.options and not (key == "description" and conf.description):
        return "the VM's config has no such key"
    if is_drive_key(key) or key == "vmstate":
        return "it names a volume, which would be lost; detach it first"
    if key in _STATE:
        return "it says what may be done with the VM now"
    if key in _IDENTITY:
        return "by it the VM is known to its guest, and to you"
    if key in _MACHINE:
        return "without it the VM would be another machine"
    if running and key not in _OF_THE_HOST and not _CLOUD.fullmatch(key):
        return "a VM that runs has what it says; shut it down first"
    return None


def without(conf: GuestConfig, keys: Sequence[str]) -> GuestConfig:
    """The config as it is sent."""
    left = conf.copy()
    for key in keys:
        left.options.pop(key, None)
    if "description" in keys:
        left.description = ""
    return left
