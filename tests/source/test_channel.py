import json

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import BackendFailed, TimedOut
from mtunnel_tx.source.channel import OWED_LIMIT, CommandChannel, CommandRefused, one_line, read_reply
from mtunnel_tx.source.outages import Outages
from tests.source.test_outages import FakeStream


class CommandsTest(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.commands = CommandChannel(self.clock)
        self.transport = StringTransport()
        self.commands.makeConnection(self.transport)

    def call(self, name="version", wait_s=10, **fields):
        return Deferred.fromCoroutine(self.commands.call(name, wait_s, fields))

    def test_one_line_out_one_line_in(self):
        reply = self.call("bwlimit", storages=["a"], bwlimit=None)
        self.assertEqual(self.transport.value(), b'{"cmd":"bwlimit","storages":["a"],"bwlimit":null}\n')
        self.commands.dataReceived(b'{"success":true,')
        self.assertNoResult(reply)
        self.commands.dataReceived(b'"bwlimit":7}\n')
        self.assertEqual(self.successResultOf(reply)["bwlimit"], 7)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_only_ascii_goes_out(self):
        self.call("config", conf="name: \u00fc\udc80\n")
        self.assertEqual(json.loads(self.transport.value())["conf"], "name: \u00fc\udc80\n")
        self.assertTrue(self.transport.value().isascii())

    def test_the_reason_is_shown_clean(self):
        reply = self.call("start")
        self.commands.dataReceived(b'{"success":false,"msg":"failed\\u001b to\\n\\nstart: x\\n"}\n')
        self.assertEqual(self.failureResultOf(reply, CommandRefused).value.text, "target: failed? to; start: x")

    def test_a_loss_may_be_noticed_late(self):
        """The clock stands still from then on, and until then a reply that does not come may be lost."""
        outages, stream = Outages(self.clock, lambda _text: None), FakeStream()
        commands = CommandChannel(outages.commands, outages.notice_s)
        commands.makeConnection(StringTransport())
        outages.watch(stream, longest_s=600.0, notice_s=22.5, carries_commands=True)
        reply = Deferred.fromCoroutine(commands.call("ticket", 10))
        self.clock.advance(22.4)
        stream.lose()
        self.clock.advance(500)
        stream.find()
        self.clock.advance(9.9)
        self.assertNoResult(reply)
        self.clock.advance(0.3)
        self.assertEqual(self.failureResultOf(reply, TimedOut).value.text, "no reply to 'ticket' within 32.5 s")

    def test_a_late_reply_is_not_the_next_one(self):
        late = self.call("disk-import", 600)
        self.clock.advance(600)
        self.assertIn("'disk-import' within 600 s", self.failureResultOf(late, TimedOut).value.text)
        quit = self.call("quit", 30, cleanup=1)
        self.commands.dataReceived(b'{"success":true,"socket":"x"}\n{"success":true,"bye":1}\n')
        self.assertEqual(self.successResultOf(quit), {"success": True, "bye": 1})

    def test_a_cancelled_command_is_answered_to_nobody(self):
        gone = self.call("disk-import")
        gone.cancel()
        self.failureResultOf(gone)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        quit = self.call("quit")
        self.commands.dataReceived(b'{"success":true}\n{"success":true,"bye":1}\n')
        self.assertEqual(self.successResultOf(quit)["bye"], 1)

    def test_the_end_of_the_connection_ends_all(self):
        first, second = self.call(), self.call()
        self.commands.connectionLost(Failure(ConnectionLost("gone\n")))
        for reply in (first, second, self.call()):
            self.assertIn("has ended: ", self.failureResultOf(reply, BackendFailed).value.text)

    def test_a_line_nobody_asked_for(self):
        self.commands.dataReceived(b"{}\n")
        self.assertTrue(self.transport.disconnecting)
        self.failureResultOf(self.call(), BackendFailed)

    def test_a_line_without_end(self):
        reply = self.call()
        self.commands.MAX_LENGTH = 100
        self.commands.dataReceived(b"x" * 200)
        self.assertIn("more than", self.failureResultOf(reply, BackendFailed).value.text)

    def test_unanswered_commands_are_bounded(self):
        for _ in range(OWED_LIMIT):
            self.call(wait_s=1)
        self.assertIn("too many", self.failureResultOf(self.call(), BackendFailed).value.text)


class ReplyTest(SynchronousTestCase):
    def test_what_is_no_reply(self):
        for line in (b"", b"x", b"[]", b"5", b"null", b"\xff", b"[" * 100000):
            self.assertRaises(BackendFailed, read_reply, "x", line)

    def test_success_as_perl_sees_it(self):
        for value in ("1", "true", '"1"'):
            read_reply("x", f'{{"success":{value}}}'.encode())
        for value in ("0", "false", "null", '""', '"0"'):
            self.assertRaises(CommandRefused, read_reply, "x", f'{{"success":{value}}}'.encode())

    def test_without_a_reason(self):
        error = self.assertRaises(CommandRefused, read_reply, "x", b'{"success":false}')
        self.assertEqual(error.text, "target: x failed without a reason")

    def test_one_line(self):
        self.assertEqual(one_line("400 a\nb: c\n\n"), "400 a; b: c")
        self.assertEqual(one_line(None), "")
        self.assertEqual(one_line(5), "5")
