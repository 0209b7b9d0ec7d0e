"""An OVA, which is a tar archive, or an OVF with its files beside it: where each file is, and the manifest."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BadRequest, NotFound
from mtunnel_tx.guests.xmltree import LONGEST_BYTES
from mtunnel_tx.ports.images import ImagePlace

_MOST_MEMBERS = 1000
_NAME = re.compile(r"(?!\.\.?$)[^/\x00-\x1f]+")
_MANIFEST_LINE = re.compile(r"(SHA1|SHA256|SHA512) ?\(([^()\n]+)\) ?= ?([0-9a-fA-F]{40,128})")


@dataclass(frozen=True, slots=True)
class Appliance:
    """The files of an appliance by their names."""

    path: Path
    places: Mapping[str, ImagePlace]

    def place(self, name: str) -> ImagePlace:
        """Raises: NotFound: it has no such file."""
        if name not in self.places:
            raise NotFound(f"{self.path}: there is no '{clean(name)}'")
        return self.places[name]

    def read(self, ending: str) -> bytes | None:
        """The content of the one file with this ending; None: there is none.

        Raises: BadRequest: there are several, or it is too long.
        """
        names = [name for name in self.places if name.lower().endswith(ending)]
        if len(names) > 1:
            raise BadRequest(f"{self.path}: has several files '*{ending}'")
        return _read(self.places[names[0]]) if names else None

    def digests(self) -> dict[str, tuple[str, str]]:
        """What the manifest says: file name to algorithm and hash in hex; empty where there is no manifest."""
        text = (self.read(".mf") or b"").decode("utf-8", "replace")
        found = (_MANIFEST_LINE.fullmatch(line.strip()) for line in text.splitlines() if line.strip())
        return {match[2]: (match[1].lower(), match[3].lower()) for match in found if match}


def open_appliance(path: Path) -> Appliance:
    """Look into an OVA, or beside an OVF; blocks. Raises: BadRequest: it is none; OSError."""
    if path.suffix.lower() == ".ovf":
        beside = {file.name: ImagePlace(path=file) for file in path.parent.iterdir() if _is_beside(file, path)}
        return Appliance(path, beside)
    try:
        with tarfile.open(path, "r:") as archive:
            return Appliance(path, _members(path, archive))
    except tarfile.TarError as error:
        raise BadRequest(f"{path}: is no OVA, which is a tar archive: {error}") from error


def _is_beside(file: Path, path: Path) -> bool:
    """A file of the appliance: of several descriptions in a folder the others belong to others."""
    mine = file.suffix.lower() not in (".ovf", ".mf") or file.stem == path.stem
    return mine and file.is_file() and not file.is_symlink()


def _members(path: Path, archive: tarfile.TarFile) -> dict[str, ImagePlace]:
    places: dict[str, ImagePlace] = {}
    for member in archive:
        if len(places) >= _MOST_MEMBERS or member.name in places:
            raise BadRequest(f"{path}: has more than {_MOST_MEMBERS} files, or two with one name")
        if not member.isreg() or member.issparse() or not _NAME.fullmatch(member.name):
            raise BadRequest(f"{path}: '{clean(member.name)}' is no plain file of an OVA")
        places[member.name] = ImagePlace(path=path, offset_bytes=member.offset_data, length_bytes=member.size)
    return places


def _read(place: ImagePlace) -> bytes:
    with place.path.open("rb") as file:
        file.seek(place.offset_bytes)
        data = file.read(
            LONGEST_BYTES + 1 if place.length_bytes is None else min(place.length_bytes, LONGEST_BYTES + 1)
        )
    if len(data) > LONGEST_BYTES:
        raise BadRequest(f"{place.path}: its description is longer than {LONGEST_BYTES} bytes")
    return data
