"""Destroy a VM: its config, its firewall rules and its disks."""

from __future__ import annotations

from dataclasses import dataclass

from mtunnel_tx.errors import WrongState
from mtunnel_tx.guests.changing import changing, new_change, settle_earlier
from mtunnel_tx.guests.plainhost import LOCK_S, PlainHost
from mtunnel_tx.guests.removalsteps import DESTROY, DESTROYED, finish_destruction
from mtunnel_tx.guests.volumes import own_volumes
from mtunnel_tx.pve.guestconf import GuestConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Destruction:
    """What goes with a VM, or went: `volumes` are its disks; `kept` those that another VM's config names."""

    vmid: int
    name: str
    volumes: tuple[str, ...]
    kept: tuple[str, ...] = ()


async def plan_destruction(host: PlainHost, vmid: int) -> Destruction:
    """What would go, for a question before. Raises: WrongState: it runs, is locked or protected."""
    await settle_earlier(host, vmid)
    conf = _require_removable(host, vmid)
    volumes = tuple(own_volumes(host, conf, vmid))
    return Destruction(vmid=vmid, name=conf.options.get("name", ""), volumes=volumes)


async def destroy(host: PlainHost, vmid: int) -> Destruction:
    """Remove a VM that is off. Once begun, an interruption only postpones the rest."""
    async with changing(host, new_change(host, vmid, DESTROY)) as work:
        async with host.guests.locked(vmid, LOCK_S):
            conf = _require_removable(host, vmid)
            await work.give_up(*own_volumes(host, conf, vmid))
            await work.write_marked(conf, DESTROYED)
        kept = await finish_destruction(host, work.change)
        name = conf.options.get("name", "")
        return Destruction(vmid=vmid, name=name, volumes=work.change.volumes, kept=tuple(kept))


def _require_removable(host: PlainHost, vmid: int) -> GuestConfig:
    conf = host.stopped(vmid)
    if conf.options.get("protection") == "1":
        raise WrongState(f"VM {vmid} is protected; allow it first: mtunnel vm set {vmid} protection=0")
    if vmid in host.journal.standing():
        raise WrongState(f"VM {vmid} came from another host: mtunnel status, mtunnel settle")
    return conf
