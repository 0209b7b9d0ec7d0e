"""What a new VM may have besides disks: UEFI with its variables, a TPM, a cloud-init drive. Pure but for one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from mtunnel_tx.checks import FormatError, clean
from mtunnel_tx.errors import BadRequest
from mtunnel_tx.guests.blueprint import Blueprint, BlueprintDisk, checked
from mtunnel_tx.pve.property import parse_property

TPM = "tpmstate0"
_STATE_BYTES = 4 << 20
_CLOUD_DRIVES = ("ide2", "ide0", "ide3", "ide1", "sata5")
_SCSI_DRIVES = tuple(f"scsi{index}" for index in range(1, 31))
_LONGEST_KEYS = 1 << 16
_CLOUD_WORDS = ("user", "sshkeys", "password", "ip", "gw", "ip6", "gw6", "nameserver")


def with_tpm(blueprint: Blueprint) -> Blueprint:
    """The same VM with a TPM 2.0."""
    disk = BlueprintDisk(key=TPM, size_bytes=_STATE_BYTES, options={"version": "v2.0"}, volume_format="raw")
    return replace(blueprint, disks=(*blueprint.disks, disk))


def with_cloud_init(blueprint: Blueprint, text: str) -> Blueprint:
    """The same VM with a cloud-init drive, which is filled at each start.

    Args: text: `user=me,sshkeys=FILE,password=FILE,ip=dhcp`: the guest's user, a file with public keys, one with a
        password or its hash, the address of its first network card. Raises: BadRequest: a word is not known, a file
        cannot be read, or no drive is free.
    """
    given = _read_words(text)
    options = {**blueprint.options, **_options(given)}
    taken = {*options, *blueprint.isos, *(disk.key for disk in blueprint.disks)}
    # The kernels of cloud images have drivers for what they start from, and not always for IDE.
    drives = _SCSI_DRIVES if any(key.startswith("scsi") for key in taken - {"scsihw"}) else _CLOUD_DRIVES
    key = next((key for key in drives if key not in taken), None)
    if key is None:
        raise BadRequest("there is no free drive for cloud-init")
    drive = BlueprintDisk(key=key, size_bytes=_STATE_BYTES, options={"media": "cdrom"}, suffix="cloudinit")
    return replace(blueprint, options=options, disks=(*blueprint.disks, drive))


def _read_words(text: str) -> dict[str, str]:
    try:
        given = parse_property(text, "user")
    except FormatError as error:
        raise BadRequest(f"cloud-init: {error}") from error
    if unknown := given.keys() - set(_CLOUD_WORDS):
        raise BadRequest(f"cloud-init: '{clean(min(unknown))}' is none of {', '.join(_CLOUD_WORDS)}")
    return given


def _options(given: Mapping[str, str]) -> dict[str, str]:
    address = ",".join(f"{word}={given[word]}" for word in ("ip", "gw", "ip6", "gw6") if word in given)
    values = {
        "ciuser": given.get("user"),
        "sshkeys": _read_keys(Path(given["sshkeys"])) if "sshkeys" in given else None,
        "cipassword": _read_password(Path(given["password"])) if "password" in given else None,
        "ipconfig0": address or "ip=dhcp",
        "nameserver": given.get("nameserver"),
    }
    return {key: checked(key, value) for key, value in values.items() if value is not None}


def _read_keys(file: Path) -> str:
    """Public keys, one a line, as the config has them."""
    text = _read(file, "public keys")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines or len(text) > _LONGEST_KEYS or any("PRIVATE KEY" in line for line in lines):
        raise BadRequest(f"{file}: holds no public keys")
    return quote("\n".join(lines), safe="-_.!~*'()")


def _read_password(file: Path) -> str:
    """The first line, as cloud-init takes it."""
    line = _read(file, "a password").partition("\n")[0].strip()
    if not line:
        raise BadRequest(f"{file}: holds no password")
    return line


def _read(file: Path, what: str) -> str:
    try:
        return file.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"holds no text of {what}"
        raise BadRequest(f"{file}: {reason}") from error
