"""The guest agent: the real one on the host's side of a socket, the ticker's, one that lies, and none."""

import os
import shutil
import signal
import subprocess

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SkipTest

from mtunnel_tx.backends.agent import connect_agent, trim
from mtunnel_tx.errors import BackendFailed, TimedOut
from tests.backends.qemucase import QemuCase, guest, ticker
from tests.processes import started_process

BLOCKED = ("guest-fstrim", "guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list", "guest-exec", "guest-shutdown")
"""The agent runs on this host here: what would act on it is blocked."""


class RealAgent(QemuCase):
    def setUp(self):
        super().setUp()
        if shutil.which("qemu-ga") is None:
            raise SkipTest("qemu-ga is not installed: THE REAL GUEST AGENT IS NOT TESTED")
        self.socket = self.folder / "qga"
        words = ["qemu-ga", "-m", "unix-listen", "-p", str(self.socket), "-t", str(self.folder)]
        words += ["-f", str(self.folder / "pid"), f"--block-rpcs={','.join(BLOCKED)}"]
        started_process(self.addCleanup, words, stderr=subprocess.DEVNULL)

    async def test_it_answers(self):
        await self.until(self.socket.exists, "the agent's socket")
        agent = await connect_agent(reactor, self.socket)
        self.assertEqual(await agent.call("guest-ping", 3), {})
        self.assertIn("version", await agent.call("guest-info", 3))
        agent.hang_up()

    async def test_a_command_that_is_blocked(self):
        await self.until(self.socket.exists, "the agent's socket")
        await trim(reactor, 100, self.socket, self.report)
        self.assertEqual(len(self.reports), 1)
        self.assertRegex(self.reports[0], r"^fstrim failed: .*guest-fstrim.*(disabled|not allowed)")


class TickersAgent(QemuCase):
    async def test_a_guest_that_answers(self):
        host = self.host()
        conf = guest(host.volumes.make("a.raw", ticker(agent=True)), "agent: 1,type=isa")
        await host.machines.local_start(100, conf, self.report)
        serial = await host.serial(100)
        await self.until(lambda: len(serial.beats) >= 1, "a tick")
        self.reports.clear()
        await host.machines.trim(100, self.report)
        self.assertEqual(self.reports, [])

    async def test_a_guest_without_an_agent(self):
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw", ticker()), "agent: 1"), self.report)
        self.reports.clear()
        await host.machines.trim(100, self.report)
        timeout = "QEMU Guest Agent is not running - VM 100 qga command 'guest-sync-delimited' - got timeout"
        self.assertEqual(self.reports, [timeout])

    async def test_a_vm_without_a_port_for_it(self):
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw", ticker())), self.report)
        self.reports.clear()
        await host.machines.trim(100, self.report)
        self.assertEqual(len(self.reports), 1)
        self.assertIn("QEMU Guest Agent is not running - VM 100 nobody listens", self.reports[0])

    async def test_no_vm(self):
        await self.host().machines.trim(100, self.report)
        self.assertEqual(self.reports, ["QEMU Guest Agent is not running - VM 100 not running"])

    async def test_qemu_ends_meanwhile(self):
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw", ticker()), "agent: 1"), self.report)
        self.reports.clear()
        trimming = Deferred.fromCoroutine(host.machines.trim(100, self.report))
        await self.until(lambda: True, "a turn of the reactor")
        os.kill(host.pid(100), signal.SIGKILL)
        await trimming
        self.assertIn("QEMU Guest Agent is not running - VM 100 ", self.reports[0])


class Stranger(Protocol):
    """Sends its script, a piece for each line that comes."""

    def dataReceived(self, data):
        for _ in range(data.count(b"\n")):
            if self.factory.script:
                piece = self.factory.script.pop(0)
                self.transport.write(piece(data) if callable(piece) else piece)


def synced(data):
    """The right answer to a synchronisation."""
    number = data.rpartition(b'"id": ')[2].partition(b"}")[0]
    return b'{"return": 99}\n\xff{"return": ' + number + b"}\n"


class LyingAgent(QemuCase):
    async def agent(self, *script):
        factory = Factory.forProtocol(Stranger)
        factory.script = list(script)
        self.agents = getattr(self, "agents", 0) + 1
        path = self.folder / f"qga{self.agents}"
        port = await UNIXServerEndpoint(reactor, str(path)).listen(factory)
        self.addCleanup(port.stopListening)
        return path

    async def test_old_answers_are_skipped(self):
        path = await self.agent(synced, b'{"return": {"a": 1}}\n')
        agent = await connect_agent(reactor, path)
        self.assertEqual(await agent.call("x", 1), {"a": 1})
        agent.hang_up()

    async def test_nonsense_is_no_answer(self):
        path = await self.agent(b"\xff[1]\n" + b'\xff{"return": null}\n' * 1000 + b"[" * 100000 + b"\n")
        await self.fails(TimedOut, connect_agent(reactor, path, 0.2))

    async def test_an_endless_line(self):
        path = await self.agent(b"x" * (5 << 20))
        await self.fails(BackendFailed, connect_agent(reactor, path, 3))

    async def test_what_it_says_is_cleaned_and_cut(self):
        long = b'{"error": {"desc": "bad\\u001b[31m\\n' + b"y" * 1000 + b'"}}\n'
        await trim(reactor, 100, await self.agent(synced, long), self.report)
        self.assertTrue(self.reports[0].startswith("fstrim failed: bad?[31m?yy"))
        self.assertLess(len(self.reports[0]), 300)

    async def test_file_systems_that_were_not_trimmed(self):
        answer = b'{"return": {"paths": [{"path": "/", "trimmed": 1}, {"path": "/b", "error": "no\\nway"}, 7]}}\n'
        await trim(reactor, 100, await self.agent(synced, answer), self.report)
        self.assertEqual(self.reports, ["fstrim failed: /b: no?way"])

    async def test_answers_of_any_shape_are_no_error(self):
        for answer in (
            b"{}",
            b'{"return": 1}',
            b'{"return": {"paths": 7}}',
            b'{"error": 1}',
            b'{"error": {"desc": 1}}',
        ):
            await trim(reactor, 100, await self.agent(synced, answer + b"\n"), self.report)

    async def test_a_trim_has_its_time(self):
        await trim(reactor, 100, await self.agent(synced), self.report, trim_s=0.1)
        self.assertEqual(self.reports, ["fstrim failed: qga command 'guest-fstrim' - got timeout"])
