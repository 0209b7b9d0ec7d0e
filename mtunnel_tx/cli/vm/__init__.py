"""`mtunnel vm`: the virtual machines of a host without Proxmox, by hand."""

from __future__ import annotations

from typing import Any

from mtunnel_tx.cli.parser import Parser
from mtunnel_tx.cli.vm import changing, consoles, disks, making, running, snapshots

_SYNONYMS = {"list": ("ls",), "destroy": ("remove", "delete", "rm", "undefine"), "show": ("config", "info")}
"""What other programs call an action."""


def _hint(word: str, value: str) -> str:
    meant = [name for name, others in _SYNONYMS.items() if word in others]
    return f"; did you mean '{meant[0]}'?" if meant else snapshots.hint_at_removal(word, value)


def configure(subparsers: Any) -> None:
    """Add `vm` to the commands of `mtunnel`."""
    text = "make, import, run, change and remove the VMs of a host without Proxmox"
    parser = subparsers.add_parser("vm", help=text, description=f"{text[0].upper()}{text[1:]}.")
    if isinstance(parser, Parser):
        parser.hint = _hint
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for module in (making, running, changing, disks, snapshots, consoles):
        module.configure(actions)
