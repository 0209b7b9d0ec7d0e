"""A VM that is paused goes to another node: nobody runs it there, so `unlock` is what decides whose it is."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

from mtunnel_tx.backends.process import read_record
from tests.backends.qemucase import alive
from tests.matrix.proxy import COMMANDS, Proxy
from tests.patience import patience_s, wait_for
from tests.proxmox.online import Monitor
from tests.whole.test_online import DISK_BYTES, Listener, OnlineCase

WITHOUT_NBDSTOP = """\
from mtunnel_tx.cli.main import main
from mtunnel_tx.source.tunnel import TargetTunnel

async def forget(self):
    pass

TargetTunnel.stop_nbd = forget
raise SystemExit(main())
"""
NO_ZEROES = 2
EXPORT_NAME, WRITE = 1, 1
SECTOR = bytes(range(256)) * 2


class PausedTests(OnlineCase):
    def boot_and_pause(self) -> Listener:
        before = self.boot(spare=False)
        self.ask("stop")
        return before

    def ask(self, command: str) -> str:
        monitor = Monitor(self.here.runtime / "100.qmp")
        try:
            return str(monitor.ask(command).get("status"))
        finally:
            monitor.close()

    def start_migration(self, program: list[str], endpoint: str) -> subprocess.Popen[str]:
        words = ["migrate", "100", endpoint, "--online", "--target-vmid", "200", "--target-storage", "local"]
        return self.start([sys.executable, *program, *words, "--delete"])

    def has_heard(self, command: str) -> bool:
        """Whether the target was given it."""
        logs = (self.there.state / "tasks").rglob("UPID*qmtunnel*")
        return any(f"received command '{command}'" in path.read_text() for path in logs)

    def kill_there(self) -> None:
        pid = read_record(self.there.runtime / "200.pid").pid
        os.kill(pid, signal.SIGKILL)
        wait_for("its end", lambda: not alive(pid))

    def test_its_memory_is_lost_there_before_it_is_given(self) -> None:
        """The target's QEMU dies behind `nbdstop`: the only whole copy is here, and it stays, paused as it was."""
        before = self.boot_and_pause()
        proxy = Proxy(self.there.port, lambda: COMMANDS, lambda: self.has_heard("nbdstop"))
        self.addCleanup(proxy.close)
        endpoint = self.there.endpoint.replace(f"port={self.there.port}", f"port={proxy.own_port}")
        migration = self.start_migration(["-m", "mtunnel_tx.cli"], endpoint)
        wait_for("the command behind nbdstop", proxy.holding.is_set, 60)
        wait_for("the end of the export", lambda: not (self.there.runtime / "200_nbd.migrate").exists())
        self.kill_there()
        proxy.release()
        out, err = migration.communicate(timeout=patience_s(60))
        self.assertEqual(migration.returncode, 1, (out, err))
        self.assertIn("VM 100 stays here, paused\n", out)
        # Its export ends before QEMU has answered: the end may come in between.
        self.assertRegex(err, "VM 200 not running|'nbdstop' command - QEMU closed its monitor")
        self.assertEqual(self.ask("query-status"), "paused")
        self.assertEqual((self.there.guest(200), self.there.images(200)), (None, []))
        self.assertNotIn("lock", self.here.guest(100) or "lock")
        beats = len(before.beats)
        self.here.run("mtunnel_tx.cli", "vm", "resume", "100")
        wait_for("beats here", lambda: len(before.beats) > beats + 3)
        self.assertEqual({flag for _, flag in before.beats}, {"."})

    def test_a_disk_that_is_still_open_when_it_is_given(self) -> None:
        """A source that forgets `nbdstop`: from `unlock` on nobody but the VM writes to its disk."""
        self.boot_and_pause()
        migration = self.start_migration(["-c", WITHOUT_NBDSTOP], self.there.endpoint)
        path = self.there.runtime / "200_nbd.migrate"
        client = wait_for("the export", lambda: open_export(path), 60)
        self.addCleanup(client.close)
        client.write(DISK_BYTES - 512, SECTOR)
        out, err = migration.communicate(timeout=patience_s(60))
        self.assertEqual(migration.returncode, 0, (out, err))
        self.assertEqual((self.has_heard("unlock"), self.has_heard("nbdstop")), (True, False))
        self.assertTrue(client.is_ended())
        self.assertFalse(path.exists())
        self.assertEqual(self.status(self.there, 200).splitlines()[0], "status: paused")


def open_export(path: Path) -> NbdClient | None:
    """None: it is not there yet, or its server has no exports yet."""
    try:
        return NbdClient(path)
    except (OSError, EOFError):
        return None


class NbdClient:
    """Somebody who has a disk open: NBD's oldest handshake, and writes."""

    def __init__(self, path: Path, name: bytes = b"drive-scsi0") -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(patience_s())
        self._sock.connect(str(path))
        self._read(18)
        self._sock.sendall(struct.pack(">I8sII", NO_ZEROES | 1, b"IHAVEOPT", EXPORT_NAME, len(name)) + name)
        self._read(10)

    def _read(self, size_bytes: int) -> bytes:
        data = self._sock.recv(size_bytes, socket.MSG_WAITALL)
        if len(data) < size_bytes:
            raise EOFError
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Raises: OSError, EOFError: the export is gone."""
        self._sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, offset, len(data)) + data)
        _, error, _ = struct.unpack(">IIQ", self._read(16))
        assert not error, error

    def is_ended(self) -> bool:
        """Whether a write does no more come through."""
        try:
            self.write(0, SECTOR)
        except (OSError, EOFError):
            return True
        return False

    def close(self) -> None:
        self._sock.close()
