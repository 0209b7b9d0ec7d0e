"""The VMs: whether configs can be read, volumes are there, this host can run them; and what was left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from mtunnel_tx.checks import clean
from mtunnel_tx.checkup.finding import Finding, fine, problem, warning
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.guests.running import list_guests
from mtunnel_tx.guests.volumes import is_own
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestrules import iter_nics, iter_volumes


async def check_guests(host: PlainHost) -> AsyncIterator[Finding]:
    """Each VM of this node, then what belongs to none."""
    count, bad = 0, 0
    for vmid in host.vmids():
        count += 1
        found = [finding async for finding in _guest(host, vmid, host.guests.read(vmid))]
        bad += bool(found)
        for finding in found:
            yield finding
    yield fine("guests", f"{count} VMs{f', {count - bad} of them without a finding' if bad else ', all well'}")
    for row in list_guests(host):
        if row.status == "orphan" or "interrupted" in row.note:
            yield problem(f"VM {row.vmid}", row.note, row.note.rpartition(": ")[2])
    for vmid in host.journal.standing():
        text = "a migration did not end" if vmid not in host.vmids() else "a migration to here did not end"
        yield warning(f"VM {vmid}", text, "mtunnel status; then mtunnel settle")


async def _guest(host: PlainHost, vmid: int, conf: GuestConfig) -> AsyncIterator[Finding]:
    subject = f"VM {vmid}"
    if conf.lock is not None:
        yield warning(subject, f"is locked ({clean(conf.lock)})", f"mtunnel status; mtunnel vm unlock {vmid}")
    try:
        named = list(iter_volumes(conf))
        host.machines.check(conf)
    except TunnelError as error:
        yield problem(subject, f"cannot be started here: {clean(error.text)}", f"mtunnel vm set {vmid} KEY=VALUE")
        return
    for key, volid in named:
        if (text := await _volume_problem(host, vmid, volid)) is not None:
            yield problem(
                subject,
                f"{key}: {text}",
                f"mtunnel vm set {vmid} {key}=VOLUME, or mtunnel vm set {vmid} --delete {key}",
            )


async def _volume_problem(host: PlainHost, vmid: int, volid: str) -> str | None:
    if volid.startswith("/"):
        return None
    try:
        if await host.storage.size_bytes(volid) is None:
            return f"there is no volume '{clean(volid)}'"
        if is_own(host, volid, vmid) and (reason := await host.storage.refers_elsewhere(volid)):
            return f"'{clean(volid)}': {clean(reason)}"
    except TunnelError as error:
        return clean(error.text)
    return None


def needed_bridges(host: PlainHost) -> dict[str, list[int]]:
    """The bridges that configs name, each with its VMs."""
    needed: dict[str, list[int]] = {}
    for vmid in host.vmids():
        for bridge in _bridges(host.guests.read(vmid)):
            needed.setdefault(bridge, []).append(vmid)
    return needed


def needed_vlans(host: PlainHost) -> dict[str, list[int]]:
    """The bridges on which a network card has a VLAN, each with its VMs."""
    needed: dict[str, list[int]] = {}
    for vmid in host.vmids():
        for bridge in _bridges(host.guests.read(vmid), ("tag", "trunks")):
            needed.setdefault(bridge, []).append(vmid)
    return needed


def _bridges(conf: GuestConfig, keys: tuple[str, ...] = ()) -> Iterator[str]:
    """Args: keys: only those of cards with one of them."""
    try:
        nics = [nic for _, nic in iter_nics(conf) if not keys or not nic.keys().isdisjoint(keys)]
        yield from {nic["bridge"] for nic in nics if "bridge" in nic}
    except TunnelError:
        return
