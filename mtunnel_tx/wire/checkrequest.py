"""What `POST …/mtunnelcheck` takes: a VM as it would be sent, for the target to say beforehand what it would do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mtunnel_tx.checks import split_list
from mtunnel_tx.wire.args import CONFIG, DISK_IMPORT, LONGEST_CONFIG, ImportArgs
from mtunnel_tx.wire.formats import BRIDGE_ID, MOST_DISKS, STORAGE_ID, list_of
from mtunnel_tx.wire.requests import VM
from mtunnel_tx.wire.schema import Boolean, Integer, Object, ParameterSet, Property, Rows, String

_IMPORT = ("volname", "format", "export_formats", "storage", "with_snapshots", "allow_rename", "convert")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComingDisk:
    """A disk that would be sent.

    `key`: its key in the config; `volume`: what the config calls it (its id at the source). `written_bytes`: what of
    its `size_bytes` will be written. `mirrored`: while the VM runs, into a volume that `disk` makes; `how` is what
    `disk-import` would be asked for otherwise.
    """

    key: str
    volume: str
    size_bytes: int
    written_bytes: int
    mirrored: bool
    how: ImportArgs


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckCall:
    """The VM as it would be sent: config and firewall as the command `config` would have them, disks apart.

    `delete`: the source would remove it. `machine`: the type that it runs with. `strict_space`: there must be room for
    all that its disks can become. `postcopy`: it may run before all of its memory is there. `sender`: the source's
    version, for people.
    """

    vmid: int
    conf: str
    firewall: str | None
    disks: tuple[ComingDisk, ...]
    storages: tuple[str, ...]
    bridges: tuple[str, ...]
    online: bool
    delete: bool
    machine: str | None
    strict_space: bool
    postcopy: bool
    sender: str


def _disk(disk: dict[str, Any]) -> ComingDisk:
    offers = split_list(disk["export_formats"])
    how = {name: disk[name] for name in _IMPORT} | {"export_formats": offers}
    return ComingDisk(
        key=disk["key"],
        volume=disk["volume"],
        size_bytes=disk["size"],
        written_bytes=disk["written"],
        mirrored=disk["mirrored"],
        how=ImportArgs(**how, snapshot=None, migration_snapshot=False),
    )


def _check(disks: list[dict[str, Any]], storages: str, bridges: str, **rest: Any) -> CheckCall:
    rest["firewall"] = rest.pop("firewall-config")
    del rest["node"]
    return CheckCall(disks=tuple(map(_disk, disks)), storages=split_list(storages), bridges=split_list(bridges), **rest)


_DISK = Object(
    {
        "key": Property(String(max_length=64), "the key of the config that names it", True),
        "volume": Property(String(), "what the config calls it: its id at the source", True),
        "size": Property(Integer(), "its size in bytes, as the guest sees it", True),
        "written": Property(Integer(), "the bytes that will be written", True),
        "mirrored": Property(
            Boolean(), "whether it is copied while the VM runs, into a volume of `disk`", default=False
        ),
        **{name: DISK_IMPORT.schema.properties[name] for name in _IMPORT},
    }
)
CHECK = ParameterSet(
    Object(
        {
            **VM,
            "conf": Property(
                String(max_length=LONGEST_CONFIG),
                "the config as it would be sent; disks have their ids at the source",
                True,
            ),
            "firewall-config": CONFIG.schema.properties["firewall-config"],
            "disks": Property(Rows(row=_DISK, most=MOST_DISKS), "the disks that would be sent", default=()),
            "storages": Property(String(format=list_of(STORAGE_ID)), "the storages that it will use", default=""),
            "bridges": Property(String(format=list_of(BRIDGE_ID)), "the bridges that it will use", default=""),
            "online": Property(Boolean(), "whether it would be moved while it runs", default=False),
            "delete": Property(Boolean(), "whether the source would remove it afterwards", default=False),
            "machine": Property(String(max_length=64), "the machine type that it runs with"),
            "strict_space": Property(
                Boolean(), "whether there must be room for all that its disks can become", default=False
            ),
            "postcopy": Property(
                Boolean(), "whether it may run at the target before all of its memory is there", default=False
            ),
            "sender": Property(String(max_length=64), "the source's program and version", default=""),
        }
    ),
    _check,
)
