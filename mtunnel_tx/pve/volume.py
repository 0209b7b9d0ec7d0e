"""Volume ids, and the volume names of storages that have files (formats.md section 5)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mtunnel_tx.checks import CONTROL_CLASS, VOLUME_ID
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.storagecfg import StorageEntry

# No leading zeros, or two names would lead to one file.
_VMID = r"[1-9][0-9]{0,8}"
_WORD = rf"[^\s{CONTROL_CLASS}]+"
_VOLUME_ID = re.compile(VOLUME_ID)
_PART = rf"[^/\s{CONTROL_CLASS}]+"
# The parts exclude `/`, so that the expression cannot backtrack for ever on `1/1/1/…`.
_CLONE = re.compile(rf"({_VMID})/({_PART})/({_VMID})/({_WORD})")
_IMAGE = re.compile(rf"({_VMID})/({_WORD})")
_FILE_NAME = re.compile(rf"{_PART}\.(raw|qcow2|vmdk|subvol)")
_OTHER = re.compile(rf"(iso|vztmpl|backup|snippets|import|rootdir)/([^/{CONTROL_CLASS}]+)")
_BACKUP_OWNER = re.compile(rf"vzdump-(?:openvz|lxc|qemu)-({_VMID})-.+")
_ENDINGS = {
    "iso": re.compile(r"(?i:.+\.(?:iso|img))"),
    "vztmpl": re.compile(r".+\.tar\.(?:gz|xz|zst|bz2)"),
    "backup": re.compile(r".+\.(?:tgz|(?:tar|vma)(?:\.(?:gz|lzo|zst|bz2))?)"),
    "snippets": re.compile(r"(?!\.\.?$).+"),
    "import": re.compile(r".+\.(?:ova|ovf|qcow2|raw|vmdk)"),
    "rootdir": re.compile(_VMID),
}


_OWNER = re.compile(rf"(?:vm|base|subvol|basevol)-({_VMID})-")


@dataclass(frozen=True, slots=True)
class VolumeId:
    """`storage:name`."""

    storage: str
    name: str

    def __str__(self) -> str:
        return f"{self.storage}:{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirVolume:
    """A volume of a storage with files.

    `content` is `images`, `iso`, `vztmpl`, `backup`, `snippets`, `import` or `rootdir`; `name` the file name; `base`
    is `BASEVMID/BASENAME` for a linked clone.
    """

    content: str
    name: str
    vmid: int | None
    base: str | None
    format: str

    @property
    def is_base(self) -> bool:
        """Whether linked clones may stand on it."""
        return self.content == "images" and self.name.startswith("base-")

    def file(self, entry: StorageEntry) -> str | None:
        """Its path in the file system; None where the storage has no files."""
        folder = entry.folder(self.content)
        if folder is None:
            return None
        return f"{folder}/{self.vmid}/{self.name}" if self.content == "images" else f"{folder}/{self.name}"


def parse_volume_id(text: str) -> VolumeId:
    """Raises: TunnelError: `unable to parse volume ID 'X'`."""
    match = _VOLUME_ID.fullmatch(text)
    if match is None:
        raise TunnelError(f"unable to parse volume ID '{text}'")
    return VolumeId(match[1], match[2])


def parse_dir_volume(name: str) -> DirVolume:
    """Read the part behind the colon.

    Raises: TunnelError: `unable to parse volume filename 'X'` for an image whose file name is not one (a `/` in it,
        no known ending), `unable to parse directory volume name 'X'` for the rest.
    """
    if match := _CLONE.fullmatch(name):
        _file_format(match[2])
        base = f"{match[1]}/{match[2]}"
        return DirVolume(content="images", name=match[4], vmid=int(match[3]), base=base, format=_file_format(match[4]))
    if match := _IMAGE.fullmatch(name):
        return DirVolume(content="images", name=match[2], vmid=int(match[1]), base=None, format=_file_format(match[2]))
    match = _OTHER.fullmatch(name)
    if match is None or not _ENDINGS[match[1]].fullmatch(match[2]):
        raise TunnelError(f"unable to parse directory volume name '{name}'")
    return _other_volume(match[1], match[2])


@dataclass(frozen=True, slots=True)
class VolumeOwner:
    """The owner of a volume, as its name says.

    `content`: the kind of content (`images`, `iso`, …). `vmid`: the guest that it belongs to; None: no guest. `named`:
    all VMIDs in the name, including that of a base volume.
    """

    content: str
    vmid: int | None
    named: frozenset[int]

    @property
    def guests(self) -> frozenset[int]:
        """The owner and all guests in the name."""
        return self.named | ({self.vmid} if self.vmid is not None else set())

    def is_foreign(self, vmid: int) -> bool:
        """Whether it is an image of another guest, or a clone of another guest's image."""
        return self.content in ("images", "rootdir") and (self.vmid != vmid or bool(self.named - {vmid}))


def find_owner(entry: StorageEntry, name: str) -> VolumeOwner:
    """Read the owner from a volume's name (behind the colon). Raises: TunnelError: the storage has no such names."""
    named = [int(found[1]) for part in name.split("/") if (found := _OWNER.match(part))]
    if not entry.has_files:
        last = _OWNER.match(name.rpartition("/")[2])
        return VolumeOwner("images", int(last[1]) if last else None, frozenset(named))
    volume = parse_dir_volume(name)
    if volume.content != "images":
        return VolumeOwner(volume.content, volume.vmid, frozenset())
    named += [int(volume.base.partition("/")[0])] if volume.base else []
    return VolumeOwner(volume.content, volume.vmid, frozenset(named))


def _file_format(name: str) -> str:
    match = _FILE_NAME.fullmatch(name)
    if match is None:
        raise TunnelError(f"unable to parse volume filename '{name}'")
    return match[1]


def _other_volume(content: str, name: str) -> DirVolume:
    owner = {"backup": _BACKUP_OWNER, "rootdir": re.compile(f"({_VMID})")}.get(content)
    match = owner.fullmatch(name) if owner else None
    return DirVolume(
        content=content,
        name=name,
        vmid=int(match[1]) if match else None,
        base=None,
        format={"import": name.rpartition(".")[2], "rootdir": "subvol"}.get(content, "raw"),
    )


def next_disk_name(vmid: int, taken: Iterable[str], format: str) -> str:
    """`vm-VMID-disk-N.FORMAT` with the first N that is free in every format, bases included."""
    pattern = re.compile(rf"(?:vm|base|subvol)-{vmid}-disk-([0-9]{{1,9}})(?![0-9]).*")
    used = {int(match[1]) for match in map(pattern.fullmatch, taken) if match}
    number = next(number for number in range(len(used) + 1) if number not in used)
    return f"vm-{vmid}-disk-{number}.{format}"
