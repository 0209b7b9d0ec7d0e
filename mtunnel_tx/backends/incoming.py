"""The config of a VM whose state comes from another host, with what its source says about the running VM."""

from __future__ import annotations

from mtunnel_tx.checks import FormatError
from mtunnel_tx.errors import refuse
from mtunnel_tx.ports.machines import Incoming
from mtunnel_tx.pve.drive import parse_drive
from mtunnel_tx.pve.guestconf import GuestConfig


def with_running_machine(conf: GuestConfig, incoming: Incoming) -> GuestConfig:
    """The config with the machine type that the VM runs with at its source; its other options stay."""
    if incoming.machine is None:
        return conf
    conf = conf.copy()
    options = conf.options.get("machine", "").split(",")
    kept = [part for part in options if "=" in part and not part.startswith("type=")]
    conf.options["machine"] = ",".join([f"type={incoming.machine}", *kept])
    return conf


def check_exports(conf: GuestConfig, incoming: Incoming) -> None:
    """Raises: TunnelError: `KEY: …`: an export is no drive of the config, or not the volume that is in it."""
    for key, volid in incoming.exports.items():
        try:
            volume = parse_drive(key, conf.options.get(key, "")).volume
        except FormatError as error:
            raise refuse(key, "there is no such drive to export") from error
        if volume != volid:
            raise refuse(key, f"volume '{volid}' is not the drive's")
