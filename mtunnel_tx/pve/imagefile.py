"""What an image file says about itself: its size, and the other files it would make QEMU open.

`inspect_image` reads the bytes alone, before any program of QEMU's sees the file: those follow what they find.
`read_image_info` reads what `qemu-img info` tells of it afterwards, which has the last word.
Sources: QEMU's docs/interop/qcow2.txt and qapi/block-core.json (ImageInfo); the VMDK specification's sparse extents.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BadRequest

Read = Callable[[int, int], bytes]
"""Reads up to `count` bytes at `offset`: (offset, count) -> bytes; fewer at the end of the file."""

SECTOR_BYTES = 512
_QCOW2 = struct.Struct(">4sIQIIQIIQQIIQ")
_QCOW2_V3 = struct.Struct(">QQQII")
_QCOW2_V2_BYTES = _QCOW2.size
_QCOW2_V3_BYTES = 104
_EXTERNAL_DATA = 1 << 2
_EXTENSION_END = 0
_EXTENSION_DATA_FILE = 0x44415441
_EXTENSION_ENCRYPTION = 0x0537BE77
_LONGEST_BACKING_NAME = 1023
_DATA_FILE = "image has an external data file"

_VMDK = struct.Struct("<4sIIQQQQ")
_VMDK_FOOTER_BYTES = 3 * SECTOR_BYTES
_VMDK_COMPRESSED = 1 << 16
_VMDK_GD_OFFSET = 56
_VMDK_GD_AT_END = b"\xff" * 8
_VMDK_DESCRIPTOR_BYTES = 20 * SECTOR_BYTES
_VMDK_TYPES = ("monolithicSparse", "streamOptimized")
_VMDK_EXTENT = re.compile(r"^[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]+\d+[ \t]+(\w+)", re.MULTILINE)
_VMDK_CREATE_TYPE = re.compile(r'^[ \t]*createType[ \t]*=[ \t]*"?(\w+)"?', re.MULTILINE)


class ImageRefused(BadRequest):
    """The file is not an image of the format it claims to be, or of a kind that is not taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What an image says.

    `elsewhere`: why the image cannot stand alone, None if it can. `backing`: the backing file's name as written; then
    `elsewhere` says so. `snapshots`, `bitmaps`: the names of those in a qcow2, where `qemu-img info` was asked.
    `unclosed`: a qcow2 whose reference counts QEMU makes anew when it opens it next, as after a power cut.
    `options`: `cluster_size` and `refcount_bits` of qcow2, as `qemu-img create` has them; `compressed` in vmdk: data
    has to be inflated.
    """

    format: str
    size_bytes: int
    elsewhere: str | None = None
    backing: str | None = None
    encrypted: bool = False
    corrupt: bool = False
    unclosed: bool = False
    snapshots: tuple[str, ...] = ()
    bitmaps: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def why_not_alone(self) -> str | None:
        """Why the image is of no use without something else, another file or a key; None: it is whole."""
        return self.elsewhere or ("image is encrypted" if self.encrypted else None)


def inspect_image(format: str, read: Read, length_bytes: int) -> ImageFacts:
    """Read an image's header; opens nothing.

    Args: format: `raw`, `qcow2` or `vmdk`, never guessed. length_bytes: the file's length.
    Raises: ImageRefused: it is no such image.
    """
    if format == "qcow2":
        return _inspect_qcow2(read)
    if format == "vmdk":
        return _inspect_vmdk(read, length_bytes)
    if format == "raw":
        return ImageFacts(format="raw", size_bytes=length_bytes)
    raise ImageRefused(f"image format '{format}' is not supported")


def read_image_info(info: Mapping[str, Any]) -> ImageFacts:
    """Args: info: the JSON object of `qemu-img info`. Raises: ImageRefused: it tells no size."""
    details = info.get("format-specific", {}).get("data", {})
    backing = info.get("backing-filename", info.get("full-backing-filename"))
    if not isinstance(info.get("virtual-size"), int):
        raise ImageRefused("qemu-img tells nothing about the image")
    return ImageFacts(
        format=str(info.get("format")),
        size_bytes=info["virtual-size"],
        elsewhere=_told_elsewhere(info.get("filename"), details, backing),
        backing=backing,
        encrypted=bool(info.get("encrypted")) or "encrypt" in details,
        corrupt=bool(details.get("corrupt")),
        unclosed=bool(info.get("dirty-flag")),
        snapshots=_names(info.get("snapshots", [])),
        bitmaps=_names(details.get("bitmaps", [])),
    )


def _names(entries: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(clean(str(entry.get("name", "?"))) for entry in entries)


def _told_elsewhere(name: object, details: Mapping[str, Any], backing: str | None) -> str | None:
    if backing is not None:
        return _backed_by(backing)
    if "data-file" in details:
        return _DATA_FILE
    files = {extent.get("filename") for extent in details.get("extents", [])}
    return "vmdk image has its data in other files" if files - {name} else None


def _backed_by(name: str) -> str:
    return f"image has a backing file '{clean(name)}'"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Qcow2Header:
    version: int
    backing_offset: int
    backing_bytes: int
    cluster_bits: int
    size_bytes: int
    crypt_method: int
    incompatible: int = 0
    refcount_bits: int = 16
    header_bytes: int = _QCOW2_V2_BYTES


def _inspect_qcow2(read: Read) -> ImageFacts:
    header = _read_qcow2_header(read)
    extensions = _read_qcow2_extensions(header, read)
    backing = None
    if header.backing_offset:
        name = read(header.backing_offset, min(header.backing_bytes, _LONGEST_BACKING_NAME))
        backing = name.decode("utf-8", "replace")
    return ImageFacts(
        format="qcow2",
        size_bytes=header.size_bytes,
        elsewhere=_qcow2_elsewhere(header, extensions, backing),
        backing=backing,
        encrypted=header.crypt_method != 0 or _EXTENSION_ENCRYPTION in extensions,
        options={"cluster_size": str(1 << header.cluster_bits), "refcount_bits": str(header.refcount_bits)},
    )


def _read_qcow2_header(read: Read) -> _Qcow2Header:
    head = read(0, _QCOW2_V3_BYTES)
    if len(head) < _QCOW2_V2_BYTES or head[:4] != b"QFI\xfb":
        raise ImageRefused("image is not in qcow2 format")
    version, backing_offset, backing_bytes, cluster_bits, size_bytes, crypt_method = _QCOW2.unpack_from(head)[1:7]
    if version not in (2, 3) or not 9 <= cluster_bits <= 21:
        raise ImageRefused(f"unsupported qcow2 image (version {version}, {cluster_bits} cluster bits)")
    return _Qcow2Header(
        version=version,
        backing_offset=backing_offset,
        backing_bytes=backing_bytes,
        cluster_bits=cluster_bits,
        size_bytes=size_bytes,
        crypt_method=crypt_method,
        **(_read_qcow2_v3(head, 1 << cluster_bits) if version == 3 else {}),
    )


def _read_qcow2_v3(head: bytes, cluster_bytes: int) -> dict[str, int]:
    if len(head) < _QCOW2_V3_BYTES:
        raise ImageRefused("qcow2 header is cut short")
    incompatible, _, _, refcount_order, header_bytes = _QCOW2_V3.unpack_from(head, _QCOW2_V2_BYTES)
    if refcount_order > 6 or not _QCOW2_V3_BYTES <= header_bytes <= cluster_bytes:
        raise ImageRefused(f"invalid qcow2 header ({header_bytes} bytes, refcount order {refcount_order})")
    return {"incompatible": incompatible, "refcount_bits": 1 << refcount_order, "header_bytes": header_bytes}


def _read_qcow2_extensions(header: _Qcow2Header, read: Read) -> frozenset[int]:
    """The kinds of header extensions; they lie in the first cluster."""
    area = read(header.header_bytes, (1 << header.cluster_bits) - header.header_bytes)
    kinds = set()
    position = 0
    while position + 8 <= len(area):
        kind, length = struct.unpack_from(">II", area, position)
        if kind == _EXTENSION_END:
            break
        kinds.add(kind)
        position += 8 + (length + 7) // 8 * 8
    return frozenset(kinds)


def _qcow2_elsewhere(header: _Qcow2Header, extensions: frozenset[int], backing: str | None) -> str | None:
    if backing is not None:
        return _backed_by(backing)
    if header.incompatible & _EXTERNAL_DATA or _EXTENSION_DATA_FILE in extensions:
        return _DATA_FILE
    return None


def _inspect_vmdk(read: Read, length_bytes: int) -> ImageFacts:
    """Only self-contained kinds are taken: one sparse extent with its descriptor inside."""
    head = read(0, SECTOR_BYTES)
    capacity, place = _read_vmdk_header(head)
    compressed = _VMDK.unpack_from(head)[2] & _VMDK_COMPRESSED
    if head[_VMDK_GD_OFFSET : _VMDK_GD_OFFSET + 8] == _VMDK_GD_AT_END:
        _check_vmdk_footer(read, length_bytes, (capacity, place))
    offset, sectors = place
    if not offset or not sectors or (offset + sectors) * SECTOR_BYTES > length_bytes:
        raise ImageRefused("vmdk image without a descriptor of its own is not supported")
    descriptor = read(offset * SECTOR_BYTES, max(_VMDK_DESCRIPTOR_BYTES, min(sectors, 128) * SECTOR_BYTES))
    text = descriptor.decode("utf-8", "replace")
    return ImageFacts(
        format="vmdk",
        size_bytes=capacity * SECTOR_BYTES,
        elsewhere=_vmdk_elsewhere(text),
        options={"compressed": "on"} if compressed else {},
    )


def _read_vmdk_header(head: bytes) -> tuple[int, tuple[int, int]]:
    """Returns: capacity in sectors, and the descriptor's (offset, length) in sectors."""
    if len(head) < SECTOR_BYTES or head[:4] != b"KDMV":
        raise ImageRefused("image is not in a self-contained vmdk format")
    _, version, _, capacity, _, offset, sectors = _VMDK.unpack_from(head)
    if version not in (1, 2, 3) or not 0 < capacity < 1 << 54:
        raise ImageRefused(f"unsupported vmdk image (version {version}, {capacity} sectors)")
    return capacity, (offset, sectors)


def _check_vmdk_footer(read: Read, length_bytes: int, expected: tuple[int, tuple[int, int]]) -> None:
    """A stream-optimized image has its final header at the end: it must not tell another story."""
    for end in {
        length_bytes,
        length_bytes // SECTOR_BYTES * SECTOR_BYTES,
        -(-length_bytes // SECTOR_BYTES) * SECTOR_BYTES,
    }:
        footer = read(max(0, end - _VMDK_FOOTER_BYTES) + SECTOR_BYTES, SECTOR_BYTES)
        if footer[:4] == b"KDMV" and _read_vmdk_header(footer) != expected:
            raise ImageRefused("vmdk header and footer contradict each other")


def _vmdk_elsewhere(descriptor: str) -> str | None:
    if "parentfilenamehint" in descriptor.lower():
        return "image has a backing file"
    kind = _VMDK_CREATE_TYPE.search(descriptor)
    if kind is None or kind[1] not in _VMDK_TYPES:
        return f"vmdk image of type '{kind[1] if kind else 'unknown'}' has its data in other files"
    if _VMDK_EXTENT.findall(descriptor) != ["SPARSE"]:
        return "vmdk image does not consist of one sparse extent"
    return None
