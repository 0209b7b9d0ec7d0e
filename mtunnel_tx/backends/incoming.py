"""What the source of a migration says about the running VM, and how it changes or contradicts the config."""

from __future__ import annotations

from dataclasses import replace

from mtunnel_tx.checks import FormatError
from mtunnel_tx.errors import refuse
from mtunnel_tx.ports.machines import Incoming
from mtunnel_tx.pve.drive import parse_drive
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.hardware import Hardware
from mtunnel_tx.pve.machinetype import parse_machine_type


def with_running_machine(hardware: Hardware, machine: str | None) -> Hardware:
    """The hardware with the machine type that the VM runs with at its source. Raises: TunnelError: `machine: …`."""
    if machine is None:
        return hardware
    try:
        return replace(hardware, machine=parse_machine_type(machine))
    except FormatError as error:
        raise refuse("machine", str(error)) from error


def check_exports(conf: GuestConfig, incoming: Incoming) -> None:
    """Raises: TunnelError: `KEY: …`: an export is no drive of the config, or not the volume that is in it."""
    for key, volid in incoming.exports.items():
        try:
            volume = parse_drive(key, conf.options.get(key, "")).volume
        except FormatError as error:
            raise refuse(key, "there is no such drive to export") from error
        if volume != volid:
            raise refuse(key, f"volume '{volid}' is not the drive's")
