import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall, deferLater
from twisted.trial.unittest import TestCase

import mtunnel_tx
from mtunnel_tx.backends.orphans import end_orphans
from mtunnel_tx.pve.maps import format_endpoint
from tests.patience import patience_s
from tests.source.target import SECRET, RecordedTarget

ROOT = Path(mtunnel_tx.__file__).parents[1]
CONF = "name: web\nscsi0: local:100/vm-100-disk-0.raw,size=1M\n"
STORAGE = "dir: local\n\tpath {folder}/srv\n\tcontent images\n"


class Program(ProcessProtocol):
    """`mtunnel` as a process of its own."""

    def __init__(self):
        self.out, self.err = b"", b""
        self.ended = Deferred()

    def outReceived(self, data):
        self.out += data

    def errReceived(self, data):
        self.err += data

    def processEnded(self, reason):
        self.status = reason.value.exitCode if reason.value.signal is None else -reason.value.signal
        self.ended.callback(self)


class ProgramTest(TestCase):
    def setUp(self):
        self.target = RecordedTarget().listen(reactor)
        self.addCleanup(self.target.close)
        self.folder = Path(self.mktemp()).absolute()
        self.conf_file = self.write("pve/nodes/here/qemu-server/100.conf", CONF)
        self.write("pve/storage.cfg", STORAGE.format(folder=self.folder))
        self.disk = self.write("srv/images/100/vm-100-disk-0.raw", "x" * (1 << 20))
        runtime_dir = Path(f"/tmp/mtunnel-test-{os.getpid()}")
        self.addCleanup(shutil.rmtree, runtime_dir, ignore_errors=True)
        self.config = self.write(
            "mtunnel.toml",
            f'node = "here"\nstate_dir = "{self.folder}/state"\npve_dir = "{self.folder}/pve"\n'
            f'runtime_dir = "{runtime_dir}"\nlock_dir = "{self.folder}/lock"\n',
        )

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def start(self, *words, endpoint=None, **how):
        program = Program()
        argv = [sys.executable, "-m", "mtunnel_tx.cli", "migrate", "--config", str(self.config), "100", *words]
        env = {**os.environ, "MTUNNEL_ENDPOINT": endpoint or format_endpoint(self.target.endpoint)}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
        process = reactor.spawnProcess(program, sys.executable, argv, env=env, **how)
        self.addCleanup(self.end, process, program)
        return process, program

    def end(self, process, program):
        if not program.ended.called:
            process.signalProcess("KILL")
        return program.ended

    async def run_program(self, *words, endpoint=None):
        _, program = self.start("--target-vmid", "300", "--target-storage", "tank", *words, endpoint=endpoint)
        await program.ended
        self.assertNotIn(SECRET.encode(), program.out + program.err)
        return program

    async def test_a_whole_migration(self):
        program = await self.run_program()
        self.assertEqual((program.status, program.err), (0, b""))
        out = program.out.decode()
        self.assertIn("scsi0: sending 1.0 MiB\n", out)
        self.assertRegex(out, r"scsi0: 1\.0 MiB of 1\.0 MiB in 0:0\d")
        self.assertRegex(out, r"VM 100 is VM 300 at the target: 1 disk, 1\.0 MiB in 0:0\d")
        self.assertEqual(bytes(self.target.streams[0].data), (1 << 20).to_bytes(8, "little") + b"x" * (1 << 20))
        self.assertRegex(self.conf_file.read_text(), rf"\Amoved: to 127.0.0.1 as VM 300 on .* UTC\n{CONF}\Z")

    async def test_delete(self):
        program = await self.run_program("--delete")
        self.assertEqual((program.status, program.err), (0, b""))
        self.assertFalse(self.conf_file.exists())
        self.assertFalse(self.disk.exists())

    async def test_dry_run(self):
        program = await self.run_program("--dry-run")
        self.assertEqual((program.status, program.err), (0, b""))
        self.assertIn(b"nothing stands in the way: 1 disk, 1.0 MiB, to node 'pvetest'\n", program.out)
        self.assertIn(b"DISK   SIZE     ALLOCATED  FORMAT  STORAGE THERE  FORMAT THERE", program.out)
        program = await self.run_program("--dry-run", "--json")
        self.assertEqual((program.status, program.err), (0, b""))
        report = json.loads(program.out)
        self.assertEqual((report["success"], report["disks"][0]["key"]), (True, "scsi0"))
        self.conf_file.write_text(CONF + "lock: backup\nhostpci0: 00:01.0\n")
        program = await self.run_program("--dry-run")
        self.assertEqual(program.status, 1)
        self.assertEqual(program.err.decode().splitlines(), [
            "mtunnel migrate: VM 100 is locked (backup)",
            "mtunnel migrate: hostpci0: a PCI device of this host cannot move: 00:01.0",
        ])  # fmt: skip
        self.assertEqual({request[0] for request in self.target.requests}, {"GET"})

    async def test_json(self):
        """One object about how it ended, and nothing else."""
        program = await self.run_program("--json")
        self.assertEqual((program.status, program.err), (0, b""))
        said = json.loads(program.out)
        self.assertEqual((said["success"], said["msg"]), (True, ""))
        self.assertEqual((said["move"]["phase"], said["move"]["done_bytes"]), ("done", (1 << 20) + 8))
        self.conf_file.write_text(CONF + "lock: backup\n")
        program = await self.run_program("--json")
        self.assertEqual((program.status, program.err), (1, b""))
        said = json.loads(program.out)
        self.assertEqual((said["success"], said["msg"]), (False, "VM 100 is locked (backup)"))

    async def test_a_failure(self):
        self.target.fail["config"] = "format error\nscsi0: no\n"
        program = await self.run_program()
        self.assertEqual(program.status, 1)
        self.assertEqual(
            program.err,
            b"mtunnel migrate: migration failed: target: failed to handle 'config' command - format error; scsi0: no\n",
        )
        self.assertIn(b"the target has removed what was sent\n", program.out)
        self.assertEqual(self.conf_file.read_text(), CONF)

    async def test_no_such_vm(self):
        self.conf_file.unlink()
        program = await self.run_program()
        self.assertEqual(program.status, 1)
        self.assertIn(b"100.conf' does not exist", program.err)

    async def interrupt(self, number):
        late = self.target.replies["config"] = Deferred()
        reached = self.target.when("config")
        process, program = self.start("--target-vmid", "300", "--target-storage", "tank")
        await reached
        self.assertIn("lock: migrate", self.conf_file.read_text())
        process.signalProcess(number)
        await self.target.when("quit")
        late.callback({})
        self.assertEqual(self.target.commands[-1], {"cmd": "quit", "cleanup": 1})
        await program.ended
        self.assertEqual(program.status, 128 + number, program.err)
        self.assertEqual(self.conf_file.read_text(), CONF)
        self.assertTrue(program.err.startswith(b"mtunnel migrate: interrupted; the target is asked to clean up"))

    async def test_second_ctrl_c(self):
        self.target.silent = "config"
        reached = self.target.when("config")
        process, program = self.start("--target-vmid", "300", "--target-storage", "tank")
        await reached
        process.signalProcess("INT")
        await self.target.when("quit")
        process.signalProcess("INT")
        await program.ended
        self.assertEqual((program.status, self.conf_file.read_text()), (130, CONF))
        self.assertIn(b"cleanup at the target was not waited for: ", program.out)

    async def test_ctrl_c(self):
        await self.interrupt(signal.SIGINT)

    async def test_termination(self):
        await self.interrupt(signal.SIGTERM)

    async def test_a_lost_terminal(self):
        await self.interrupt(signal.SIGHUP)

    async def lose_terminal(self, event):
        """Close it while the target has a command and does not answer yet."""
        late = self.target.replies[event] = Deferred()
        reached = self.target.when(event)
        process, program = self.start("--target-vmid", "300", "--target-storage", "tank", usePTY=True)
        await reached
        process.loseConnection()
        done = self.target.when("quit")
        # It is told by a signal, and may be writing to nowhere by now; a reply is waited for 10 s at most.
        await deferLater(reactor, min(patience_s(0.5), 4.0))
        late.callback({})
        await done
        await program.ended
        return program.status, self.target.commands[-1]["cleanup"]

    async def test_complaints_to_a_terminal_that_is_closed(self):
        """Standard output is a file; the signal is heeded although nobody can be told."""
        master, slave = os.openpty()
        late = self.target.replies["disk-import"] = Deferred()
        reached = self.target.when("disk-import")
        words = ("--target-vmid", "300", "--target-storage", "tank")
        process, program = self.start(*words, childFDs={0: "w", 1: "r", 2: slave})
        os.close(slave)
        await reached
        os.close(master)
        process.signalProcess(signal.SIGTERM)
        await self.target.when("quit")
        late.callback({})
        await program.ended
        self.assertEqual((program.status, self.conf_file.read_text()), (128 + signal.SIGTERM, CONF))

    async def test_a_terminal_that_is_closed(self):
        """Nobody reads what is said any more; everything is cleaned up all the same."""
        self.assertEqual(await self.lose_terminal("config"), (128 + signal.SIGHUP, 1))
        self.assertEqual(self.conf_file.read_text(), CONF)

    async def test_a_terminal_that_is_closed_in_the_hand_over(self):
        """It is finished."""
        self.assertEqual(await self.lose_terminal("unlock"), (0, 0))
        self.assertIn("moved: to 127.0.0.1 as VM 300 on ", self.conf_file.read_text())

    async def test_a_daemon_that_starts_here_meanwhile_ends_none_of_its_children(self):
        self.disk.write_bytes(os.urandom(4 << 20))
        ended = 0

        def start_again():
            nonlocal ended
            ended += end_orphans(f"{self.folder}/state")

        starting = LoopingCall(start_again)
        starting.start(0.1)
        program = await self.run_program("--bwlimit", "1536")
        starting.stop()
        self.assertEqual((program.status, program.err, ended), (0, b"", 0))

    def notify(self, *urls):
        """Returns: the file to which the command writes each notice, as a line."""
        file = self.folder / "notices"
        told = json.dumps(
            [sys.executable, "-c", f"import sys; open({str(file)!r}, 'a').write(sys.stdin.read() + '\\n')"]
        )
        text = f"[notify]\ncommand = {told}\nurls = {json.dumps(urls)}\nend_s = {patience_s():.0f}\n"
        self.config.write_text(self.config.read_text() + text)
        return file

    async def test_people_are_told(self):
        file = self.notify()
        self.assertEqual((await self.run_program()).status, 0)
        self.target.fail["config"] = "format error"
        self.conf_file.write_text(CONF)
        self.assertEqual((await self.run_program()).status, 1)
        notices = [json.loads(line) for line in file.read_text().splitlines()]
        self.assertEqual([(one["event"], one["end"], one["host"]) for one in notices],
                         [("done", "source", "here"), ("failed", "source", "here")])  # fmt: skip
        self.assertEqual((notices[0]["move"]["target_vmid"], notices[0]["move"]["direction"]), (300, "out"))
        self.assertIn("format error", notices[1]["move"]["reason"])

    async def test_who_is_not_told_is_named(self):
        self.notify("http://127.0.0.1:9/SECRET")
        self.config.write_text(re.sub("end_s = .*", "end_s = 0.1", self.config.read_text()))
        program = await self.run_program()
        self.assertEqual(program.status, 0)
        self.assertIn(b"mtunnel migrate: 127.0.0.1:9 was not told that the move of VM 100 is done: ", program.err)

    async def test_without_fingerprint_somebody_has_to_vouch(self):
        endpoint = format_endpoint(self.target.endpoint).partition(",fingerprint=")[0]
        program = await self.run_program(endpoint=endpoint)
        self.assertEqual(program.status, 1)
        self.assertIn(b"its certificate has another fingerprint", program.err)
        self.assertEqual(self.target.requests, [])
