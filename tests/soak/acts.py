"""What peers do, each from its beginning to its end: honest ones, clumsy ones, hostile ones.

An act is given a node, a VMID that is its own, and a source of chance. It raises AssertionError where the daemon does
not do what it should; that its own connection is lost is for the act to bear.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from tests.fuzz.seeds import seeds
from tests.patience import patience_s
from tests.whole.moving import Move, make_qcow2
from tests.whole.node import Node
from tests.whole.peer import Tunnel, Websocket, call, tls_context

IMAGE = make_qcow2()
SEEDS = seeds()
LOST = (OSError, ssl.SSLError)
ONE_CHANGE_BYTES = 6


def move(node: Node, vmid: int, chance: Random) -> None:
    """A migration that comes to its end; the VM is removed again."""
    source = Move(node, vmid, IMAGE)
    source.run(*Move.STEPS)
    source.tunnel.leave()
    assert "name: moved" in (node.guest(vmid) or ""), "the VM is not there"
    _remove(node, vmid)


def _remove(node: Node, vmid: int) -> None:
    folder = node.storage / "images" / str(vmid)
    for path in (*folder.iterdir(), node.guest_file(vmid), node.pve / "firewall" / f"{vmid}.fw"):
        path.unlink(missing_ok=True)
    folder.rmdir()


def clean_up(node: Node, vmid: int, chance: Random) -> None:
    """A source that gives up in an orderly way."""
    source = Move(node, vmid, IMAGE)
    source.run(*Move.STEPS[: chance.randrange(1, 5)])
    source.ask(cmd="quit", cleanup=1)
    source.tunnel.leave()


def vanish(node: Node, vmid: int, chance: Random) -> None:
    """A source that is gone, between two commands or within a stream."""
    source = Move(node, vmid, IMAGE)
    source.run(*Move.STEPS[: chance.randrange(1, Move.GIVEN_UP)])
    if chance.random() < 0.5:
        stream = source.begin("raw")
        stream.send(source.payload("raw")[: chance.randrange(100_000)])
    _end(source.tunnel.commands, chance)


def _end(connection: Websocket, chance: Random) -> None:
    """Reset, or end without a word."""
    if chance.random() < 0.5:
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.drop()


def break_stream(node: Node, vmid: int, chance: Random) -> None:
    """A stream that breaks off: the import fails, the tunnel lives."""
    source = Move(node, vmid, IMAGE)
    stream = source.begin("qcow2")
    stream.send(source.payload("qcow2")[: chance.randrange(8, 600_000)])
    _end(stream, chance)
    reply = source.tunnel.ask(cmd="query-disk-import")
    while reply.get("status") == "pending":
        reply = source.tunnel.ask(cmd="query-disk-import")
    assert reply.get("status") == "error", reply
    source.ask(cmd="quit", cleanup=1)
    source.tunnel.leave()


def never_come(node: Node, vmid: int, chance: Random) -> None:
    """A tunnel that is opened, and nobody comes."""
    call(node, "POST", f"/nodes/{node.name}/qemu/{vmid}/mtunnel", {})


def changed_lines(node: Node, vmid: int, chance: Random) -> None:
    """Lines that are real ones, changed."""
    tunnel = Tunnel(node, vmid)
    for _ in range(30):
        line = _changed(chance.choice(SEEDS["lines"]), chance).replace(b"\n", b" ")
        tunnel.commands.send(line + b"\n")
        reply = json.loads(tunnel.commands.read_line())
        assert isinstance(reply["success"], bool), reply
    _end(tunnel.commands, chance)
    # What it made for good (`unlock` and `quit` may be among the lines) goes as well.
    _forget(node, vmid)


def _forget(node: Node, vmid: int) -> None:
    for _ in range(500):
        if not any(tunnel["vmid"] == vmid for tunnel in node.ask(cmd="status")["tunnels"]):
            break
    with contextlib.suppress(OSError):
        _remove(node, vmid)


def _changed(data: bytes, chance: Random) -> bytes:
    for _ in range(chance.randrange(3)):
        at = chance.randrange(len(data) + 1)
        data = data[:at] + chance.randbytes(chance.randrange(ONE_CHANGE_BYTES)) + data[at + chance.randrange(4) :]
    return data


def long_line(node: Node, vmid: int, chance: Random) -> None:
    """A line without an end."""
    tunnel = Tunnel(node, vmid)
    with contextlib.suppress(*LOST):
        for _ in range(6):
            tunnel.commands.send(b"x" * (1 << 20))
    _end(tunnel.commands, chance)


def wrong_frames(node: Node, vmid: int, chance: Random) -> None:
    """Frames that are none."""
    tunnel = Tunnel(node, vmid)
    with contextlib.suppress(*LOST):
        tunnel.commands.sock.sendall(_changed(chance.choice(SEEDS["frames"]), chance) + chance.randbytes(200))
    _end(tunnel.commands, chance)


def wrong_ticket(node: Node, vmid: int, chance: Random) -> None:
    """A guess; the refusal comes late, and the guesser does not wait for it."""
    with contextlib.suppress(*LOST), tls_context().wrap_socket(_connect(node)) as sock:
        query = f"ticket={SEEDS['ticket'][0].decode()}&socket=/run/qemu-server/{vmid}.mtunnel"
        sock.sendall(_request(node, f"/nodes/{node.name}/qemu/{vmid}/mtunnelwebsocket?{query}", node.authorization))


def wrong_token(node: Node, vmid: int, chance: Random) -> None:
    with contextlib.suppress(*LOST), tls_context().wrap_socket(_connect(node)) as sock:
        sock.sendall(_request(node, "/version", "PVEAPIToken=mig@pve!t1=wrong"))


def no_tls(node: Node, vmid: int, chance: Random) -> None:
    with contextlib.suppress(*LOST), _connect(node) as sock:
        sock.sendall(chance.randbytes(chance.randrange(2000)))


def no_http(node: Node, vmid: int, chance: Random) -> None:
    with contextlib.suppress(*LOST), tls_context().wrap_socket(_connect(node)) as sock:
        sock.sendall(_changed(_request(node, "/version", "x"), chance)[: chance.randrange(200)])
        sock.sendall(chance.randbytes(chance.randrange(2000)))


def _connect(node: Node) -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.port), patience_s())


def _request(node: Node, path: str, authorization: str) -> bytes:
    return f"GET /api2/json{path} HTTP/1.1\r\nHost: h\r\nAuthorization: {authorization}\r\n\r\n".encode()


Act = Callable[[Node, int, Random], None]
ACTS: Mapping[Act, int] = {
    move: 4,
    clean_up: 4,
    vanish: 6,
    break_stream: 4,
    never_come: 2,
    changed_lines: 3,
    long_line: 1,
    wrong_frames: 4,
    wrong_ticket: 2,
    wrong_token: 2,
    no_tls: 3,
    no_http: 3,
}
"""How often each, against the others."""


def images_left(node: Node) -> list[Path]:
    """What lies in the storage; every act removes what it was given."""
    return [path for path in node.root.glob("**/images/*/*") if path.is_file()]
