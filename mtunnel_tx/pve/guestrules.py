"""What holds for a whole config: its drives, what must fit together, and what Proxmox fills in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from mtunnel_tx.checks import FormatError, boolean, clean, split_list
from mtunnel_tx.errors import InvalidParameters, Refusal, TunnelError, at_once, refusing
from mtunnel_tx.pve.drive import DRIVE_KEYS, Drive, format_drive, parse_drive
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestformats import BOOT, DROPPED_KEYS, INDEXED_KEYS, MEMORY
from mtunnel_tx.pve.nic import format_nic, make_mac, parse_nic

UNTOUCHED_KEYS = frozenset({"vmgenid", "meta"})
"""Keys that go into the new config as they came, beside what Proxmox calls options."""

MOST_MEMORY_MIB = 4 << 20
"""Proxmox's limit for a guest."""
MOST_PROCESSORS = 4096
"""The most that QEMU has for any machine."""
NIC_KEYS = tuple(f"net{index}" for index in range(INDEXED_KEYS["net"]))
_FORMAT_ENDING = re.compile(r".+\.(raw|qcow2|vmdk)")


def iter_drives(conf: GuestConfig) -> Iterator[tuple[str, Drive]]:
    """Every drive by its key, sorted, `unusedN` among them. Raises: TunnelError: one that cannot be parsed."""
    for key in sorted(conf.options.keys() & DRIVE_KEYS):
        try:
            yield key, parse_drive(key, conf.options[key])
        except FormatError as error:
            raise TunnelError(f"unable to parse value of '{key}'") from error


def iter_volumes(conf: GuestConfig) -> Iterator[tuple[str, str]]:
    """Every volume (or path) that the config names in a drive or as `vmstate`, by its key."""
    for key, drive in iter_drives(conf):
        if drive.has_volume:
            yield key, drive.volume
    if "vmstate" in conf.options:
        yield "vmstate", conf.options["vmstate"]


def iter_nics(conf: GuestConfig) -> Iterator[tuple[str, dict[str, str]]]:
    """Every network device by its key, in order. Raises: TunnelError: one that cannot be parsed."""
    for key in NIC_KEYS:
        if key in conf.options:
            try:
                yield key, parse_nic(conf.options[key])
            except FormatError as error:
                raise TunnelError(f"unable to parse value of '{key}'") from error


def is_template(conf: GuestConfig) -> bool:
    """Whether it is a template."""
    try:
        return boolean(conf.options.get("template", "0")) == "1"
    except FormatError:
        return False


def find_strays(conf: GuestConfig) -> Iterator[str]:
    """Yields: a sentence for each line of the current settings that is no setting."""
    for stray in conf.strays:
        yield f"line {stray.number} of its config is no setting: {clean(stray.text)}"


def boot_order(conf: GuestConfig) -> tuple[str, ...]:
    """The devices of `boot: order=…`; none where the old letters or nothing are there. Raises: FormatError."""
    return split_list(BOOT.parse(conf.options.get("boot", "")).get("order", ""))


def require_options(conf: GuestConfig) -> None:
    """Raises: TunnelError: `no options specified`: nothing is there that Proxmox could set."""
    if not conf.options.keys() - UNTOUCHED_KEYS - DROPPED_KEYS and not conf.description:
        raise TunnelError("no options specified")


def check_consistency(conf: GuestConfig, refused: Refusal = at_once) -> None:
    """Check what no single value shows.

    Args: refused: takes each thing that does not fit.
    Raises: TunnelError: more ballooned memory than memory, a boot device that is not there, an explicit format that
        is not the volume's, an ISO image that is no CD-ROM.
    """
    with refusing(refused, "balloon"):
        _check_balloon(conf)
    with refusing(refused, "memory"):
        _check_amounts(conf)
    for key, drive in iter_drives(conf):
        with refusing(refused, key):
            _check_drive(key, drive)
    with refusing(refused, "boot"):
        _check_boot(conf)


def _check_boot(conf: GuestConfig) -> None:
    try:
        devices = boot_order(conf)
    except FormatError as error:
        raise TunnelError("unable to parse value of 'boot'") from error
    for device in devices:
        if device not in conf.options:
            raise TunnelError(f"invalid bootorder: device '{clean(device)}' does not exist'")


def _check_balloon(conf: GuestConfig) -> None:
    try:
        memory_mib = int(MEMORY.parse(conf.options.get("memory", "512"))["current"])
        balloon_mib = int(conf.options.get("balloon", "0"))
    except ValueError as error:
        raise TunnelError("unable to parse value of 'memory'") from error
    if balloon_mib > memory_mib:
        raise TunnelError("balloon value too large (must be smaller than assigned memory)")


def _check_amounts(conf: GuestConfig) -> None:
    """Refuse what no host has, before anything is made for it."""
    try:
        memory_mib = int(MEMORY.parse(conf.options.get("memory", "512"))["current"])
        processors = int(conf.options.get("sockets", "1")) * int(conf.options.get("cores", "1"))
    except ValueError as error:
        raise TunnelError("unable to parse value of 'cores'") from error
    if memory_mib > MOST_MEMORY_MIB:
        raise TunnelError(f"memory: there are {MOST_MEMORY_MIB} MiB at most")
    if processors > MOST_PROCESSORS:
        raise TunnelError(f"cores: there are {MOST_PROCESSORS} processors at most")


def _check_drive(key: str, drive: Drive) -> None:
    storage, _, name = drive.volume.partition(":")
    if not storage or drive.volume.startswith("/"):
        return
    if name.startswith("iso/") and not drive.is_cdrom:
        raise InvalidParameters({key: "explicit 'media=cdrom' is required for iso images"})
    ending = _FORMAT_ENDING.fullmatch(name)
    given = drive.options.get("format")
    if ending and given is not None and given != ending[1]:
        raise TunnelError(
            f"drive '{key}' - volume '{drive.volume}' - 'format={given}' option different"
            f" from storage format '{ending[1]}'"
        )


def fill_macs(conf: GuestConfig, random_bytes: Callable[[int], bytes]) -> GuestConfig:
    """A copy whose network devices are in canonical form; those without a MAC address have a random one.

    Args: random_bytes: gives that many bytes.
    """
    filled = conf.copy()
    for key, nic in iter_nics(conf):
        filled.options[key] = format_nic({"macaddr": make_mac(random_bytes), **nic})
    return filled


def set_sizes(conf: GuestConfig, sizes_bytes: Mapping[str, int | None]) -> GuestConfig:
    """A copy whose drives are in canonical form and name the size of their volume.

    Args: sizes_bytes: drive key to size; a drive that is not in it, and one without volume, names none.
    """
    sized = conf.copy()
    for key, drive in iter_drives(conf):
        if not key.startswith("unused"):
            sized.options[key] = format_drive(_sized(drive, sizes_bytes.get(key)))
    return sized


def _sized(drive: Drive, size_bytes: int | None) -> Drive:
    if drive.has_volume:
        return drive.with_size(size_bytes)
    return Drive(drive.volume, {"media": "cdrom", **drive.options}).with_size(None)


def update_line(vmid: int, conf: GuestConfig) -> str:
    """The line of the task log, in Proxmox's words: `update VM 100: -cores 1 -memory 512 …`."""
    shown = {key: value for key, value in conf.options.items() if key not in UNTOUCHED_KEYS | DROPPED_KEYS}
    if conf.description:
        shown["description"] = conf.description.removesuffix("\n")
    if "cipassword" in shown:
        shown["cipassword"] = "<hidden>"
    return f"update VM {vmid}: " + " ".join(f"-{key} {clean(shown[key])}" for key in sorted(shown))
