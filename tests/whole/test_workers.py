"""`workers = 2`: the same daemon with its streams in processes of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import struct
import sys
import time
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.tls.certificate import fingerprint, make_certificate
from tests.leaks import assert_nothing_left, take_account
from tests.patience import patience_s, wait_for
from tests.whole.hostile import (
    RawWebsocket,
    frame,
    head,
    import_child,
    import_end,
    read_all,
    secure,
    start_import,
    stopped,
)
from tests.whole.moving import Move, kept, make_qcow2, moved, state_of
from tests.whole.node import NOBODY, Node
from tests.whole.peer import Tunnel, call

TREE = Path(__file__).parents[2]
WORKERS = 'workers = 2\nuser = "nobody"\n'
MIB = 1 << 20
STORAGE_SOCKET = "/run/qemu-server/100.storage"
NO_OTHER_PROGRAM = """\
import os, sys
if os.geteuid():
    sys.path.remove({tree!r})
"""
CHUNKS = [os.urandom(size) for size in (1, 125, 126, 65535, 65536, 1_000_000)]
ECHO = """\
#!{python}
import socket, sys
if sys.argv[1] == "import":
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[4].removeprefix("unix://"))
        listener.listen()
        print("ready", flush=True)
        stream = listener.accept()[0]
    while data := stream.recv(65536):
        stream.sendall(data)
"""
"""Its import sends everything back; all else that is asked of it succeeds and says nothing."""


def workers(node: Node) -> list[int]:
    """The process ids of all workers that take connections, in order of their numbers."""
    return [worker["pid"] for worker in node.ask(cmd="status")["workers"]]


def is_quiet(node: Node) -> bool:
    """No worker has a connection but command connections."""
    return [worker["busy"] for worker in node.ask(cmd="status")["workers"]] == [0, 0]


def worker_of(node: Node, sock: socket.socket) -> int:
    """The worker that has the other end of a connection."""
    ends = f":{node.port:04X} 0100007F:{sock.getsockname()[1]:04X} "
    line = next(line for line in Path("/proc/net/tcp").read_text().splitlines() if ends in line)
    inode = f"socket:[{line.split()[9]}]"
    return next(pid for pid in workers(node) if inode in descriptors(pid))


def descriptors(pid: int) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(path.readlink()))
    return found


def status_of(pid: int) -> dict[str, list[str]]:
    return {line.partition(":")[0]: line.split()[1:] for line in Path(f"/proc/{pid}/status").read_text().splitlines()}


def is_alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return status_of(pid)["State"][0] != "Z"
    except OSError:
        return False


class Case(SynchronousTestCase):
    extra = ""

    def setUp(self) -> None:
        self.node = Node(extra=WORKERS + self.extra)
        self.addCleanup(self.node.close)
        self.prepare()
        self.node.start()

    def prepare(self) -> None:
        """Before the daemon starts."""

    def open(self, vmid: int = 100) -> Tunnel:
        return Tunnel(self.node, vmid, storages="local", bridges="")

    def leave(self, tunnel: Tunnel) -> None:
        self.assertEqual(tunnel.ask(cmd="quit", cleanup=1), {"success": True})
        tunnel.leave()
        self.node.assert_idle()


class MigrationTests(Case):
    def test_a_whole_one(self) -> None:
        """And nothing of it stays in the workers."""
        pids = workers(self.node)
        before = [take_account(pid, self.node.root) for pid in pids]
        image = make_qcow2()
        move = Move(self.node, 100, image)
        move.run(*Move.STEPS)
        move.leave()
        found = state_of(self.node, 100)
        self.assertEqual(found, {**moved(100, image, "TASK OK"), **kept(found)})
        for pid, account in zip(pids, before, strict=True):
            assert_nothing_left(account, pid, self.node.root)

    def test_a_stream_that_is_cut(self) -> None:
        """All bytes are there, but nobody said that they are all: the importer must not take it for the end."""
        tunnel = self.open()
        start_import(tunnel)
        stream = tunnel.stream(STORAGE_SOCKET)
        stream.send(struct.pack("<Q", MIB) + bytes(MIB))
        wait_for("its bytes", lambda: self.node.ask(cmd="status")["tunnels"][0]["bytes_in"] > MIB)
        stream.drop()
        self.assertEqual(import_end(tunnel)["status"], "error")
        self.assertEqual(self.node.images(100), [])
        self.check_end_of_tunnel(tunnel)

    def check_end_of_tunnel(self, tunnel: Tunnel) -> None:
        """It takes its streams along."""
        start_import(tunnel)
        stream = tunnel.stream(STORAGE_SOCKET)
        stream.send(struct.pack("<Q", MIB) + bytes(1000))
        tunnel.commands.drop()
        self.assertIsNone(stream.read_to_end())
        stream.drop()
        self.node.assert_idle()
        self.assertEqual((self.node.guest(100), self.node.images(100)), (None, []))

    def test_killed_worker(self) -> None:
        """Its streams end, and their import with an error; the others go on; there is another worker soon."""
        tunnel = self.open()
        start_import(tunnel)
        ticket = tunnel.ask(cmd="ticket", path=STORAGE_SOCKET)["ticket"]
        wait_for("quiet", lambda: is_quiet(self.node))
        commands, before = worker_of(self.node, tunnel.commands.sock), workers(self.node)
        # The first of equals gets the next connection.
        blocker = self.node.connect() if commands == before[0] else None
        stream = RawWebsocket(self.node, 100, STORAGE_SOCKET, ticket)
        stream.send(frame(2, struct.pack("<Q", MIB) + bytes(1000)))
        victim = worker_of(self.node, stream.sock)
        self.assertNotEqual(victim, commands)
        os.kill(victim, signal.SIGKILL)
        self.assertIsNone(stream.read_close())
        stream.drop()
        self.assertEqual(import_end(tunnel)["status"], "error")
        self.assertEqual(self.node.images(100), [])
        wait_for("another worker", lambda: len(workers(self.node)) == 2 and victim not in workers(self.node))
        if blocker is not None:
            blocker.close()
        self.leave(tunnel)


class NoSuccessorTests(Case):
    """Nothing is kept for another daemon."""

    extra = "[limits]\nrestart_s = 0\n"

    def test_a_worker_that_hangs_is_killed(self) -> None:
        """It cannot keep a stream alive whose tunnel has ended."""
        tunnel = self.open()
        victim = worker_of(self.node, tunnel.commands.sock)
        os.kill(victim, signal.SIGSTOP)
        self.node.stop()
        self.assertFalse(is_alive(victim))
        tunnel.commands.drop()

    def test_they_die_with_the_daemon(self) -> None:
        pids, tunnel = workers(self.node), self.open()
        self.node.stop(signal.SIGKILL)
        wait_for("their end", lambda: not any(map(is_alive, pids)))
        tunnel.commands.drop()
        self.node.start()
        wait_for("the rollback", lambda: self.node.guest(100) is None)

    def test_they_end_with_the_daemon(self) -> None:
        pids, tunnel = workers(self.node), self.open()
        self.node.stop()
        self.assertFalse(any(map(is_alive, pids)))
        self.assertEqual(self.node.guest(100), None)
        tunnel.commands.drop()


class EchoTests(Case):
    extra = '[commands]\npvesm = "{root}/pvesm"'

    def prepare(self) -> None:
        program = self.node.root / "pvesm"
        program.write_text(ECHO.format(python=sys.executable))
        program.chmod(0o755)

    def ticket(self, tunnel: Tunnel) -> str:
        start_import(tunnel)
        return str(tunnel.ask(cmd="ticket", path=STORAGE_SOCKET)["ticket"])

    def test_every_byte(self) -> None:
        tunnel = self.open()
        self.check_both_directions(tunnel)
        self.check_bytes_behind_the_request(tunnel)
        self.leave(tunnel)

    def check_both_directions(self, tunnel: Tunnel) -> None:
        stream = RawWebsocket(self.node, 100, STORAGE_SOCKET, self.ticket(tunnel))
        for chunk in CHUNKS:
            stream.send(frame(2, chunk))
            self.assertTrue(self.read(stream, len(chunk)) == chunk)
        stream.send(frame(8, struct.pack(">H", 1000)))
        self.assertEqual(stream.read_close(), 1000)
        stream.drop()
        import_end(tunnel)

    def check_bytes_behind_the_request(self, tunnel: Tunnel) -> None:
        """What came with the request and after it, before the answer, comes first, whole and in order."""
        for data in (b"x", os.urandom(1000), os.urandom(MIB)):
            pieces = [data[at : at + 60_000] for at in range(0, len(data), 60_000)]
            more = b"".join(frame(2, piece) for piece in pieces) + frame(8, struct.pack(">H", 1000))
            stream = RawWebsocket(self.node, 100, STORAGE_SOCKET, self.ticket(tunnel), more=more)
            self.assertEqual(stream.status, 101)
            self.assertTrue(self.read(stream, len(data)) == data)
            self.assertEqual(stream.read_close(), 1000)
            stream.drop()
            import_end(tunnel)

    def read(self, stream: RawWebsocket, size_bytes: int) -> bytes:
        data = b""
        while len(data) < size_bytes and (received := stream.read_frame()) is not None:
            data += received[1]
        return data


class LimitTests(Case):
    extra = (
        "[limits]\nconnections_unauthenticated_per_address = 3\nhandshake_s = 1\nrequest_s = 1.5\nstall_s = 2\n"
        "body_bytes = 4096"
    )

    def status(self, *lines: str, token: bool = True) -> bytes:
        with secure(self.node) as sock:
            sock.sendall(head(self.node, "GET", "/version", "Connection: close", *lines, token=token))
            return read_all(sock)

    def test_unauthenticated_connections(self) -> None:
        early = [self.node.connect() for _ in range(3)]
        with self.node.connect() as one_more:
            self.assertEqual(read_all(one_more), b"")
        for sock in early:
            self.assertEqual(read_all(sock), b"")  # the handshake's time is over
            sock.close()
        with secure(self.node) as silent:
            began = time.monotonic()
            self.assertEqual(read_all(silent), b"")
            self.assertTrue(1.2 < time.monotonic() - began < 8)
        wait_for("a place", lambda: self.status().startswith(b"HTTP/1.1 200"))
        self.node.assert_idle()

    def test_refusals(self) -> None:
        path = f"/nodes/{self.node.name}/qemu/100/mtunnel"
        self.assertEqual(call(self.node, "POST", path, {"storages": "x" * 5000}).status, 413)
        began = time.monotonic()
        answer = self.status("Authorization: PVEAPIToken=a@b!c=d", token=False)
        self.assertTrue(answer.startswith(b"HTTP/1.1 401"), answer)
        self.assertTrue(2.8 < time.monotonic() - began < 10)
        self.assertIn("failed login from 127.0.0.1, number 1", self.node.log.read_text())

    def test_a_disk_that_takes_nothing(self) -> None:
        tunnel = self.open()
        start_import(tunnel)
        stream = tunnel.stream(STORAGE_SOCKET)
        with stopped(import_child(self.node)):
            stream.sock.settimeout(patience_s())
            with self.assertRaises(OSError):
                for _ in range(4096):
                    stream.send(bytes(65536))
        stream.drop()
        self.assertEqual(import_end(tunnel)["status"], "error")
        self.leave(tunnel)


class ProcessTests(Case):
    def check_privileges(self) -> None:
        for pid in workers(self.node):
            status = status_of(pid)
            owner = Path(f"/proc/{pid}/environ").stat().st_uid  # root: nobody of its user reads its memory
            self.assertEqual((status["NoNewPrivs"], status["Seccomp"], owner), (["1"], ["2"], 0))
            if os.geteuid() == 0:
                self.assertEqual(set(status["Uid"] + status["Gid"]), {str(NOBODY)})
                rights = {int(status[name][0], 16) for name in ("CapEff", "CapPrm")}
                self.assertEqual((status["Groups"], rights), ([], {0}))

    def test_another_certificate(self) -> None:
        """Those who show it have no privilege at all. What the API tells is the one in use."""
        self.check_privileges()
        tunnel = self.open()
        before = self.shown()
        files = make_certificate(self.node.name)
        (self.node.state / "tls/key.pem").write_bytes(files.key)
        (self.node.state / "tls/certificate.pem").write_bytes(files.certificate)
        self.assertEqual(self.told(), before)
        assert self.node.process is not None
        self.node.process.send_signal(signal.SIGHUP)
        wait_for("the new certificate", lambda: self.shown() == fingerprint(files.certificate))
        self.assertEqual(self.told(), fingerprint(files.certificate))
        self.leave(tunnel)

    def told(self) -> str:
        return str(call(self.node, "GET", "/nodes/localhost/certificates/info").json["data"][0]["fingerprint"])

    def shown(self) -> str:
        with secure(self.node) as sock:
            der = sock.getpeercert(binary_form=True)
        assert der is not None
        return fingerprint(ssl.DER_cert_to_PEM_cert(der).encode())

    def test_drain(self) -> None:
        pids, tunnel = workers(self.node), self.open()
        self.node.ask(cmd="drain")
        self.assertEqual(call(self.node, "POST", f"/nodes/{self.node.name}/qemu/101/mtunnel", {}).status, 409)
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()
        process: Any = self.node.process
        self.assertEqual(process.wait(patience_s()), 0)
        self.assertFalse(any(map(is_alive, pids)))
        self.node.process = None


class UserTests(SynchronousTestCase):
    def test_there_is_none(self) -> None:
        if os.geteuid() != 0:
            self.skipTest("only root's daemon becomes somebody else")
        node = Node(extra='workers = 1\nuser = "nobody-there"\n')
        self.addCleanup(node.close)
        node.launch()
        process: Any = node.process
        self.assertEqual(process.wait(patience_s()), 1)
        self.assertIn("cannot start: user: there is no user 'nobody-there'", node.log.read_text())
        node.process = None

    def test_it_cannot_read_the_program(self) -> None:
        """A checkout in somebody's own folder, say."""
        if os.geteuid() != 0:
            self.skipTest("only root's daemon becomes somebody else")
        node = ElsewhereNode(extra='workers = 1\nuser = "nobody"\n')
        self.addCleanup(node.close)
        closed = node.root / "closed"
        for package in ("mtunnel_tx", "twisted"):
            shutil.copytree(TREE / package, closed / package, ignore=shutil.ignore_patterns("__pycache__"))
        (node.root / "sitecustomize.py").write_text(NO_OTHER_PROGRAM.format(tree=str(TREE)))
        node.root.chmod(0o755)
        closed.chmod(0o700)
        node.launch()
        process: Any = node.process
        self.assertEqual(process.wait(patience_s()), 1)
        why = f"worker process cannot start: user 'nobody' cannot enter '{closed}'; it said: "
        self.assertIn(f"cannot start: {why}", node.log.read_text())
        node.process = None
        closed.chmod(0o755)
        node.start()


class ElsewhereNode(Node):
    """Its program is a copy, below the node's own folder."""

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, "PYTHONPATH": f"{self.root / 'closed'}{os.pathsep}{self.root}"}
