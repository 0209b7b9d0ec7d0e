"""The `config` command: what the source says the VM is, checked key by key, volume by volume, and written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestrules import fill_macs, set_sizes, update_line
from mtunnel_tx.tunnel.claim import marked
from mtunnel_tx.tunnel.common import DONE, Result
from mtunnel_tx.tunnel.qemu.conditions import Conditions
from mtunnel_tx.tunnel.tunnel import Guest, Tunnel
from mtunnel_tx.wire.args import ConfigArgs


async def set_config(guest: Guest, args: ConfigArgs) -> Result:
    """Write the VM's config and firewall file; any failure leaves the config as it was.

    Source: protocol.md section 7.
    """
    tunnel = guest.tunnel
    # `disk` made volumes for mirroring, so the VM will be started here.
    conditions = Conditions(
        services=tunnel.services, rights=tunnel.rights, vmid=tunnel.vmid, runs_here=bool(tunnel.drives)
    )
    conditions.check_length("config", args.conf)
    conditions.check_length("firewall config", args.firewall or "")
    firewall = await _read_firewall(tunnel, conditions, args.firewall)
    conf, warnings = await tunnel.services.threads.run(tunnel.kind.read_config, args.conf, tunnel.vmid)
    _check_first(guest)
    sizes_bytes = await conditions.check(conf)
    complete = set_sizes(fill_macs(conf, tunnel.services.random_bytes), sizes_bytes)
    for text in warnings:
        tunnel.task.warn(text)
    if args.dropped:
        tunnel.task.line(f"left out by whoever moves it: {clean(', '.join(args.dropped))}")
    tunnel.task.line(update_line(tunnel.vmid, conf))
    async with _firewall_written(tunnel, firewall):
        await _write(guest, marked(complete, "migrate"))
    return DONE


async def _read_firewall(tunnel: Tunnel, conditions: Conditions, text: str | None) -> str | None:
    """Returns: the text as it will be written, empty where nothing of it is left; None: none was sent.

    Raises: PermissionDenied.
    """
    if text is None:
        return None
    canonical, warnings = await conditions.read_firewall(text)
    for warning in warnings:
        tunnel.task.warn(warning)
    return canonical


@asynccontextmanager
async def _firewall_written(tunnel: Tunnel, text: str | None) -> AsyncIterator[None]:
    """Write the firewall file; where what follows fails, the former one is put back."""
    if text is None:
        yield
        return
    former = tunnel.services.guests.read_firewall(tunnel.vmid)
    await tunnel.ledger.write("firewall")
    await _write_firewall(tunnel, text)
    try:
        yield
    except TunnelError:
        with suppress(TunnelError):
            await _write_firewall(tunnel, former or "")
        raise


async def _write_firewall(tunnel: Tunnel, text: str) -> None:
    """Write the file; an empty text removes it, as in Proxmox."""
    if text:
        await tunnel.services.guests.write_firewall(tunnel.vmid, text)
    else:
        await tunnel.services.guests.remove_firewall(tunnel.vmid)


def _check_first(guest: Guest) -> None:
    """Only the empty config of the claim may be replaced, or one of ours that was not written to its end."""
    lock = guest.conf.lock
    if lock is None:
        raise TunnelError("no lock found trying to remove 'create' lock")
    if lock != "create" and (guest.tunnel.ledger.owed.configured or lock not in guest.tunnel.ledger.owed.marks):
        raise TunnelError(f"found lock '{lock}' trying to remove 'create' lock")


async def _write(guest: Guest, conf: GuestConfig) -> None:
    """Write the config. If that or its record fails, put the former one back; the fold allows both states."""
    tunnel = guest.tunnel
    await tunnel.ledger.write("config")
    try:
        await tunnel.services.guests.write(tunnel.vmid, conf)
        await tunnel.ledger.write("configured")
    except TunnelError:
        with suppress(TunnelError):
            await tunnel.services.guests.write(tunnel.vmid, marked(guest.conf, "create"))
        raise
