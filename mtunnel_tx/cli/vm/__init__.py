"""`mtunnel vm`: the virtual machines of a host without Proxmox, by hand."""

from __future__ import annotations

from typing import Any

from mtunnel_tx.cli.vm import changing, consoles, disks, making, running, snapshots


def configure(subparsers: Any) -> None:
    """Add `vm` to the commands of `mtunnel`."""
    text = "make, import, run, change and remove the VMs of a host without Proxmox"
    parser = subparsers.add_parser("vm", help=text, description=f"{text[0].upper()}{text[1:]}.")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for module in (making, running, changing, disks, snapshots, consoles):
        module.configure(actions)
