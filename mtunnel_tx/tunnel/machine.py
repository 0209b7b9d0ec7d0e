"""Commands about the virtual machine itself: start, resume, nbdstop, fstrim, stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtunnel_tx.errors import TunnelError, WrongState
from mtunnel_tx.tunnel.live import Guest, Tunnel
from mtunnel_tx.tunnel.session import DONE, Result
from mtunnel_tx.wire.args import NoArgs, Start


async def start(guest: Guest, args: Start) -> Result:
    """Check what would be exported; this version receives stopped VMs only."""
    for name, drive in (args.options.nbd or {}).items():
        _check_export(guest.tunnel, name, drive)
    raise WrongState(f"VM {guest.tunnel.vmid} cannot be started: running VMs are not received by this version")


def _check_export(tunnel: Tunnel, name: str, drive: object) -> None:
    """A drive to export must be one that `disk` made, told in the very words of its reply."""
    sent: Mapping[str, Any] = drive if isinstance(drive, Mapping) else {}
    volid, drivestr = sent.get("volid"), sent.get("drivestr")
    if not volid:
        raise TunnelError(f"No volid set for NBD volume '{name}'")
    if not drivestr:
        raise TunnelError(f"No drivestr set for NBD volume '{name}:{volid}'")
    for key in sorted(set(sent) - {"volid", "drivestr", "success"}):
        raise TunnelError(f"Unknown NBD volume key for '{name}:{volid}': '{key}'")
    expected = tunnel.drives.get(str(volid))
    if expected is None:
        raise TunnelError(f"Unknown NBD volume '{name}:{volid}'")
    if drivestr != expected:
        raise TunnelError(f"NBD mismatch for '{name}': '{drivestr}' vs' {expected}")


async def resume(guest: Guest, _args: NoArgs) -> Result:
    """Let the VM run."""
    await guest.tunnel.world.hypervisor.resume(guest.tunnel.vmid)
    return DONE


async def stop_nbd(guest: Guest, _args: NoArgs) -> Result:
    """`nbdstop`: stop the disk exports."""
    await guest.tunnel.world.hypervisor.stop_nbd(guest.tunnel.vmid)
    return DONE


async def trim(guest: Guest, _args: NoArgs) -> Result:
    """`fstrim`: never an error."""
    await guest.tunnel.world.hypervisor.trim(guest.tunnel.vmid, guest.tunnel.task.line)
    return DONE


async def stop(guest: Guest, _args: NoArgs) -> Result:
    """End the VM; success where it is off."""
    await guest.tunnel.world.hypervisor.stop(guest.tunnel.vmid)
    return DONE
