"""The storage types of Proxmox as one table, and the choice of a stream format between two of them.

A row says which image formats a storage of that type has and which stream formats it can write and read. The tunnel,
the source and pvesm use it. A new type is one more row. The types that only Proxmox's own pvesm can drive are in the
table as well, because a tunnel on a Proxmox node has to answer for them.

A disk is offered as pairs (stream format, image format at the target). Both sides use `match_offers` on such pairs.
An image that changes its format on the way travels as a raw disk: whoever has it knows how to read it, so that nothing
but the guest's data is on the wire, and no second copy is needed on either side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto


class Layout(Enum):
    """Where the volumes of a storage are."""

    FILES = auto()
    """Files below the storage's folder; the path follows from the volume's name."""
    SUBVOLUMES = auto()
    """Below a folder too, but only the storage's program knows the path."""
    BLOCKS = auto()
    """Block devices, or volumes in the network; there is no folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFormat:
    """A format in which a volume can be sent.

    `images`: the image formats that can be made of it, the usual one first; `converted`: those that only mtunnel-tx
    makes of it. `plain`: it can be sent without snapshots (`with_snapshots` 0); `whole`: it can be sent with them
    (`with_snapshots` 1). `dense`: for a sparse format, which only mtunnel-tx knows, the format of Proxmox that it
    replaces; None: Proxmox knows the format.
    """

    images: tuple[str, ...]
    converted: tuple[str, ...] = ()
    plain: bool = False
    whole: bool = False
    dense: str | None = None

    def fits(self, *, with_snapshots: bool) -> bool:
        """Whether it can be used with, or without, snapshots."""
        return self.whole if with_snapshots else self.plain


STREAM_FORMATS: Mapping[str, StreamFormat] = {
    "raw+size": StreamFormat(images=("raw",), converted=("qcow2", "vmdk"), plain=True),
    "tar+size": StreamFormat(images=("subvol",), plain=True),
    "qcow2+size": StreamFormat(images=("qcow2",), whole=True),
    "vmdk+size": StreamFormat(images=("vmdk",), whole=True),
    "zfs": StreamFormat(images=("raw", "subvol"), plain=True, whole=True),
    "btrfs": StreamFormat(images=("raw", "subvol"), plain=True, whole=True),
    "raw+sparse": StreamFormat(images=("raw",), converted=("qcow2", "vmdk"), plain=True, dense="raw+size"),
    "qcow2+sparse": StreamFormat(images=("qcow2",), whole=True, dense="qcow2+size"),
    "vmdk+sparse": StreamFormat(images=("vmdk",), whole=True, dense="vmdk+size"),
}
IMAGES = ("raw", "qcow2", "vmdk")
"""The formats of a VM's images."""
PROXMOX_STREAMS = tuple(name for name, stream in STREAM_FORMATS.items() if stream.dense is None)
"""The stream formats that Proxmox's own pvesm knows."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A stream format and the image format that the target makes of it."""

    stream: str
    image: str

    def __str__(self) -> str:
        """For people: a sparse format is shown as the format that it replaces."""
        stream = STREAM_FORMATS.get(self.stream)
        return f"{self.image} as {(stream and stream.dense) or self.stream}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageType:
    """The properties of a storage type.

    `content`: the default of `content` in storage.cfg. `formats`: the image formats, the default one first. `exports`:
    for each image format the stream formats that it can be sent in; `imports`: the stream formats that can be
    received; both in order of preference. `mounted`: the default path is below /mnt/pve. `shared`: always shared
    between nodes.
    """

    layout: Layout = Layout.BLOCKS
    content: str = "images"
    formats: tuple[str, ...] = ("raw",)
    exports: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"raw": ("raw+size",)})
    imports: tuple[str, ...] = ("raw+size",)
    mounted: bool = False
    shared: bool = False

    def offers(self, image: str, wanted: str | None = None) -> tuple[Offer, ...]:
        """The pairs in which an image can be sent, in order of preference.

        Args: wanted: the image format at the target; None: the same. A stream that changes the format (qcow2 as
            raw+size) is offered for another one only, because snapshots in the image are lost by it.
        """
        streams = self.exports.get(image, ())
        if wanted in (None, image):
            return tuple(Offer(stream, image) for stream in streams if image in STREAM_FORMATS[stream].images)
        assert wanted is not None
        return tuple(Offer(stream, wanted) for stream in streams if _changes(STREAM_FORMATS[stream], wanted))

    def takes(self, offer: Offer, *, with_snapshots: bool, converts: bool = False) -> bool:
        """Whether a storage of this type can receive this stream and make this image of it.

        Args: converts: whether its program also makes the `converted` formats.
        """
        stream = STREAM_FORMATS.get(offer.stream) if offer.stream in self.imports else None
        if stream is None or not stream.fits(with_snapshots=with_snapshots):
            return False
        return offer.image in stream.images or (
            converts and offer.image in stream.converted and offer.image in self.formats
        )


def _changes(stream: StreamFormat, wanted: str) -> bool:
    return stream.plain and wanted in (*stream.images, *stream.converted)


def match_offers(
    offers: Sequence[Offer], target: StorageType, *, with_snapshots: bool, converts: bool = False
) -> Offer | None:
    """Returns: the first of the source's pairs that the target takes; None: it takes none. Args: as of `takes`."""
    found = (offer for offer in offers if target.takes(offer, with_snapshots=with_snapshots, converts=converts))
    return next(found, None)


def describe_mismatch(offers: Sequence[Offer], source: str, target: str) -> str:
    """Returns: why `match_offers` found nothing, with the names of both types."""
    listed = " or ".join(dict.fromkeys(map(str, offers))) or "nothing"
    return f"storage type {target} does not take {listed}, which is all that storage type {source} can send"


_FILE_STREAMS = ("raw+sparse", "qcow2+sparse", "vmdk+sparse", "raw+size", "qcow2+size", "vmdk+size")
_FILE_EXPORTS: Mapping[str, tuple[str, ...]] = {
    "raw": ("raw+sparse", "raw+size"),
    "qcow2": ("qcow2+sparse", "qcow2+size", "raw+sparse", "raw+size"),
    "vmdk": ("vmdk+sparse", "vmdk+size", "raw+sparse", "raw+size"),
}
_MOUNTED = StorageType(
    layout=Layout.FILES, formats=IMAGES, exports=_FILE_EXPORTS, imports=_FILE_STREAMS, mounted=True, shared=True
)
_NO_IMAGES: Mapping[str, tuple[str, ...]] = {}

STORAGE_TYPES: Mapping[str, StorageType] = {
    "dir": StorageType(
        layout=Layout.FILES,
        content="images,rootdir",
        formats=(*IMAGES, "subvol"),
        exports={**_FILE_EXPORTS, "subvol": ("tar+size",)},
        imports=(*_FILE_STREAMS, "tar+size"),
    ),
    "nfs": _MOUNTED,
    "cifs": _MOUNTED,
    "glusterfs": _MOUNTED,
    "cephfs": StorageType(
        layout=Layout.FILES, content="backup", exports=_NO_IMAGES, imports=(), mounted=True, shared=True
    ),
    "btrfs": StorageType(
        layout=Layout.SUBVOLUMES,
        content="images,rootdir",
        formats=("raw", "subvol"),
        # `btrfs send` needs a snapshot, and our source makes none; another source may send one.
        exports={"raw": ("raw+size",), "subvol": ("tar+size",)},
        imports=("btrfs", "raw+size", "tar+size"),
    ),
    "lvm": StorageType(),
    "lvmthin": StorageType(content="images,rootdir"),
    "zfspool": StorageType(
        content="images,rootdir",
        formats=("raw", "subvol"),
        exports={"raw": ("zfs",), "subvol": ("zfs",)},
        imports=("zfs",),
    ),
    "zfs": StorageType(shared=True),
    "rbd": StorageType(shared=True),
    "iscsi": StorageType(shared=True, imports=()),
    "iscsidirect": StorageType(shared=True, exports=_NO_IMAGES, imports=()),
    "pbs": StorageType(content="backup", shared=True, exports=_NO_IMAGES, imports=()),
    "esxi": StorageType(content="import", shared=True, exports=_NO_IMAGES, imports=()),
}
