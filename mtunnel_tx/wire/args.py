"""What each command takes: its schema as a value, and the `…Args` that a handler works with.

Two dialects are read alike: that of 2021 spells some parameters with dashes and names a single storage for `bwlimit`.
Source: protocol.md section 4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtunnel_tx.checks import split_list
from mtunnel_tx.wire.formats import CIDR, NODE_NAME, STORAGE_ID
from mtunnel_tx.wire.lines import as_text
from mtunnel_tx.wire.schema import (
    Array,
    AsSent,
    Boolean,
    Enum,
    Integer,
    Object,
    OpenObject,
    ParameterSet,
    Property,
    SingleItem,
    String,
)

LONGEST_CONFIG = 64 << 20
"""Characters of a config or its firewall rules that any configuration allows; `limits.config_bytes` is what holds."""


@dataclass(frozen=True, slots=True)
class NoArgs:
    """A command without parameters."""


ANYTHING = ParameterSet(Object({}, ignores_others=True), NoArgs)
"""For commands without a schema: whatever else the request holds is ignored."""
NOTHING = ParameterSet(Object({}), NoArgs)
"""For `query-disk-import`, which takes no parameters at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BandwidthArgs:
    """`bwlimit`: names of storages (None: sent as null), for what, and the source's own limit in KiB/s as sent."""

    storages: tuple[str | None, ...]
    bwlimit: int | float | str | None
    operation: str | None


def _bandwidth(storages: list[Any], **rest: Any) -> BandwidthArgs:
    return BandwidthArgs(storages=tuple(None if name is None else as_text(name) for name in storages), **rest)


BANDWIDTH = ParameterSet(
    Object(
        {
            "storages": Property(Array(), "the storages to be written to", True, older=("storage", SingleItem())),
            "bwlimit": Property(AsSent(Integer()), "the limit that the source would like, in KiB/s"),
            "operation": Property(String(), "what the bandwidth is for", default="migration"),
        }
    ),
    _bandwidth,
)


@dataclass(frozen=True, slots=True)
class ConfigArgs:
    """`config`: the texts of the VM's config and, if it has one, of its firewall file; and keys that were left out."""

    conf: str
    firewall: str | None
    dropped: tuple[str, ...] = ()


CONFIG = ParameterSet(
    Object(
        {
            "conf": Property(String(max_length=LONGEST_CONFIG), "the guest's config, in Proxmox's format", True),
            "firewall-config": Property(
                String(max_length=LONGEST_CONFIG), "its firewall rules, in Proxmox's format; null: it has none"
            ),
            "dropped": Property(String(), "keys that whoever moves it left out, as a list in one text", default=""),
        }
    ),
    lambda **values: ConfigArgs(values["conf"], values["firewall-config"], split_list(values["dropped"])),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskArgs:
    """`disk`: where to allocate, the source's parsed drive, and the image format it would like."""

    storage: str
    drive: Mapping[str, Any]
    format: str | None


_STORAGE = Property(String(format=STORAGE_ID), "the storage that the volume is made on", True)
DISK = ParameterSet(
    Object(
        {
            "storage": _STORAGE,
            "drive": Property(OpenObject(), "the drive as the source parsed it; `size` is in bytes", True),
            "format": Property(
                Enum(("raw", "qcow", "qed", "qcow2", "vmdk", "cloop")), "the image format that the source would like"
            ),
        }
    ),
    DiskArgs,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportArgs:
    """`disk-import`: the volume's name at the source, its format, and how it can be sent."""

    volname: str
    format: str
    export_formats: tuple[str, ...]
    storage: str
    snapshot: str | None
    migration_snapshot: bool
    with_snapshots: bool
    allow_rename: bool
    convert: bool


def _import(export_formats: str, **rest: Any) -> ImportArgs:
    return ImportArgs(export_formats=split_list(export_formats), **rest)


_LOOSE = Boolean(empty_is_false=True)
DISK_IMPORT = ParameterSet(
    Object(
        {
            "volname": Property(String(), "the volume's name at the source, without its storage", True),
            "format": Property(Enum(("raw", "qcow2", "subvol", "vmdk")), "its image format", True),
            "export_formats": Property(
                String(),
                "the stream formats that the source can send, best first, as a list in one text",
                True,
                older=("export-formats", String()),
            ),
            "storage": _STORAGE,
            "snapshot": Property(String(pattern=re.compile(r"[A-Za-z0-9_-]{1,40}")), "the snapshot that is sent"),
            "migration_snapshot": Property(_LOOSE, "whether `snapshot` goes when the image has arrived", default=False),
            "with_snapshots": Property(
                _LOOSE, "whether the volume's snapshots come along", default=False, older=("with-snapshots", _LOOSE)
            ),
            "allow_rename": Property(
                _LOOSE, "whether the volume may get another name", default=False, older=("allow-rename", _LOOSE)
            ),
            "convert": Property(
                Boolean(), "whether a raw stream may become an image of another format; mtunnel-tx's own", default=False
            ),
        }
    ),
    _import,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartParams:
    """How the VM runs at the source; `nets_host_mtu` like `net0=1500,net1=9000`."""

    statefile: str
    forcemachine: str | None
    forcecpu: str | None
    skiplock: bool
    nets_host_mtu: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateOptions:
    """How it moves; `nbd` has for each drive the whole reply of `disk`: {} starts an NBD server too, None does not."""

    type: str
    migratedfrom: str
    remote_node: str
    spice_ticket: str | None
    network: str | None
    storagemap: Mapping[str, Any] | None
    nbd_proto_version: int | None
    nbd: Mapping[str, Any] | None
    postcopy: bool


@dataclass(frozen=True, slots=True)
class StartArgs:
    """`start`: run the VM, paused, waiting for its memory."""

    params: StartParams
    options: MigrateOptions


def _start(start_params: dict[str, Any], migrate_opts: dict[str, Any]) -> StartArgs:
    host_mtus = start_params.pop("nets-host-mtu") or None
    return StartArgs(StartParams(**start_params, nets_host_mtu=host_mtus), MigrateOptions(**migrate_opts))


_VERSION = r"-\d+(\.\d+)+"
_REVISION = r"(\+pve\d+)?"
_MACHINE = re.compile(
    rf"pc|pc(-i440fx)?{_VERSION}{_REVISION}(\.pxe)?|q35|pc-q35{_VERSION}{_REVISION}(\.pxe)?|virt({_VERSION})?{_REVISION}",
    re.ASCII,
)
_CPU = re.compile(r"(?!-)[A-Za-z0-9_.+=,:-]+")
# A source whose VM has no VirtIO NIC may send an empty list.
_HOST_MTUS = re.compile(r"(net[0-9]+=[0-9]+(,net[0-9]+=[0-9]+)*)?")
_START_PARAMS = Object(
    {
        "statefile": Property(Enum(("unix",)), "how the memory comes in", True),
        "forcemachine": Property(String(pattern=_MACHINE, max_length=40), "the machine type that runs at the source"),
        "forcecpu": Property(String(pattern=_CPU), "QEMU's CPU model that runs at the source"),
        "skiplock": Property(Boolean(), "of no effect: a tunnel always starts its own, locked VM", default=False),
        "nets-host-mtu": Property(String(pattern=_HOST_MTUS), "MTUs of VirtIO NICs, `net0=1500,net1=9000`"),
    }
)
_MIGRATE_OPTIONS = Object(
    {
        "type": Property(Enum(("websocket",)), "how streams travel", True),
        "migratedfrom": Property(String(format=NODE_NAME), "the source's node", True),
        "remote_node": Property(String(format=NODE_NAME), "the same", True),
        "spice_ticket": Property(String(pattern=re.compile(r"[a-fA-F0-9]+")), "the password of SPICE at the source"),
        "network": Property(String(format=CIDR), "of no effect: streams come through the websockets"),
        "storagemap": Property(OpenObject(), "of no effect: volumes are named in `nbd`"),
        "nbd_proto_version": Property(Integer(minimum=1), "of no effect: NBD comes through UNIX sockets"),
        "postcopy": Property(
            Boolean(), "whether `resume` may come before all of its memory; mtunnel-tx's own", default=False
        ),
        "nbd": Property(OpenObject(), "drives to export, by their key: what `disk` replied. Null: no NBD server"),
    }
)
START = ParameterSet(
    Object(
        {
            "start_params": Property(_START_PARAMS, "how the VM runs at the source", True),
            "migrate_opts": Property(_MIGRATE_OPTIONS, "how it moves", True),
        }
    ),
    _start,
)


@dataclass(frozen=True, slots=True)
class TicketArgs:
    """`ticket`: the wire name of the socket to be opened next."""

    path: str


TICKET = ParameterSet(
    Object({"path": Property(String(), "the wire name of the socket to be opened", True)}), TicketArgs
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressArgs:
    """`progress`: how far the source is; `transfers` as they were sent."""

    phase: str
    transfers: tuple[Any, ...]
    downtime_ms: int | None
    source: str


def _progress(*, phase: str, transfers: list[Any], downtime_ms: int | None, source: str | None) -> ProgressArgs:
    return ProgressArgs(phase=phase, transfers=tuple(transfers), downtime_ms=downtime_ms, source=source or "")


PROGRESS = ParameterSet(
    Object(
        {
            "phase": Property(String(max_length=40), "what the source does", True),
            "transfers": Property(Array(), "disks and memory: label, kind, done, total in bytes, ended", True),
            "downtime_ms": Property(Integer(minimum=0, maximum=86_400_000), "how long the VM stood still"),
            "source": Property(String(format=NODE_NAME), "the source's node"),
        }
    ),
    _progress,
)


@dataclass(frozen=True, slots=True)
class QuitArgs:
    """`quit`: with `cleanup` everything that this tunnel made is removed."""

    cleanup: bool


QUIT = ParameterSet(
    Object({"cleanup": Property(Boolean(), "whether to remove everything that this tunnel made", default=False)}),
    QuitArgs,
)
