"""The monitor client against a server that does as the test says, and against a real QEMU."""

import json
import os
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver
from twisted.trial.unittest import TestCase

from mtunnel_tx.backends import qmp
from mtunnel_tx.backends.qmp import MonitorLost, QmpCommandFailed, connect_monitor
from mtunnel_tx.errors import TimedOut
from tests.backends.qemucase import QemuCase, guest

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}'
)


class Server(LineReceiver):
    """Greets, and answers what `answers` has; a function there is called with the server and the request."""

    delimiter = b"\n"

    def connectionMade(self):
        self.factory.connections.append(self)
        if self.factory.greeting:
            self.sendLine(self.factory.greeting + b"\r")

    def lineReceived(self, line):
        request = json.loads(line)
        answer = self.factory.answers.get(request["execute"])
        if callable(answer):
            answer(self, request)
        elif answer is not None:
            self.answer(request, **answer)

    def answer(self, request, **fields):
        self.sendLine(json.dumps({**fields, "id": request["id"]}).encode() + b"\r")


class MonitorCase(TestCase):
    async def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="mtq-")
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "q"
        self.factory = factory = Factory.forProtocol(Server)
        factory.connections, factory.greeting = [], GREETING
        factory.answers = {"qmp_capabilities": {"return": {}}}
        port = await UNIXServerEndpoint(reactor, str(self.path)).listen(factory)
        self.addCleanup(port.stopListening)
        self.addCleanup(self.hang_up)

    def hang_up(self):
        for connection in self.factory.connections:
            connection.transport.abortConnection()

    async def connect(self, **answers):
        self.factory.answers.update(answers)
        monitor = await connect_monitor(reactor, self.path, 5)
        self.addCleanup(monitor.close)
        return monitor

    @property
    def server(self):
        return self.factory.connections[0]

    async def fails(self, kind, work):
        try:
            result = await work
        except kind as error:
            return error
        return self.fail(f"{kind.__name__} expected, not {str(result)[:200]}")


class Calls(MonitorCase):
    async def test_greeting_and_answer(self):
        monitor = await self.connect(**{"query-status": {"return": {"status": "running"}}})
        self.assertEqual(monitor.version, {"micro": 22, "minor": 2, "major": 7})
        self.assertEqual(await monitor.call("query-status"), {"status": "running"})

    async def test_a_refusal(self):
        refusal = {"error": {"class": "CommandNotFound", "desc": "The command x\x1b[31m has not been found"}}
        monitor = await self.connect(x=refusal)
        error = await self.fails(QmpCommandFailed, monitor.call("x"))
        self.assertEqual(error.kind, "CommandNotFound")
        self.assertEqual(error.text, "QEMU refuses 'x': The command x?[31m has not been found")

    async def test_answers_in_another_order(self):
        waiting = []
        monitor = await self.connect(x=lambda server, request: waiting.append(request))
        calls = [Deferred.fromCoroutine(monitor.call("x", {"n": n})) for n in range(3)]
        while len(waiting) < 3:
            await tick()
        for request in reversed(waiting):
            self.server.answer(request, **{"return": request["arguments"]["n"]})
        self.assertEqual([result for _, result in await DeferredList(calls)], [0, 1, 2])

    async def test_a_late_answer_is_nobodys(self):
        waiting = []
        monitor = await self.connect(x=lambda server, request: waiting.append(request), y={"return": 2})
        error = await self.fails(TimedOut, monitor.call("x", wait_s=0.05))
        self.assertEqual(error.text, "QEMU did not answer 'x' within 0.05 s")
        self.server.answer(waiting[0], **{"return": 1})
        self.assertEqual(await monitor.call("y"), 2)

    async def test_events_are_told_to_those_who_listen(self):
        monitor = await self.connect(x={"return": 1})
        told = []
        end = monitor.listen(lambda name, data: told.append((name, data)))
        self.server.sendLine(b'{"event": "STOP", "timestamp": {}}')
        self.server.sendLine(b'{"event": "MIGRATION", "data": {"status": "active"}}')
        await monitor.call("x")
        self.assertEqual(told, [("STOP", {}), ("MIGRATION", {"status": "active"})])
        end()
        end()
        self.server.sendLine(b'{"event": "RESUME"}')
        await monitor.call("x")
        self.assertEqual(len(told), 2)

    async def test_a_big_answer(self):
        big = "x" * (qmp.LINE_BYTES - 1000)
        monitor = await self.connect(x={"return": big})
        self.assertEqual(len(await monitor.call("x")), len(big))


class Ends(MonitorCase):
    async def test_the_end_fails_all_that_wait(self):
        monitor = await self.connect(x=lambda server, request: None)
        told = []
        monitor.listen(lambda name, data: told.append(name))
        calls = [Deferred.fromCoroutine(monitor.call("x")) for _ in range(3)]
        self.server.transport.abortConnection()
        for call in calls:
            self.assertEqual((await self.fails(MonitorLost, call)).text, "QEMU closed its monitor")
        self.assertTrue(monitor.is_lost)
        self.assertEqual(told, [""])
        await self.fails(MonitorLost, monitor.call("x"))

    async def test_too_long_a_line(self):
        monitor = await self.connect(x={"return": "x" * qmp.LINE_BYTES})
        error = await self.fails(MonitorLost, monitor.call("x"))
        self.assertEqual(error.text, f"a line of QEMU's monitor is longer than {qmp.LINE_BYTES} bytes")

    async def test_no_json(self):
        for garbage in (b"hello", b"[1]", b"[" * 100000, b"\xff"):
            self.factory.connections.clear()
            monitor = await self.connect(x=lambda server, request, garbage=garbage: server.sendLine(garbage))
            error = await self.fails(MonitorLost, monitor.call("x"))
            self.assertEqual(error.text, "QEMU's monitor speaks no QMP")

    async def test_nobody_listens(self):
        await self.fails(MonitorLost, connect_monitor(reactor, self.path.with_name("nobody"), 5))

    async def test_no_greeting(self):
        self.factory.greeting = None
        error = await self.fails(TimedOut, connect_monitor(reactor, self.path, 0.05))
        self.assertEqual(error.text, "QEMU did not greet within 0.05 s")

    async def test_an_end_instead_of_a_greeting(self):
        self.factory.greeting = None
        connecting = Deferred.fromCoroutine(connect_monitor(reactor, self.path, 5))
        while not self.factory.connections:
            await tick()
        self.server.transport.abortConnection()
        await self.fails(MonitorLost, connecting)

    async def test_a_call_that_is_cancelled(self):
        monitor = await self.connect(x=lambda server, request: None, y={"return": 1})
        call = Deferred.fromCoroutine(monitor.call("x"))
        call.cancel()
        await self.fails(Exception, call)
        self.assertEqual(await monitor.call("y"), 1)


class RealOne(QemuCase):
    async def test_many_calls_at_once(self):
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw")), self.report)
        monitor = await connect_monitor(reactor, host.runtime_dir / "100.qmp")
        self.addCleanup(monitor.close)
        self.assertGreaterEqual(monitor.version["major"], 7)
        calls = [Deferred.fromCoroutine(monitor.call("query-status")) for _ in range(200)]
        results = await DeferredList(calls, fireOnOneErrback=True)
        self.assertEqual({result["status"] for _, result in results}, {"running"})
        schema = await monitor.call("query-qmp-schema")
        self.assertGreater(len(json.dumps(schema)), 100_000)
        os.kill(host.pid(100), 9)
        await self.fails(MonitorLost, monitor.call("query-status"))


def tick():
    waiter = Deferred()
    reactor.callLater(0.005, waiter.callback, None)
    return waiter
