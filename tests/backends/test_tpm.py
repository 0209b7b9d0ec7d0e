"""A TPM that is swtpm's: it lives as long as QEMU, and its state comes along with the VM."""

import contextlib
import os
import shutil
from pathlib import Path

from twisted.trial.unittest import SkipTest

from mtunnel_tx.backends.host import HostFacts
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.ports.machines import Incoming
from tests.backends.qemucase import QemuCase, guest, reactor, ticker

STATE_BYTES = 4 << 20
TPM = "tpmstate0: local:100/tpm.raw,version=v2.0"


def swtpms(folder):
    """The swtpm processes whose state is below a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and b"swtpm" in (words := (entry / "cmdline").read_bytes()):
                found += [int(entry.name)] if str(folder).encode() in words else []
    return found


class WithTpm(QemuCase):
    def setUp(self):
        super().setUp()
        if not (shutil.which("swtpm") and shutil.which("swtpm_setup")):
            raise SkipTest("swtpm and swtpm-tools are not installed: NOTHING ABOUT TPMS IS TESTED")

    def prepared(self, name, content):
        host = self.host(name)
        host.volumes.make("tpm.raw", size_bytes=STATE_BYTES)
        return host, guest(host.volumes.make("a.raw", content), TPM)

    async def started(self):
        host, conf = self.prepared("here", ticker())
        await host.machines.local_start(100, conf, self.report)
        return host

    async def test_it_is_there_and_ends_with_qemu(self):
        host = await self.started()
        (tpm,) = await host.ask(100, "query-tpm")
        self.assertEqual((tpm["model"], tpm["options"]["type"]), ("tpm-tis", "emulator"))
        self.assertEqual(len(swtpms(self.folder)), 1)
        self.assertTrue(any(host.volumes.read("tpm.raw")))
        await host.machines.stop(100)
        await self.until(lambda: not swtpms(self.folder), "the end of swtpm")

    async def test_it_ends_with_a_qemu_that_is_killed(self):
        host = await self.started()
        os.kill(host.pid(100), 9)
        await self.until(lambda: not swtpms(self.folder), "the end of swtpm")

    async def test_a_state_that_is_there_is_kept(self):
        host = await self.started()
        await host.machines.stop(100)
        before = host.volumes.read("tpm.raw")
        await host.machines.local_start(100, guest("local:100/a.raw", TPM), self.report)
        await host.machines.stop(100)
        self.assertEqual(host.volumes.read("tpm.raw")[:64], before[:64])

    async def test_its_state_moves_with_the_vm(self):
        here = await self.started()
        there, conf = self.prepared("there", b"")
        incoming = Incoming(
            migrate_socket=there.runtime_dir / "100.migrate", nbd_socket=None, exports={}, from_node="here"
        )
        shutil.copy(self.folder / "here" / "images" / "a.raw", self.folder / "there" / "images")
        await there.machines.start(100, conf, incoming, self.report)
        self.assertEqual(len(swtpms(self.folder)), 2)
        async with here.machines.attached(100) as running:
            await running.start_migration(incoming.migrate_socket)
            await running.until_switchover()
            await running.switch_over()
        await there.machines.resume(100)
        self.assertEqual((await there.machines.state(100)).status, "running")
        # The keys that were made on the other host.
        self.assertTrue(any(there.volumes.read("tpm.raw")[:4096]))
        await here.machines.stop(100)
        await self.until(lambda: len(swtpms(self.folder)) == 1, "the end of the first swtpm")

    async def test_without_swtpm_it_is_refused(self):
        folder = self.folder / "bin"
        folder.mkdir()
        (folder / "qemu-system-x86_64").symlink_to(shutil.which("qemu-system-x86_64"))
        for name in ("setsid", "prlimit"):
            (folder / name).symlink_to(shutil.which(name))
        host = self.host(facts=HostFacts(reactor, {"PATH": str(folder)}))
        work = host.machines.local_start(100, guest(host.volumes.make("a.raw"), TPM), self.report)
        error = await self.fails(TunnelError, work)
        self.assertEqual(error.text, "tpmstate0: this host has no swtpm; on Debian install swtpm and swtpm-tools")
