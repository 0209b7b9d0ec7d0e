"""QEMU guests, as a value."""

from __future__ import annotations

from mtunnel_tx.pve.guestconf import read_sent_config
from mtunnel_tx.pve.guestlayout import QEMU_LAYOUT
from mtunnel_tx.tunnel.guestkind import GuestKind
from mtunnel_tx.tunnel.qemu.checking import check_move
from mtunnel_tx.tunnel.qemu.machine import watch
from mtunnel_tx.tunnel.qemu.table import QEMU_COMMANDS

QEMU = GuestKind(
    layout=QEMU_LAYOUT, commands=QEMU_COMMANDS, read_config=read_sent_config, check=check_move, watch=watch
)
