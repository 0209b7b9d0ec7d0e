"""What a guest boots from, and in which order: `boot: order=…`, or the letters and `bootdisk` of old."""

from __future__ import annotations

from mtunnel_tx.checks import FormatError
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.drive import drive_interface
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestformats import BOOT
from mtunnel_tx.pve.guestrules import NIC_KEYS, boot_order, iter_drives

FIRST = 100
_NO_BOOTING = frozenset({"efidisk", "tpmstate", "unused"})


def boot_indexes(conf: GuestConfig) -> dict[str, int]:
    """Devices to QEMU's boot indexes; the least is tried first.

    Raises: TunnelError: `boot: REASON`.
    """
    try:
        boot = BOOT.parse(conf.options.get("boot", ""))
        order = boot_order(conf)
    except FormatError as error:
        raise TunnelError(f"boot: {str(error).strip()}") from error
    if "order" in boot or ("boot" in conf.options and "legacy" not in boot):
        return {key: FIRST + number for number, key in enumerate(dict.fromkeys(order)) if key in conf.options}
    return _from_letters(conf, boot.get("legacy", "cdn"))


def _from_letters(conf: GuestConfig, letters: str) -> dict[str, int]:
    """`c` is the boot disk, `d` CD-ROM drives, `n` network cards; every letter has a hundred of its own."""
    start = {letter: FIRST * number for number, letter in enumerate(dict.fromkeys(letters), 1)}
    drives = [(key, drive) for key, drive in iter_drives(conf) if drive_interface(key) not in _NO_BOOTING]
    disks = [key for key, drive in drives if not drive.is_cdrom]
    boot_disk = conf.options.get("bootdisk", disks[0] if disks else "")
    kinds = {
        "c": [(number, key) for number, key in enumerate(disks) if key == boot_disk],
        "d": enumerate(key for key, drive in drives if drive.is_cdrom),
        "n": enumerate(key for key in NIC_KEYS if key in conf.options),
    }
    return {key: start[letter] + number for letter, keys in kinds.items() if letter in start for number, key in keys}
