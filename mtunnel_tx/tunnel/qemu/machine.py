"""Commands about the virtual machine itself: start, resume, nbdstop, fstrim, stop."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mtunnel_tx.errors import TimedOut, TunnelError, WrongState
from mtunnel_tx.ports.events import MoveTold
from mtunnel_tx.ports.machines import Incoming
from mtunnel_tx.ports.moves import Expected, TransferKind
from mtunnel_tx.pve.drive import is_drive_key
from mtunnel_tx.pve.memory import configured_bytes
from mtunnel_tx.tunnel.common import DONE, Result
from mtunnel_tx.tunnel.tunnel import Guest, Tunnel
from mtunnel_tx.waiting import Task, pause
from mtunnel_tx.wire.args import NoArgs, StartArgs
from mtunnel_tx.wire.socketkinds import COMMANDS, MEMORY, NBD

WHOLE_S = 25.0
"""How long `resume` waits for the rest of the state; a source waits 30 s for the reply."""
UNSURE_S = 10.0
"""How long it is looked at, where QEMU did not answer when it was to let the VM run."""
_LOOK_S = 0.05


async def start(guest: Guest, args: StartArgs) -> Result:
    """Start the VM paused, waiting for its memory, its disks exported for mirroring."""
    tunnel, nbd = guest.tunnel, args.options.nbd
    for name, drive in (nbd or {}).items():
        _check_export(tunnel, name, drive)
    if not tunnel.ledger.owed.configured:
        raise WrongState(f"VM {tunnel.vmid} has no config yet")
    if tunnel.services.hypervisor.running(tunnel.vmid):
        raise WrongState(f"VM {tunnel.vmid} already running")
    conf = guest.conf.copy()
    conf.options.update({name: str(drive["drivestr"]) for name, drive in (nbd or {}).items()})
    memory = Expected(label="memory", kind=TransferKind.MEMORY, total_bytes=configured_bytes(conf.options))
    await tunnel.ledger.write("starting")
    spice_port = await tunnel.services.hypervisor.start(tunnel.vmid, conf, _incoming(tunnel, args), tunnel.task.line)
    await tunnel.claim.note_machine()
    tunnel.watch = Task(watch(tunnel))
    tunnel.tell(MoveTold(tunnel=tunnel.facts, said=(memory,)))
    return _started(tunnel, nbd, spice_port)


def _incoming(tunnel: Tunnel, args: StartArgs) -> Incoming:
    nbd = args.options.nbd
    return Incoming(
        migrate_socket=tunnel.sockets.file(MEMORY),
        nbd_socket=tunnel.sockets.file(NBD) if nbd is not None else None,
        exports={name: str(drive["volid"]) for name, drive in (nbd or {}).items()},
        from_node=args.options.migratedfrom,
        machine=args.params.forcemachine,
        cpu=args.params.forcecpu,
        nets_host_mtu=args.params.nets_host_mtu,
        spice_ticket=args.options.spice_ticket,
        postcopy=args.options.postcopy,
    )


def _started(tunnel: Tunnel, nbd: Mapping[str, Any] | None, spice_port: int | None) -> Result:
    addr = tunnel.sockets.add(MEMORY).name
    unix_sockets = [tunnel.sockets.add(NBD).name] if nbd is not None else []
    result: dict[str, Any] = {
        "migrate": {"proto": "unix", "addr": addr, "uri": f"unix:{addr}", "unix_sockets": unix_sockets}
    }
    if nbd:
        result["drives"] = {name: _exported(name, drive, unix_sockets[0]) for name, drive in nbd.items()}
    if spice_port is not None:
        result["spice_port"] = spice_port
    return result


def _exported(name: str, drive: Mapping[str, Any], socket: str) -> Result:
    uri = f"nbd:unix:{socket}:exportname=drive-{name}"
    return {"drivestr": drive["drivestr"], "volid": drive["volid"], "nbd_uri": uri}


async def watch(tunnel: Tunnel) -> None:
    """Record the moment when the whole state is here; it decides who owns the VM."""
    try:
        await tunnel.services.hypervisor.wait_whole(tunnel.vmid)
        await tunnel.ledger.note("whole")
    except TunnelError as error:
        tunnel.task.line(f"VM {tunnel.vmid} ended before its state was complete: {error.text}")


def _check_export(tunnel: Tunnel, name: str, drive: object) -> None:
    """Raises: TunnelError: the drive is none that `disk` made, or is not sent exactly as `disk` replied."""
    sent: Mapping[str, Any] = drive if isinstance(drive, Mapping) else {}
    volid, drivestr = sent.get("volid"), sent.get("drivestr")
    if not is_drive_key(name):
        raise TunnelError(f"NBD volume '{name}' is no drive")
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
    """Let the VM run, once its whole state is here and everything of it is on disk.

    Raises: TunnelError: it does not run. Where that is not known, the source has no answer.
    """
    tunnel, services = guest.tunnel, guest.tunnel.services
    partly = not await _until_ready(tunnel)
    machine = await tunnel.claim.machine_state()
    if machine.status == "off":
        raise WrongState(f"VM {tunnel.vmid} not running")
    if machine.status == "inmigrate":
        raise WrongState(f"the state of VM {tunnel.vmid} has not arrived in full")
    if machine.status != "running":
        await services.storage.sync(tunnel.own.volumes)
        await tunnel.ledger.write("resuming_partly" if partly else "resuming")
        await _let_run(tunnel, partly=partly)
        await tunnel.ledger.note("resumed")
    return DONE


async def _let_run(tunnel: Tunnel, *, partly: bool) -> None:
    """Raises: WrongState: it does not run. Any other error: it may run, and the source was not told no."""
    try:
        await tunnel.services.hypervisor.resume(tunnel.vmid, partly=partly)
    except WrongState:
        raise
    except TunnelError as error:
        if not await _is_seen_running(tunnel):
            tunnel.task.warn(f"VM {tunnel.vmid} was told to run, and nobody knows whether it does: {error.text}")
            # An answer would be taken for a no.
            tunnel.sockets.abort_streams((COMMANDS,))
            await tunnel.sockets.wait_for_end(COMMANDS, tunnel.services.clock, UNSURE_S)
            raise


async def _is_seen_running(tunnel: Tunnel) -> bool:
    clock = tunnel.services.clock
    end_s = clock.seconds() + UNSURE_S
    while clock.seconds() < end_s:
        with suppress(TunnelError):
            if (await tunnel.claim.machine_state()).status == "running":
                return True
        await pause(clock, _LOOK_S)
    return False


async def _until_ready(tunnel: Tunnel) -> bool:
    """Wait until the VM can run here. Returns: whether it is whole; else the rest of its memory comes by post-copy.

    Raises: TimedOut: neither.
    """
    clock, watch = tunnel.services.clock, tunnel.watch
    end_s = clock.seconds() + WHOLE_S
    while watch is not None and not await watch.wait(clock, min(_LOOK_S, WHOLE_S)):
        machine = await tunnel.claim.machine_state()
        if machine.partly and not machine.cut and machine.status == "paused":
            return False
        if clock.seconds() >= end_s:
            raise TimedOut(f"VM {tunnel.vmid} still waits for its state")
    return True


async def stop_nbd(guest: Guest, _args: NoArgs) -> Result:
    """`nbdstop`: stop the disk exports."""
    await guest.tunnel.services.hypervisor.stop_nbd(guest.tunnel.vmid)
    return DONE


async def trim(guest: Guest, _args: NoArgs) -> Result:
    """`fstrim`: never an error."""
    await guest.tunnel.services.hypervisor.trim(guest.tunnel.vmid, guest.tunnel.task.line)
    return DONE


async def stop(guest: Guest, _args: NoArgs) -> Result:
    """End the VM; success where it is off. Raises: WrongState: it was told to run here."""
    tunnel = guest.tunnel
    if tunnel.ledger.owed.resuming and tunnel.claim.runs():
        raise WrongState(f"refusing to stop VM {tunnel.vmid}: it was told to run here")
    await tunnel.claim.stop_machine()
    return DONE
