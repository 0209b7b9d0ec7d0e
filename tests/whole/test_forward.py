"""One endpoint for a cluster: what is not for this daemon goes to another node's, or to the node's own API."""

from __future__ import annotations

import signal
import socket
import struct
import tempfile
from pathlib import Path
from urllib.parse import quote

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import wait_for
from tests.proxmox.api import StandInApi
from tests.proxmox.disks import MIB, make_guest
from tests.proxmox.source import Disk, Failed, Released, Source
from tests.whole.node import TOKEN, Node
from tests.whole.peer import Tunnel, Websocket, call

WRONG = ":".join(["AB"] * 32)


def entry(node: Node, fingerprint: str | None = None) -> str:
    """Configuration that leads to a node."""
    return (
        f"[forward.nodes.{node.name}]\n"
        f'host = "127.0.0.1"\nport = {node.port}\nfingerprint = "{fingerprint or node.fingerprint}"\n'
    )


class Via(Node):
    """A node, for those who ask for it at another one's port."""

    def __init__(self, near: Node, far: Node) -> None:
        self.name = far.name
        self.port = near.port


class ApiTests(SynchronousTestCase):
    """Calls that we do not know."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.api = StandInApi(Path(folder.name))
        self.addCleanup(self.api.close)

    def start(self, fingerprint: str | None = None) -> Node:
        fingerprint = fingerprint or self.api.fingerprint
        extra = f'[forward]\napi = "https://127.0.0.1:{self.api.port}"\nfingerprint = "{fingerprint}"\n'
        node = Node(extra=extra)
        self.addCleanup(node.close)
        return node.start()

    def test_passed_on_as_they_are(self) -> None:
        node = self.start()
        uri = "/nodes/pvetest/qemu/100/config?a=%2F%3A+%20&b=%C3%A4&c"
        answer = call(node, "GET", uri)
        self.assertEqual((answer.status, answer.json), (200, {"data": ["theirs"]}))
        asked = self.api.asked[0]
        self.assertEqual((asked.method, asked.uri), ("GET", f"/api2/json{uri}"))
        self.assertEqual(asked.headers["Authorization"], node.authorization)
        self.assertEqual(asked.headers["X-Mtunnel-Hops"], "1")

    def test_body_and_error(self) -> None:
        node = self.start()
        self.api.answer(403, "Permission check failed (/vms/100, VM.Audit)", {"data": None})
        answer = call(node, "POST", "/nodes/localhost/qemu/100/status/start", {"skiplock": "1", "x": "a b"})
        self.assertEqual((answer.status, answer.reason), (403, "Permission check failed (/vms/100, VM.Audit)"))
        asked = self.api.asked[0]
        self.assertEqual(asked.body, b"skiplock=1&x=a+b")
        self.assertEqual(asked.headers["Content-Type"], "application/x-www-form-urlencoded")

    def test_they_judge_the_token_and_we_its_shape(self) -> None:
        node = self.start()
        call(node, "GET", "/access/roles", Authorization="PVEAPIToken=root@pam!theirs=1234")
        self.assertEqual(self.api.asked[0].headers["Authorization"], "PVEAPIToken=root@pam!theirs=1234")
        for header, reason in (("Basic abc", "No ticket"), ("PVEAPIToken=nobody=1", "Authentication failed!")):
            answer = call(node, "GET", "/access/roles", Authorization=header)
            self.assertEqual((answer.status, answer.reason), (401, reason))
        self.assertEqual(len(self.api.asked), 1)

    def test_ours_stay_ours(self) -> None:
        node = self.start()
        self.assertEqual(call(node, "GET", "/version").json["data"]["release"], "9.2")
        self.assertEqual(call(node, "GET", "/nodes/elsewhere/storage").status, 400)
        self.assertEqual(self.api.asked, [])

    def test_wrong_certificate_gets_no_token(self) -> None:
        answer = call(self.start(WRONG), "GET", "/access/roles")
        self.assertEqual(answer.status, 502)
        self.assertEqual(self.api.asked, [])

    def test_loops_end(self) -> None:
        answer = call(self.start(), "GET", "/access/roles", **{"X-Mtunnel-Hops": "2"})
        self.assertEqual((answer.status, answer.reason), (508, "request was passed on too often"))
        self.assertEqual(self.api.asked, [])

    def test_nobody_there(self) -> None:
        node = self.start()
        self.api.close()
        self.assertEqual(call(node, "GET", "/access/roles").status, 502)
        self.api = StandInApi(node.root)


class NodeTests(SynchronousTestCase):
    """Migrations to `pveb` by way of `pvea`."""

    def setUp(self) -> None:
        self.far = Node("pveb").start()
        self.addCleanup(self.far.close)
        self.near = Node("pvea", extra=entry(self.far)).start()
        self.addCleanup(self.near.close)

    def source(self) -> Source:
        self.home = Node("pvehome")
        self.addCleanup(self.home.close)
        self.disks = make_guest(self.home)
        source = Source(self.home, self.near, Released())
        self.addCleanup(source.close)
        source.node = "pveb"
        source.open()
        return source

    def sockets(self) -> int:
        """How many the daemon in between has open."""
        return self.near.left_over()["descriptors"].count("socket")

    def await_end(self) -> None:
        wait_for("the end of the tunnel", lambda: not self.far.ask(cmd="status")["tunnels"])
        self.assertEqual(self.far.left_over()["journals"], [])
        wait_for("the end of the streams", lambda: self.sockets() <= self.idle)

    def test_whole_migration(self) -> None:
        self.idle = self.sockets()
        source = self.source()
        volumes = {disk.key: source.send(disk) for disk in self.disks}
        source.define(volumes)
        source.finish()
        self.assertEqual(source.leave(), "")
        for disk in self.disks:
            file = self.far.storage / "images" / volumes[disk.key].partition(":")[2]
            self.assertEqual(file.read_bytes(), disk.file.read_bytes())
        self.await_end()
        self.assertNotIn("lock", self.far.guest(200) or "lock")
        self.assertIsNone(self.near.guest(200))

    def test_source_dies_in_the_middle_of_a_disk(self) -> None:
        """An abort here is none that looks like an end there."""
        self.idle = self.sockets()
        source = self.source()
        with socket.socket(socket.AF_UNIX) as sink:
            sink.connect(str(source.start_import(self.disks[1])))
            sink.sendall(struct.pack("<Q", 32 * MIB) + self.disks[1].file.read_bytes()[: 2 * MIB])
            source.helper.process.send_signal(signal.SIGKILL)
            self.await_end()
        self.assertEqual((self.far.guest(200), self.far.images(200)), (None, []))
        self.assertIn("TASK ERROR", self.far.task_log(source.upid))

    def test_stream_breaks_off_without_a_close(self) -> None:
        """All bytes are there, but nobody said so; the commands go on."""
        tunnel = Tunnel(Via(self.near, self.far), 200, storages="local", bridges="")
        for says_close, status in ((False, "error"), (True, "complete")):
            stream = tunnel.stream(self.start_import(tunnel))
            stream.send(struct.pack("<Q", MIB) + bytes(MIB))
            if says_close:
                stream.send_close()
            stream.drop()
            self.assertEqual(self.result(tunnel), status)
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()

    def start_import(self, tunnel: Tunnel) -> str:
        disk = Disk(key="scsi0", volid="local:100/vm-100-disk-0.raw", file=Path("vm-100-disk-0.raw"))
        return str(tunnel.ask(cmd="disk-import", **Released().disk_import(disk, 200, "local"))["socket"])

    def result(self, tunnel: Tunnel) -> str:
        while (reply := tunnel.ask(cmd="query-disk-import"))["status"] == "pending":
            pass
        return str(reply["status"])

    def test_target_dies_in_the_middle_of_a_stream(self) -> None:
        """The source hears no Close, which would be an end in order."""
        tunnel = Tunnel(Via(self.near, self.far), 200, storages="local", bridges="")
        stream = tunnel.stream(self.start_import(tunnel))
        stream.send(struct.pack("<Q", MIB))
        self.far.stop(signal.SIGKILL)
        for each in (stream, tunnel.commands):
            self.assertIsNone(each.read_to_end())
        self.far.start()

    def test_daemon_in_between_stops(self) -> None:
        """Streams that only pass through do not hold it up, and do not end in order because of that."""
        tunnel = Tunnel(self.far, 200, storages="local", bridges="")
        path = self.start_import(tunnel)
        ticket = tunnel.ask(cmd="ticket", path=path)["ticket"]
        stream = Websocket(Via(self.near, self.far), 200, path, ticket)
        stream.send(struct.pack("<Q", MIB) + bytes(MIB))
        wait_for("the stream", lambda: self.far.ask(cmd="status")["tunnels"][0]["bytes_in"] > MIB)
        self.assertIn(self.near.stop(), (0, -signal.SIGTERM))
        self.assertEqual(self.result(tunnel), "error")
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()
        self.near.start()

    def test_target_dies(self) -> None:
        source = self.source()
        self.far.stop(signal.SIGKILL)
        with self.assertRaises(Failed) as caught:
            source.ask("version")
        self.assertEqual(str(caught.exception), "the command connection to the target has ended")
        self.assertIn("the command connection to the target has ended: it broke off", source.leave())
        self.far.start()

    def test_refusals_come_through(self) -> None:
        tunnel = Tunnel(self.far, 300, storages="local", bridges="")
        path = quote("/run/qemu-server/300.mtunnel", safe="")
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        answer = call(
            self.near,
            "GET",
            f"/nodes/pveb/qemu/300/mtunnelwebsocket?socket={path}&ticket=PVETUNNEL%3A00000000%3A%3AAAAA",
            **upgrade,
            **{"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="},
        )
        self.assertEqual((answer.status, answer.reason), (401, "permission denied - invalid PVETUNNEL ticket"))
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()
        answer = call(self.near, "POST", "/nodes/pveb/qemu/99/mtunnel", {"storages": "local"})
        self.assertEqual(answer.json["errors"], {"vmid": "invalid format - value does not look like a valid VM ID\n"})

    def test_token_that_only_the_target_knows(self) -> None:
        """Whom it trusts is no stranger in between, with however many connections; whom it does not failed here."""
        limit = "[limits]\nconnections_unauthenticated_per_address = 2\n"
        node = Node("pvec", extra=limit + entry(self.far))
        self.addCleanup(node.close)
        (node.pve / "priv" / "token.cfg").write_text("")
        node.start()
        via = Via(node, self.far)
        tunnels = [Tunnel(via, vmid, storages="local", bridges="") for vmid in (201, 202, 203)]
        answer = call(node, "GET", "/nodes/pveb/storage", Authorization="PVEAPIToken=mig@pve!t1=guessed")
        self.assertEqual((answer.status, answer.reason), (401, "Authentication failed!"))
        self.assertIn("failed login from 127.0.0.1, number 1", node.log.read_text())
        for tunnel in tunnels:
            tunnel.ask(cmd="quit", cleanup=1)
            tunnel.leave()

    def test_wrong_certificate(self) -> None:
        node = Node("pvec", extra=entry(self.far, WRONG)).start()
        self.addCleanup(node.close)
        answer = call(node, "GET", "/nodes/pveb/storage")
        self.assertEqual(answer.status, 502)
        self.assertNotIn(TOKEN, self.far.log.read_text())
