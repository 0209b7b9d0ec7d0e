"""The storage types of Proxmox as one table, and which streams lead from one to another.

A row says what a storage of that type holds and how its volumes travel. Used by the tunnel (what may come in), the
source (what may go out) and pvesm. A new type is one more row. The types that only Proxmox's own pvesm drives are rows,
too: a tunnel on a Proxmox node has to answer for them.

A disk travels as a pair: the stream's format, and that of the image that it becomes. Both sides make their pairs here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto


class Layout(Enum):
    """Where the volumes of a storage are."""

    FILES = auto()
    """In folders of the storage; a volume's name tells its file."""
    SUBVOLUMES = auto()
    """In folders, too, but only the storage's program knows where."""
    BLOCKS = auto()
    """On block devices, or somewhere in the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFormat:
    """How the bytes of a volume travel.

    `images`: the formats of images that can become of it, the usual one first. `plain`: it can carry the state of now
    alone (`with_snapshots` 0); `whole`: also what an image holds beside (`with_snapshots` 1). `dense`: the format of
    Proxmox's that it takes the place of, between two of ours; None: it is one of Proxmox's.
    """

    images: tuple[str, ...]
    plain: bool = False
    whole: bool = False
    dense: str | None = None

    def fits(self, *, with_snapshots: bool) -> bool:
        """Whether it carries what is asked for."""
        return self.whole if with_snapshots else self.plain


STREAM_FORMATS: Mapping[str, StreamFormat] = {
    "raw+size": StreamFormat(images=("raw",), plain=True),
    "tar+size": StreamFormat(images=("subvol",), plain=True),
    "qcow2+size": StreamFormat(images=("qcow2",), whole=True),
    "vmdk+size": StreamFormat(images=("vmdk",), whole=True),
    "zfs": StreamFormat(images=("raw", "subvol"), plain=True, whole=True),
    "btrfs": StreamFormat(images=("raw", "subvol"), plain=True, whole=True),
    "raw+sparse": StreamFormat(images=("raw",), plain=True, dense="raw+size"),
    "qcow2+sparse": StreamFormat(images=("qcow2",), whole=True, dense="qcow2+size"),
    "vmdk+sparse": StreamFormat(images=("vmdk",), whole=True, dense="vmdk+size"),
}
PROXMOX_STREAMS = tuple(name for name, stream in STREAM_FORMATS.items() if stream.dense is None)
"""What Proxmox's own pvesm knows."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A stream format, and the format of the image that it becomes at the target."""

    stream: str
    image: str

    def __str__(self) -> str:
        """A sparse stream goes by the name of the dense one."""
        stream = STREAM_FORMATS.get(self.stream)
        return f"{self.image} as {(stream and stream.dense) or self.stream}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageType:
    """What a storage type brings along.

    `content`: what its storages hold where storage.cfg does not say. `formats`: of its images, the default one first.
    `exports`: image format to the stream formats that it can be read as, `imports`: the stream formats that it can
    take; both in order of preference. `mounted`: below /mnt/pve where no path is given. `shared`: by its nature.
    """

    layout: Layout = Layout.BLOCKS
    content: str = "images"
    formats: tuple[str, ...] = ("raw",)
    exports: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"raw": ("raw+size",)})
    imports: tuple[str, ...] = ("raw+size",)
    mounted: bool = False
    shared: bool = False

    def offers(self, image: str) -> tuple[Offer, ...]:
        """The pairs that an image of this format can be sent as and stays what it is; the preferred one first.

        What would change the format (qcow2 as raw+size) loses what is in the image beside its disk, so it is no offer.
        """
        streams = self.exports.get(image, ())
        return tuple(Offer(stream, image) for stream in streams if image in STREAM_FORMATS[stream].images)

    def takes(self, offer: Offer, *, with_snapshots: bool) -> bool:
        """Whether such a stream can become such an image here."""
        stream = STREAM_FORMATS.get(offer.stream) if offer.stream in self.imports else None
        return stream is not None and offer.image in stream.images and stream.fits(with_snapshots=with_snapshots)


def match_offers(offers: Sequence[Offer], target: StorageType, *, with_snapshots: bool) -> Offer | None:
    """The first of the source's pairs that the target takes, which both sides then agree on. None: there is none."""
    return next((offer for offer in offers if target.takes(offer, with_snapshots=with_snapshots)), None)


def describe_mismatch(offers: Sequence[Offer], source: str, target: str) -> str:
    """Why there is no match, by the names of both types."""
    listed = " or ".join(dict.fromkeys(map(str, offers))) or "nothing"
    return f"storage type {target} does not take {listed}, which is all that storage type {source} can send"


_IMAGES = ("raw", "qcow2", "vmdk")
_FILE_STREAMS = ("raw+sparse", "qcow2+sparse", "vmdk+sparse", "raw+size", "qcow2+size", "vmdk+size")
_FILE_EXPORTS: Mapping[str, tuple[str, ...]] = {
    "raw": ("raw+sparse", "raw+size"),
    "qcow2": ("qcow2+sparse", "qcow2+size", "raw+size"),
    "vmdk": ("vmdk+sparse", "vmdk+size", "raw+size"),
}
_MOUNTED = StorageType(
    layout=Layout.FILES, formats=_IMAGES, exports=_FILE_EXPORTS, imports=_FILE_STREAMS, mounted=True, shared=True
)
_NO_IMAGES: Mapping[str, tuple[str, ...]] = {}

STORAGE_TYPES: Mapping[str, StorageType] = {
    "dir": StorageType(
        layout=Layout.FILES,
        content="images,rootdir",
        formats=(*_IMAGES, "subvol"),
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
        # `btrfs send` needs a snapshot, and a migration makes none; who sends one may.
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
