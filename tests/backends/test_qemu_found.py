"""QEMU processes found again by their records, after a restart of who started them."""

import json
import os
import signal

from mtunnel_tx.backends.process import STDERR_BYTES, read_record, write_record
from mtunnel_tx.errors import BackendFailed
from tests.backends.qemucase import QemuCase, alive, guest, ticker


class FoundAgain(QemuCase):
    async def test_a_new_daemon_takes_over(self):
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw", ticker())), self.report)
        started = host.machines.process(100)
        host.machines.close()
        later = self.host()
        self.assertTrue(later.machines.running(100))
        self.assertEqual((await later.machines.state(100)).status, "running")
        pid = later.pid(100)
        self.assertEqual(later.machines.process(100), started)
        self.assertEqual(started.pid, pid)
        await later.machines.stop(100)
        self.assertFalse(alive(pid))
        self.assertIsNone(later.machines.process(100))
        self.assertEqual(later.files(100), [])
        self.assertFalse(self.host().machines.running(100))

    async def test_a_new_daemon_sees_it_end(self):
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw", ticker())), self.report)
        host.machines.close()
        later = self.host()
        self.assertTrue(later.machines.running(100))
        os.kill(later.pid(100), signal.SIGKILL)
        await self.until(lambda: not later.machines.running(100), "the end to be seen")
        self.assertEqual((await later.machines.state(100)).status, "off")

    async def test_killed_qemu_leaves_files_which_stop_removes(self):
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw", ticker())), self.report)
        pid = host.pid(100)
        os.kill(pid, signal.SIGKILL)
        await self.until(lambda: not alive(pid), "its end")
        self.assertEqual((await host.machines.state(100)).status, "off")
        self.assertFalse(host.machines.running(100))
        self.assertIn("100.serial0", host.files(100))
        await host.machines.stop(100)
        self.assertEqual(host.files(100), [])

    async def test_killed_qemu_is_started_again(self):
        host = self.host()
        conf = guest(host.volumes.make("a.raw", ticker()))
        await host.machines.local_start(100, conf, self.report)
        pid = host.pid(100)
        os.kill(pid, signal.SIGKILL)
        await self.until(lambda: not alive(pid), "its end")
        await host.machines.local_start(100, conf, self.report)
        self.assertEqual((await host.machines.state(100)).status, "running")

    async def test_a_stopped_process_is_killed_in_the_end(self):
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw", ticker())), self.report)
        pid = host.pid(100)
        os.kill(pid, signal.SIGSTOP)
        await host.machines.stop(100)
        self.assertFalse(alive(pid))
        self.assertEqual(host.files(100), [])

    async def test_a_daemon_that_died_while_it_started_one(self):
        """The record then has no pid: the process is known by its token."""
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw", ticker())), self.report)
        pid = host.pid(100)
        host.machines.close()
        file = host.runtime_dir / "100.pid"
        values = json.loads(file.read_text())
        file.write_text(json.dumps({**values, "pid": 0, "started": 0}))
        later = self.host()
        self.assertTrue(later.machines.running(100))
        await later.machines.stop(100)
        self.assertFalse(alive(pid))

    async def test_a_record_of_another_boot_or_process_is_nobody(self):
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw", ticker())), self.report)
        pid = host.pid(100)
        host.machines.close()
        file = host.runtime_dir / "100.pid"
        values = json.loads(file.read_text())
        for change in ({"boot": "another"}, {"started": values["started"] + 1}, {"pid": os.getpid()}):
            file.write_text(json.dumps({**values, **change}))
            self.assertFalse(self.host().machines.running(100), change)
        file.write_text(json.dumps(values))
        self.assertTrue(alive(pid))
        self.assertTrue(self.host().machines.running(100))

    async def test_a_record_that_nobody_understands_is_left_alone(self):
        """A QEMU may run behind it."""
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw", ticker())), self.report)
        pid = host.pid(100)
        host.machines.close()
        file = host.runtime_dir / "100.pid"
        whole = file.read_text()
        values = json.loads(whole)
        for text in ("", "17", "{}", json.dumps({**values, "version": 99}), json.dumps({**values, "more": 1})):
            file.write_text(text)
            machines = self.host().machines
            self.assertTrue(machines.running(100), text)
            for work in (machines.stop(100), machines.state(100), machines.resume(100)):
                self.assertIn("100.pid' ", (await self.fails(BackendFailed, work)).text)
            self.assertEqual(file.read_text(), text)
        file.write_text(whole)
        self.assertTrue(alive(pid))

    async def test_qemus_words_are_bounded(self):
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw", ticker())), self.report)
        stderr = host.runtime_dir / "100.stderr"
        with stderr.open("ab") as file:
            file.write(b"noise\n" * (STDERR_BYTES // 5))
        await host.machines.state(100)
        self.assertLess(stderr.stat().st_size, STDERR_BYTES)


class Records(QemuCase):
    async def test_a_record_that_is_half_written_does_not_replace_a_whole_one(self):
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw", ticker())), self.report)
        file = host.runtime_dir / "100.pid"
        record = read_record(file)
        (host.runtime_dir / "100.pid.tmp").mkdir()
        with self.assertRaises(OSError):
            write_record(file, record)
        self.assertEqual(read_record(file), record)
        (host.runtime_dir / "100.pid.tmp").rmdir()
