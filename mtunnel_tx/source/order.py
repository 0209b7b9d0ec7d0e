"""What a migration was asked to do, and with what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred

from mtunnel_tx.errors import BadRequest
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.maps import Map
from mtunnel_tx.source.host import SourceHost
from mtunnel_tx.source.inventory import SourceDisk
from mtunnel_tx.source.links import Dial, ProgressListener
from mtunnel_tx.source.outages import Outages
from mtunnel_tx.source.patience import PATIENCE, Patience
from mtunnel_tx.source.target import TargetApi


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Which VM, as which VM there, onto which storages and bridges (None: bridges are called the same there).

    `bwlimit_kib_s` replaces the limits of our own files where it is given; 0 is no limit. `delete`: remove the VM
    here once the target has it. `online`: move it while it runs. `drop_snapshots`: even where snapshots and bitmaps in
    its images are lost by that. `target_format`: the image format there; None: the same, where the storage there has
    it, else that storage's usual one. `patience`: how long it may take then. `strict_space`: the target must have room
    for all that the disks can become. `drop`: keys of the config that are not sent.
    """

    vmid: int
    target_vmid: int
    storages: Map
    bridges: Map | None = None
    bwlimit_kib_s: int | None = None
    delete: bool = False
    online: bool = False
    drop_snapshots: bool = False
    target_format: str | None = None
    strict_space: bool = False
    drop: tuple[str, ...] = ()
    patience: Patience = PATIENCE

    def bridge(self, name: str) -> str:
        """What a bridge is called at the target. Raises: BadRequest: not in the map."""
        return name if self.bridges is None else self.bridges.target(name)

    def bridge_or_same(self, name: str) -> str:
        """The same for a look that goes on: a name that is not in the map stands for itself."""
        return _try(self.bridge, name)

    def storage_or_same(self, name: str) -> str:
        """The same for a storage."""
        return _try(self.storages.target, name)


def _try(ask: Callable[[str], str], name: str) -> str:
    try:
        return ask(name)
    except BadRequest:
        return name


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceWorld(SourceHost):
    """Both hosts: this one, and the other one's API and websockets.

    `impatient`: fires when nobody wants to wait. `outages`: of the websockets.
    """

    progress: ProgressListener
    target: TargetApi
    dial: Dial
    impatient: Deferred[None] = field(default_factory=Deferred)
    outages: Outages | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a survey found: all that is sent, the target's node, and what it says it is (`repoid`).

    `conf`: the config as it is here. `runs`: the VM has a QEMU. `checked`: the target has looked at it.
    """

    conf: GuestConfig
    disks: tuple[SourceDisk, ...]
    node: str
    repoid: str
    runs: bool
    checked: bool = False
