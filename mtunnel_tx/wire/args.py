"""What each command takes: `read_X` checks a request and makes the X that a handler works with.

Two dialects are read alike: that of 2021 spells some parameters with dashes and names a single storage for `bwlimit`.
Source: protocol.md section 4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtunnel_tx.checks import cidr, node_name, split_list, storage_id
from mtunnel_tx.wire.lines import as_text
from mtunnel_tx.wire.schema import Array, Boolean, Enum, Integer, Object, OpenObject, Property, String, read_parameters

Request = Mapping[str, Any]


def _read(schema: Object, request: Request) -> dict[str, Any]:
    return read_parameters(schema, {key: value for key, value in request.items() if key != "cmd"})


@dataclass(frozen=True, slots=True)
class NoArgs:
    """A command without parameters."""


_NOTHING = Object({})


def read_nothing(_request: Request) -> NoArgs:
    """For commands without a schema: whatever else the request holds is ignored."""
    return NoArgs()


def read_query(request: Request) -> NoArgs:
    """For `query-disk-import`, which takes no parameters at all. Raises: InvalidParameters."""
    _read(_NOTHING, request)
    return NoArgs()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """`bwlimit`: names of storages (None: sent as null), for what, and the source's own limit in KiB/s as sent."""

    storages: tuple[Any, ...]
    bwlimit: int | float | str | None
    operation: str | None


@dataclass(frozen=True, slots=True)
class _SingleItem:
    """A text where a list of one is meant."""

    def read(self, value: object) -> list[str]:
        return [String().read(value)]


_BANDWIDTH = Object(
    {
        "storages": Property(Array(), required=True, older=("storage", _SingleItem())),
        "bwlimit": Property(Integer(minimum=0)),
        "operation": Property(String(), default="migration"),
    }
)


def read_bandwidth(request: Request) -> Bandwidth:
    """Raises: InvalidParameters."""
    values = _read(_BANDWIDTH, request)
    return Bandwidth(
        storages=tuple(None if name is None else as_text(name) for name in values["storages"]),
        bwlimit=request.get("bwlimit"),
        operation=values["operation"],
    )


@dataclass(frozen=True, slots=True)
class Config:
    """`config`: the texts of the VM's config and, if it has one, of its firewall file."""

    conf: str
    firewall: str | None


_CONFIG = Object({"conf": Property(String(), required=True), "firewall-config": Property(String())})


def read_config(request: Request) -> Config:
    """Raises: InvalidParameters."""
    values = _read(_CONFIG, request)
    return Config(values["conf"], values["firewall-config"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """`disk`: where to allocate, the source's parsed drive, and the image format it would like."""

    storage: str
    drive: Mapping[str, Any]
    format: str | None


_DISK = Object(
    {
        "storage": Property(String(format=storage_id), required=True),
        "drive": Property(OpenObject(), required=True),
        "format": Property(Enum(("raw", "qcow", "qed", "qcow2", "vmdk", "cloop"))),
    }
)


def read_disk(request: Request) -> Disk:
    """Raises: InvalidParameters."""
    return Disk(**_read(_DISK, request))


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskImport:
    """`disk-import`: the volume's name at the source, its format, and how it can be sent."""

    volname: str
    format: str
    export_formats: tuple[str, ...]
    storage: str
    snapshot: str | None
    migration_snapshot: bool
    with_snapshots: bool
    allow_rename: bool


_LOOSE = Boolean(empty_is_false=True)
_DISK_IMPORT = Object(
    {
        "volname": Property(String(), required=True),
        "format": Property(Enum(("raw", "qcow2", "subvol", "vmdk")), required=True),
        "export_formats": Property(String(), required=True, older=("export-formats", String())),
        "storage": Property(String(format=storage_id), required=True),
        "snapshot": Property(String(pattern=re.compile(r"[A-Za-z0-9_-]{1,40}"))),
        "migration_snapshot": Property(_LOOSE, default=False),
        "with_snapshots": Property(_LOOSE, default=False, older=("with-snapshots", _LOOSE)),
        "allow_rename": Property(_LOOSE, default=False, older=("allow-rename", _LOOSE)),
    }
)


def read_disk_import(request: Request) -> DiskImport:
    """Raises: InvalidParameters."""
    values = _read(_DISK_IMPORT, request)
    values["export_formats"] = split_list(values["export_formats"])
    return DiskImport(**values)


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


@dataclass(frozen=True, slots=True)
class Start:
    """`start`: run the VM, paused, waiting for its memory."""

    params: StartParams
    options: MigrateOptions


_VERSION = r"-\d+(\.\d+)+"
_REVISION = r"(\+pve\d+)?"
_MACHINE = re.compile(
    rf"pc|pc(-i440fx)?{_VERSION}{_REVISION}(\.pxe)?|q35|pc-q35{_VERSION}{_REVISION}(\.pxe)?|virt({_VERSION})?{_REVISION}",
    re.ASCII,
)
# A source whose VM has no VirtIO NIC may send an empty list.
_HOST_MTUS = re.compile(r"(net[0-9]+=[0-9]+(,net[0-9]+=[0-9]+)*)?")
_START_PARAMS = Object(
    {
        "statefile": Property(Enum(("unix",)), required=True),
        "forcemachine": Property(String(pattern=_MACHINE, max_length=40)),
        "forcecpu": Property(String(pattern=re.compile(r"(?!-)[A-Za-z0-9_.+=,:-]+"))),
        "skiplock": Property(Boolean(), default=False),
        "nets-host-mtu": Property(String(pattern=_HOST_MTUS)),
    }
)
_MIGRATE_OPTIONS = Object(
    {
        "type": Property(Enum(("websocket",)), required=True),
        "migratedfrom": Property(String(format=node_name), required=True),
        "remote_node": Property(String(format=node_name), required=True),
        "spice_ticket": Property(String(pattern=re.compile(r"[a-fA-F0-9]+"))),
        "network": Property(String(format=cidr)),
        "storagemap": Property(OpenObject()),
        "nbd_proto_version": Property(Integer(minimum=1)),
        "nbd": Property(OpenObject()),
    }
)
_START = Object(
    {
        "start_params": Property(_START_PARAMS, required=True),
        "migrate_opts": Property(_MIGRATE_OPTIONS, required=True),
    }
)


def read_start(request: Request) -> Start:
    """Raises: InvalidParameters."""
    values = _read(_START, request)
    params = values["start_params"]
    host_mtus = params.pop("nets-host-mtu") or None
    return Start(StartParams(**params, nets_host_mtu=host_mtus), MigrateOptions(**values["migrate_opts"]))


@dataclass(frozen=True, slots=True)
class Ticket:
    """`ticket`: the wire name of the socket to be opened next."""

    path: str


_TICKET = Object({"path": Property(String(), required=True)})


def read_ticket(request: Request) -> Ticket:
    """Raises: InvalidParameters."""
    return Ticket(**_read(_TICKET, request))


@dataclass(frozen=True, slots=True)
class Quit:
    """`quit`: with `cleanup` everything that this tunnel made is removed."""

    cleanup: bool


_QUIT = Object({"cleanup": Property(Boolean(), default=False)})


def read_quit(request: Request) -> Quit:
    """Raises: InvalidParameters."""
    return Quit(**_read(_QUIT, request))
