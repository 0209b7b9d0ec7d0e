"""The daemon's own listening, with a caller at a real socket."""

import json
import socket
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, UNIXServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from mtunnel_tx.errors import BackendFailed, NotFound, TimedOut, WrongState
from mtunnel_tx.net.controlsocket import ask, listen_control


async def status(request):
    return {"tunnels": [], "asked": dict(request)}


async def settle(request):
    raise NotFound(f"VM {request.get('vmid')} waits for nothing")


async def stumble(request):
    raise ZeroDivisionError("secret")


async def drain(request):
    return None


COMMANDS = {"status": status, "settle": settle, "stumble": stumble, "drain": drain}


class DoorTests(TestCase):
    def setUp(self):
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "control.sock"

    async def open(self):
        listening = await listen_control(reactor, self.path, COMMANDS)
        self.addCleanup(lambda: Deferred.fromCoroutine(listening.close()))
        return listening

    async def ask(self, **request):
        return await ask(reactor, self.path, request)

    async def test_a_reply_has_the_fields_of_the_command(self):
        await self.open()
        request = {"cmd": "status", "verbose": True, "text": "ünïcode\n"}
        self.assertEqual(await self.ask(**request), {"success": True, "tunnels": [], "asked": request})
        self.assertEqual(await self.ask(cmd="drain"), {"success": True})

    async def test_only_the_owner_may_ask(self):
        await self.open()
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    async def test_failures_are_told(self):
        await self.open()
        self.assertEqual(await self.ask(cmd="settle", vmid=7), {"success": False, "msg": "VM 7 waits for nothing"})
        self.assertEqual(await self.ask(cmd="nosuch"), {"success": False, "msg": "unknown command 'nosuch' given"})
        self.assertEqual(await self.ask(hello=1), {"success": False, "msg": "'cmd' missing"})

    async def test_a_bug_is_logged_and_not_shown(self):
        await self.open()
        self.assertEqual(await self.ask(cmd="stumble"), {"success": False, "msg": "internal error"})
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_many_callers_at_once(self):
        await self.open()
        calls = [Deferred.fromCoroutine(self.ask(cmd="status", number=number)) for number in range(20)]
        self.assertEqual([(await call)["asked"]["number"] for call in calls], list(range(20)))

    async def test_a_second_daemon_stays_out(self):
        await self.open()
        with self.assertRaises(WrongState):
            await listen_control(reactor, self.path, COMMANDS)
        self.assertTrue((await self.ask(cmd="status"))["success"])

    async def test_a_socket_left_over_is_replaced(self):
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(str(self.path))
        await self.open()
        self.assertTrue((await self.ask(cmd="status"))["success"])

    async def test_closing_removes_the_socket(self):
        listening = await self.open()
        caller = await connectProtocol(UNIXClientEndpoint(reactor, str(self.path)), Protocol())
        await listening.close()
        self.assertFalse(self.path.exists())
        caller.transport.abortConnection()

    async def test_no_daemon(self):
        with self.assertRaises(BackendFailed) as caught:
            await self.ask(cmd="status")
        self.assertIn(str(self.path), caught.exception.text)

    async def answer_with(self, reply):
        """A listening that says something else."""

        class Other(Protocol):
            def dataReceived(self, data):
                if reply is None:
                    self.transport.loseConnection()
                else:
                    self.transport.write(reply)

        port = await UNIXServerEndpoint(reactor, str(self.path)).listen(Factory.forProtocol(Other))
        self.addCleanup(port.stopListening)

    async def test_a_daemon_that_hangs_up(self):
        await self.answer_with(None)
        with self.assertRaises(BackendFailed):
            await self.ask(cmd="status")

    async def test_replies_that_are_none(self):
        for number, reply in enumerate([b"hello\n", b"[]\n", json.dumps("x").encode() + b"\n", b"\xff\n"]):
            self.path = self.path.with_name(f"{number}.sock")
            await self.answer_with(reply)
            with self.assertRaises(BackendFailed):
                await self.ask(cmd="status")

    async def test_a_daemon_that_says_nothing(self):
        await self.answer_with(b"")
        with self.assertRaises(TimedOut):
            await ask(reactor, self.path, {"cmd": "status"}, 0.05)
