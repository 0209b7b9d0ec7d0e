"""The `config` command: what the source says the VM is, checked key by key, volume by volume, and written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from mtunnel_tx.errors import InvalidParameters, TunnelError
from mtunnel_tx.pve.cloudinit import iter_snippets
from mtunnel_tx.pve.firewall import format_firewall
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestkeys import check_config_privileges
from mtunnel_tx.pve.guestrules import (
    check_consistency,
    fill_macs,
    iter_drives,
    iter_volumes,
    require_options,
    set_sizes,
    update_line,
)
from mtunnel_tx.pve.needs import Need
from mtunnel_tx.pve.volume import find_owner, parse_volume_id
from mtunnel_tx.tunnel.checks import check_snippet, check_volume_access, known_storage
from mtunnel_tx.tunnel.claim import marked
from mtunnel_tx.tunnel.common import DONE, Result
from mtunnel_tx.tunnel.tunnel import Guest, Tunnel
from mtunnel_tx.wire.args import ConfigArgs

FIREWALL = Need("/vms/{vmid}", ("VM.Config.Network",), "for firewall rules")
_DISK_CONTENT = frozenset(("images", "rootdir", "iso", "import"))
"""What a drive can hold; scripts, templates and backups are none."""


async def set_config(guest: Guest, args: ConfigArgs) -> Result:
    """Write the VM's config and firewall file; any failure leaves the config as it was.

    Source: protocol.md section 7.
    """
    tunnel = guest.tunnel
    _check_length(tunnel, "config", args.conf)
    _check_length(tunnel, "firewall config", args.firewall or "")
    firewall = await _read_firewall(tunnel, args.firewall)
    conf, warnings = await tunnel.services.threads.run(tunnel.kind.read_config, args.conf, tunnel.vmid)
    _check_first(guest)
    complete = await _complete(tunnel, conf)
    for text in warnings:
        tunnel.task.warn(text)
    tunnel.task.line(update_line(tunnel.vmid, conf))
    async with _firewall_written(tunnel, firewall):
        await _write(guest, marked(complete, "migrate"))
    return DONE


def _check_length(tunnel: Tunnel, what: str, text: str) -> None:
    most = tunnel.services.limits.config_bytes
    if len(text.encode("utf-8", "replace")) > most:
        raise TunnelError(f"vm {tunnel.vmid} - {what} is longer than {most} bytes")


async def _read_firewall(tunnel: Tunnel, text: str | None) -> str | None:
    """Returns: the text as it will be written, empty where nothing of it is left; None: none was sent.

    Raises: PermissionDenied.
    """
    if text is None:
        return None
    canonical, warnings = await tunnel.services.threads.run(format_firewall, text)
    if canonical:
        FIREWALL.check(tunnel.rights, {"vmid": tunnel.vmid})
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


async def _complete(tunnel: Tunnel, conf: GuestConfig) -> GuestConfig:
    """The config as it will be written, after every check."""
    require_options(conf)
    await _check_hookscript(tunnel, conf)
    check_config_privileges(conf, tunnel.vmid, tunnel.rights)
    if "vmstatestorage" in conf.options:
        known_storage(tunnel.services, conf.options["vmstatestorage"])
    check_consistency(conf)
    if tunnel.drives:
        # `disk` made volumes for mirroring, so the VM will be started here. A stopped VM need not be able to run here.
        tunnel.services.hypervisor.check(conf)
    refuse_allocation(conf)
    for _, snippet in iter_snippets(conf):
        check_snippet(tunnel.services, tunnel.rights, snippet)
    sizes_bytes = {key: await _check_volume(tunnel, volume) for key, volume in iter_volumes(conf)}
    return set_sizes(fill_macs(conf, tunnel.services.random_bytes), sizes_bytes)


def refuse_allocation(conf: GuestConfig) -> None:
    """Raises: TunnelError: a drive's value that would make a new volume."""
    for key, drive in iter_drives(conf):
        if drive.allocates:
            raise TunnelError(f"{key}: '{drive.volume}' would make a new volume, which a tunnel's config may not")


async def _check_hookscript(tunnel: Tunnel, conf: GuestConfig) -> None:
    script = conf.options.get("hookscript")
    if script is not None and await _size_of(tunnel, script) is None:
        raise InvalidParameters({"hookscript": f"script '{script}' does not exist\n"})


async def _size_of(tunnel: Tunnel, volid: str) -> int | None:
    try:
        return await tunnel.services.storage.size_bytes(str(parse_volume_id(volid)))
    except TunnelError:
        return None


async def _check_volume(tunnel: Tunnel, text: str) -> int:
    """Returns: the actual size in bytes of a volume that is there and that the token may use."""
    if text.startswith("/"):
        raise TunnelError("Only root can pass arbitrary filesystem paths.")
    volume = parse_volume_id(text)
    entry = known_storage(tunnel.services, volume.storage)
    check_volume_access(entry, tunnel.rights, volume, tunnel.vmid)
    content = find_owner(entry, volume.name).content
    if content not in _DISK_CONTENT:
        raise TunnelError(f"volume '{volume}' is no disk image, but of content '{content}'")
    size_bytes = await tunnel.services.storage.size_bytes(str(volume))
    if size_bytes is None:
        raise TunnelError(f"volume '{volume}' does not exist")
    reason = await tunnel.services.storage.refers_elsewhere(str(volume))
    if reason is not None:
        raise TunnelError(f"volume '{volume}': {reason}")
    return size_bytes


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
