"""The websocket helper: what it reads, in which order it answers, how it ends."""

import json
import os
import signal
import socket
import stat
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mtunnel_tx.errors import BackendFailed, BadRequest
from mtunnel_tx.pve.maps import Endpoint
from mtunnel_tx.source.helper.channel import LOST, HelperChannel
from mtunnel_tx.source.helper.orders import ConnectOrder, ForwardOrder, read_control, ticket_request, with_ticket
from mtunnel_tx.source.localsocket import LocalSocket
from tests.patience import patience_s
from tests.proxmox.source import Helper

TOKEN = "PVEAPIToken=mig@pve!t1=secret"
URL = "https://host.example:8006/api2/json/nodes/n/qemu/200/mtunnelwebsocket?"
PRINT = ":".join(["ab"] * 32)


def connection(**changes):
    return {"url": f"{URL}ticket=a%3Ab&socket=c", "headers": [["Authorization", TOKEN]], **changes}


def control(cmd, data):
    return json.dumps({"control": True, "cmd": cmd, "data": data}).encode()


class LineTests(SynchronousTestCase):
    def test_connect(self):
        order = read_control(control("connect", connection(fingerprint=PRINT)))
        self.assertIsInstance(order, ConnectOrder)
        self.assertEqual(
            order.websocket.endpoint,
            Endpoint(apitoken=TOKEN, host="host.example", port=8006, fingerprint=PRINT.upper()),
        )
        self.assertEqual(
            order.websocket.path_query, "/api2/json/nodes/n/qemu/200/mtunnelwebsocket?ticket=a%3Ab&socket=c"
        )

    def test_fingerprint_may_be_absent(self):
        for value in ({}, {"fingerprint": None}, {"fingerprint": ""}):
            self.assertIsNone(read_control(control("connect", connection(**value))).websocket.endpoint.fingerprint)

    def test_forward(self):
        data = connection(url=f"{URL}socket=%2Frun%2Fx&", unix="/run/pve/100.storage", ticket={"path": "/run/x"})
        order = read_control(control("forward", data))
        self.assertIsInstance(order, ForwardOrder)
        self.assertEqual(order.local, Path("/run/pve/100.storage"))
        self.assertEqual(json.loads(ticket_request(order)), {"cmd": "ticket", "path": "/run/x"})

    def test_everything_else_is_for_the_target(self):
        for line in (b"", b"{", b'{"cmd":"version"}', b'{"cmd":"x","control":false}', b'["control"]', b'"control"'):
            self.assertIsNone(read_control(line))

    def test_what_cannot_be_carried_out(self):
        data = connection(unix="/s", ticket={"path": "/x"})
        for cmd, sent in (
            ("dance", data),
            ("connect", None),
            ("connect", connection(url="http://host/")),
            ("connect", connection(url="https:///x")),
            ("connect", connection(url="https://host:99999/")),
            ("connect", connection(url="https://host/\r\nX: y")),
            ("connect", connection(headers=[])),
            ("connect", connection(headers="Authorization")),
            ("connect", connection(headers=[["Authorization", "a\r\nb"]])),
            ("connect", connection(headers=[["Authorization"]])),
            ("connect", connection(fingerprint="AB:CD")),
            ("forward", {**data, "unix": "relative"}),
            ("forward", {**data, "unix": None}),
            ("forward", {**data, "ticket": "x"}),
        ):
            self.assertRaises(BadRequest, read_control, control(cmd, sent))

    @settings(deadline=None, max_examples=100)
    @given(
        st.dictionaries(
            st.sampled_from(["url", "headers", "fingerprint", "unix", "ticket"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            ),
        ),
        st.sampled_from(["connect", "forward"]),
    )
    def test_no_order_breaks_it(self, data, cmd):
        try:
            read_control(control(cmd, data))
        except BadRequest as error:
            self.assertNotIn("\n", error.text)

    def test_ticket_is_the_last_parameter(self):
        self.assertEqual(with_ticket("/x?socket=a&", "A:+/="), "/x?socket=a&ticket=A%3A%2B%2F%3D")
        self.assertEqual(with_ticket("/x?socket=a", "t"), "/x?socket=a&ticket=t")
        self.assertEqual(with_ticket("/x", "t"), "/x?ticket=t")


class ChannelTests(SynchronousTestCase):
    def setUp(self):
        self.room = []
        self.channel = HelperChannel(self.room.append)
        self.channel.makeConnection(StringTransport())

    def test_replies_go_to_those_who_asked(self):
        asked = [self.channel.ask(b"a"), self.channel.ask(b"ticket"), self.channel.ask(b"b")]
        self.assertEqual(self.channel.transport.value(), b"a\nticket\nb\n")
        self.channel.dataReceived(b"1\n2")
        self.assertEqual(self.successResultOf(asked[0]), b"1")
        self.assertNoResult(asked[1])
        self.channel.dataReceived(b"\n3\n")
        self.assertEqual([self.successResultOf(each) for each in asked[1:]], [b"2", b"3"])

    def test_own_replies_wait_for_their_turn(self):
        first, own, second = self.channel.ask(b"a"), self.channel.follow(b"ok"), self.channel.ask(b"b")
        self.assertNoResult(own)
        self.channel.dataReceived(b"1\n")
        self.assertEqual((self.successResultOf(first), self.successResultOf(own)), (b"1", b"ok"))
        self.assertNoResult(second)
        self.assertEqual(self.successResultOf(HelperChannel(self.room.append).follow(b"at once")), b"at once")

    def test_end_reaches_everybody(self):
        asked, own = self.channel.ask(b"a"), self.channel.follow(b"ok")
        self.channel.connectionLost()
        self.assertEqual(self.failureResultOf(asked, BackendFailed).value.text, LOST)
        self.assertEqual(self.successResultOf(own), b"ok")
        self.assertEqual(self.failureResultOf(self.channel.ask(b"b"), BackendFailed).value.text, LOST)

    def test_there_is_room_for_so_many(self):
        asked = [self.channel.ask(b"a") for _ in range(64)]
        self.assertEqual(self.room[-2:], [True, False])
        self.channel.dataReceived(b"1\n")
        self.assertIs(self.room[-1], True)
        self.assertEqual(self.successResultOf(asked[0]), b"1")

    def test_line_that_nobody_asked_for(self):
        self.channel.dataReceived(b"hello\n")
        self.assertTrue(self.channel.transport.disconnecting)


class LocalSocketTests(TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        # Longer than a socket's address may be.
        self.path = Path(folder.name) / ("x" * 100) / "100.storage"
        self.path.parent.mkdir()

    async def test_accepts_and_leaves_nothing(self):
        accepted = Deferred()
        listener = LocalSocket(reactor, self.path, accepted.callback)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        caller = socket.socket(socket.AF_UNIX)
        self.addCleanup(caller.close)
        folder = os.open(self.path.parent, os.O_PATH)
        self.addCleanup(os.close, folder)
        caller.connect(f"/proc/self/fd/{folder}/{self.path.name}")
        taken = await accepted
        caller.sendall(b"x")
        taken.setblocking(True)
        self.assertEqual(taken.recv(1), b"x")
        taken.close()
        listener.close()
        self.assertFalse(self.path.exists())

    def test_stale_socket_is_replaced_and_a_new_one_stays(self):
        first = LocalSocket(reactor, self.path, lambda _sock: None)
        second = LocalSocket(reactor, self.path, lambda _sock: None)
        first.close()
        self.assertTrue(self.path.is_socket())
        second.close()

    def test_what_is_no_socket_stays(self):
        self.path.write_text("precious")
        self.assertRaises(BackendFailed, LocalSocket, reactor, self.path, lambda _sock: None)
        self.assertEqual(self.path.read_text(), "precious")


class ProcessTests(SynchronousTestCase):
    """The program itself, without a target."""

    def setUp(self):
        self.helper = Helper()
        self.addCleanup(self.helper.close)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.local = Path(folder.name) / "100.storage"

    def forward(self):
        data = connection(url="https://127.0.0.1:1/x?socket=y&", unix=str(self.local), ticket={"path": "/y"})
        self.helper.write(control("forward", data))

    def test_commands_without_a_connection(self):
        for line in (b'{"cmd":"version"}', b"no json", b""):
            self.helper.write(line)
            self.assertEqual(self.helper.read(), {"success": False, "msg": "not connected"})
        self.assertEqual(self.helper.finish(), (0, ""))

    def test_forward_listens_and_is_answered_once(self):
        self.forward()
        self.assertEqual(self.helper.read(), {"success": True})
        self.assertTrue(self.helper.is_silent())
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(self.local))
            self.assertEqual(caller.recv(1), b"")
        status, errors = self.helper.finish()
        self.assertEqual(status, 0)
        self.assertIn("not connected", errors)
        self.assertFalse(self.local.exists())

    def test_target_that_is_not_there(self):
        self.helper.write(control("connect", connection(url="https://127.0.0.1:1/x")))
        self.helper.write(b'{"cmd":"version"}')
        reply = self.helper.read()
        self.assertFalse(reply["success"])
        self.assertIn("failed to connect - cannot connect to the target", reply["msg"])
        self.assertTrue(self.helper.is_silent())
        self.helper.write(b'{"cmd":"version"}')
        self.assertEqual(self.helper.read(), reply)
        status, errors = self.helper.finish()
        self.assertEqual(status, 0)
        self.assertNotIn("secret", errors)

    def test_bad_control_lines_are_answered(self):
        self.helper.write(control("connect", {}))
        self.assertEqual(self.helper.read(), {"success": False, "msg": "'url' must be a URL"})
        self.helper.write(control("dance", {}))
        self.assertEqual(self.helper.read(), {"success": False, "msg": "unknown control command"})

    def test_line_that_is_too_long(self):
        self.helper.write(b"x" * (5 << 20))
        self.assertEqual(self.helper.read()["msg"], f"failed to parse command - line longer than {4 << 20} bytes")
        self.helper.write(b'{"cmd":"version"}')
        self.assertEqual(self.helper.read()["msg"], "not connected")

    def test_last_line_without_its_end(self):
        self.helper.process.stdin.write(b'{"cmd":"version"}')
        self.helper.process.stdin.close()
        self.assertEqual(self.helper.read()["msg"], "not connected")
        self.assertEqual(self.helper.process.wait(patience_s()), 0)

    def test_sigterm(self):
        self.forward()
        self.helper.read()
        self.helper.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.helper.process.wait(patience_s()), 128 + signal.SIGTERM)
        self.assertFalse(self.local.exists())
