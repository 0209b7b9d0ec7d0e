"""`mtunnel vm console` and `vnc`, with a real guest at the other end."""

import os
import pty
import select
import signal
import socket
import subprocess
import termios

from tests.cli.vmcase import CONF, VmCase
from tests.guest.ticker import is_unbroken, read_beats
from tests.patience import patience_s, tries, wait_for
from tests.processes import started_process


class Console(VmCase):
    def setUp(self):
        super().setUp()
        self.add_ticker()

    def open(self, *words):
        """The command at a terminal of its own. Returns: the process, and our end of the terminal."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        process = started_process(self.addCleanup, self.command("console", "100", *words), **streams)
        os.close(theirs)
        return process, ours

    def read_until(self, terminal, condition):
        seen = bytearray()
        for _ in tries("the console's output"):
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 65536)
            if condition(bytes(seen)):
                return bytes(seen)
        return b""

    def test_seen_and_left(self):
        self.assertEqual(self.vm("start", "100")[0], 0)
        process, terminal = self.open()
        seen = self.read_until(terminal, lambda seen: len(read_beats(seen)) > 3)
        self.assertIn(b"serial0 of VM 100; Ctrl-] leaves it", seen)
        self.assertTrue(is_unbroken(read_beats(seen)))
        reason = "somebody else is connected to serial0 of VM 100"
        self.assertEqual(self.refused("console", "100"), reason)
        os.write(terminal, b"x\x1d")
        wait_for("its end", lambda: process.poll() is not None)
        self.assertEqual(process.returncode, 0)
        # The next one can have it, from a pipe too.
        given = {"input": b"\x1d", "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        piped = started_process(self.addCleanup, self.command("console", "ticker"), **pipes)
        self.assertTrue(piped.stdout.readline())
        piped.communicate(given["input"], timeout=patience_s())
        self.assertEqual(piped.returncode, 0)

    def test_ended_by_a_signal(self):
        """As by a terminal that is closed: the port is free again, and keys are as they were."""
        self.assertEqual(self.vm("start", "100")[0], 0)
        for number in (signal.SIGHUP, signal.SIGTERM):
            self.end_by(number)

    def end_by(self, number):
        process, terminal = self.open()
        before = termios.tcgetattr(terminal)
        self.read_until(terminal, lambda seen: b"leaves it" in seen)
        wait_for("raw keys", lambda: termios.tcgetattr(terminal) != before)
        process.send_signal(number)
        wait_for("its end", lambda: process.poll() is not None)
        self.assertEqual((process.returncode, termios.tcgetattr(terminal)), (128 + number, before))

    def test_the_guest_ends(self):
        self.assertEqual(self.vm("start", "100")[0], 0)
        process, terminal = self.open()
        self.read_until(terminal, lambda seen: len(read_beats(seen)) > 1)
        self.assertEqual(self.vm("stop", "100")[0], 0)
        self.assertIn(b"it was closed", self.read_until(terminal, lambda seen: b"closed" in seen))
        wait_for("its end", lambda: process.poll() is not None)
        self.assertEqual(process.returncode, 1)

    def test_where_there_is_none(self):
        self.assertEqual(self.refused("console", "100"), "VM 100 not running")
        reason = "VM 100 has no serial1; from its next start on: mtunnel vm set 100 serial1=socket"
        self.assertEqual(self.refused("console", "100", "--port", "1"), reason)

    def test_as_json(self):
        self.assertEqual(self.vm("start", "100")[0], 0)
        self.assertEqual(self.said("console", "100")["socket"], f"{self.run_dir}/100.serial0")


class Vnc(VmCase):
    def setUp(self):
        super().setUp()
        self.add_ticker(conf=CONF.replace("vga: serial0", "vga: std"))

    def test_where_it_is(self):
        self.assertEqual(self.refused("vnc", "100"), "VM 100 not running")
        self.assertEqual(self.vm("start", "100")[0], 0)
        status, out, _ = self.vm("vnc", "100")
        self.assertEqual((status, out.splitlines()[0]), (0, f"socket: {self.run_dir}/100.vnc"))
        self.assertEqual(self.said("vnc", "100")["socket"], f"{self.run_dir}/100.vnc")

    def test_a_port(self):
        self.assertEqual(self.vm("start", "100")[0], 0)
        words = self.command("vnc", "100", "--listen", "0")
        process = started_process(self.addCleanup, words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = process.stderr.readline()
        self.assertRegex(line, r"^mtunnel vm: the screen of VM 100 is at 127\.0\.0\.1:\d+; Ctrl-C ends that\n$")
        port = int(line.partition("127.0.0.1:")[2].partition(";")[0])
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port), patience_s()) as viewer:
                self.assertEqual(viewer.recv(12, socket.MSG_WAITALL), b"RFB 003.008\n")
                viewer.sendall(b"RFB 003.008\n")
                self.assertEqual(viewer.recv(2, socket.MSG_WAITALL), b"\x01\x01")
        taken = self.refused("vnc", "100", "--listen", str(port))
        self.assertIn(f"cannot listen on 127.0.0.1:{port}", taken)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=patience_s())
        self.assertEqual(process.returncode, 0)

    def test_a_vm_without_a_screen(self):
        (self.guests / "100.conf").write_text(CONF)
        reason = "VM 100 has no screen (vga); look at its serial port: mtunnel vm console 100"
        self.assertEqual(self.refused("vnc", "100"), reason)
