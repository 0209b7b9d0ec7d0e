"""A VM that is to be made: what the command line, an OVF or a libvirt definition says of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from mtunnel_tx.checks import FormatError, clean
from mtunnel_tx.errors import BadRequest
from mtunnel_tx.pve.guestformats import check_value

DEFAULTS = {"memory": "2048", "cores": "1", "sockets": "1", "numa": "0", "ostype": "l26"}
EFI_DISK = "efidisk0"
EFI_OPTIONS: Mapping[str, str] = {"efitype": "4m"}
_MEMORY = re.compile(r"([0-9]{1,9})([MG]?)", re.IGNORECASE)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9]+")
_LONGEST_NAME = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class BlueprintDisk:
    """A disk of it.

    `key`: the drive, `scsi0`. `size_bytes`: None: as large as the image. `image`: the file with its content, a path or
    a name inside the archive; empty: an empty disk. `format`: the image's; None: what it says itself. `options`: of the
    drive; None: those that suit its bus. `suffix`: its volume's name's end, where that is no `disk-N`. `volume_format`:
    None: that of the VM's disks.
    """

    key: str
    size_bytes: int | None = None
    image: str = ""
    format: str | None = None
    options: Mapping[str, str] | None = None
    suffix: str = ""
    volume_format: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """A whole VM.

    `options`: config keys but for its disks. `isos`: drive to a file or volume. `secure_boot`: a new EFI disk has the
    keys for it. `notes`: what was not understood, or is
    done in another way.
    """

    options: Mapping[str, str]
    disks: tuple[BlueprintDisk, ...] = ()
    isos: Mapping[str, str] = field(default_factory=dict)
    secure_boot: bool = False
    notes: tuple[str, ...] = ()


def read_memory(text: str) -> str:
    """`2G`, `2048M`, or a number of MiB, as the config has it. Raises: BadRequest."""
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise BadRequest(f"'{clean(text)}' is no amount of memory such as 2G or 512M")
    return checked("memory", str(int(match[1]) * (1024 if match[2] in "gG" and match[2] else 1)))


def checked(key: str, value: str) -> str:
    """A value as the config keeps it. Raises: BadRequest: `KEY: REASON`."""
    try:
        return check_value(key, value)
    except FormatError as error:
        reason = clean(" ".join(str(error).split()))
        raise BadRequest(f"{clean(key)}: {reason}") from error


def name_from(text: str) -> str:
    """A guest's name made of any text: a DNS name, `vm` where nothing is left."""
    return _NOT_IN_NAMES.sub("-", text).strip("-")[:_LONGEST_NAME].strip("-") or "vm"


def boot_order(*keys: str) -> str:
    """The value of `boot` for these devices, the first one first."""
    return f"order={';'.join(keys)}" if keys else ""
