"""`mtunnel vm console` and `vnc`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred

from mtunnel_tx.cli.vm.program import Actions, Answer, add_guest_action
from mtunnel_tx.cli.vm.terminal import attach
from mtunnel_tx.cli.vm.vncport import listen_vnc
from mtunnel_tx.errors import BadRequest
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.pve.guestconf import GuestConfig

_PORT = re.compile(r"(?:(\[[0-9a-fA-F:.]+\]|[^:\[\]]+):)?(\d{1,5})")
_LOOPBACK = "127.0.0.1"


def configure(actions: Actions) -> None:
    """Add these actions."""
    console = add_guest_action(
        actions, "console", _console, "connect this terminal to a VM's serial port; Ctrl-] leaves it", qm="terminal"
    )
    console.add_argument("--port", type=int, choices=range(4), default=0, help="which serial port (default: 0)")
    screen = add_guest_action(
        actions, "vnc", _vnc, "say where a VM's screen can be seen, or make it a port until Ctrl-C", qm="vncproxy"
    )
    screen.add_argument(
        "--listen",
        type=read_address,
        metavar="[ADDRESS:]PORT",
        help="a port for viewers, 0 for any; whoever reaches it sees and uses the screen (default address: 127.0.0.1)",
    )


def read_address(text: str) -> tuple[str, int]:
    """An address and a port from the command line."""
    match = _PORT.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not [ADDRESS:]PORT")
    return (match[1] or _LOOPBACK).strip("[]"), int(match[2])


async def _console(args: argparse.Namespace, host: PlainHost) -> Answer:
    vmid, name = host.find(args.guest), f"serial{args.port}"
    if name not in host.guests.read(vmid).options:
        raise BadRequest(f"VM {vmid} has no {name}; from its next start on: mtunnel vm set {vmid} {name}=socket")
    path = await host.machines.console(vmid, name)
    return Answer({"vmid": vmid, "socket": str(path)}, then=lambda: attach(path, f"{name} of VM {vmid}"))


async def _vnc(args: argparse.Namespace, host: PlainHost) -> Answer:
    vmid = host.find(args.guest)
    if not _has_screen(host.guests.read(vmid)):
        raise BadRequest(f"VM {vmid} has no screen (vga); look at its serial port: mtunnel vm console {vmid}")
    path = await host.machines.console(vmid, "vnc")
    if args.listen is None:
        return Answer({"vmid": vmid, "socket": str(path)}, _hints(path, vmid))
    address, port = args.listen
    listening = await listen_vnc(path, address, port)
    host.note(f"the screen of VM {vmid} is at {listening.shown}; Ctrl-C ends that")
    try:
        await Deferred()
    except CancelledError:
        await listening.close()
    return Answer()


def _hints(path: Path, vmid: int) -> list[str]:
    return [
        f"socket: {path}",
        f"from here: mtunnel vm vnc {vmid} --listen 5900, then a viewer at 127.0.0.1:5900",
        f"from elsewhere: ssh -L 5900:{path} root@THIS-HOST, then a viewer at 127.0.0.1:5900",
    ]


def _has_screen(conf: GuestConfig) -> bool:
    kind = conf.options.get("vga", "std").removeprefix("type=").partition(",")[0]
    return not kind.startswith(("serial", "none"))
