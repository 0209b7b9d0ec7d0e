"""A Linux guest gives back what its file system does not use any more; `make trim` runs it."""

import shutil

from twisted.trial.unittest import SkipTest

from mtunnel_tx.backends.agent import connect_agent
from mtunnel_tx.errors import TunnelError
from tests.backends.qemucase import QemuCase, guest, reactor
from tests.processes import run_program
from tests.trim.linux import FILL_MIB, find_kernel, make_ramdisk

DISK_MIB = 64
BOOT_S = 90
MIB = 1 << 20


class RealTrim(QemuCase):
    def setUp(self):
        super().setUp()
        self.kernel = find_kernel()
        if self.kernel is None:
            raise SkipTest("no Linux kernel in .trim (make trim fetches it): NO REAL FILE SYSTEM IS TRIMMED")
        for program in ("qemu-ga", "mkfs.ext4"):
            if shutil.which(program, path="/usr/sbin:/usr/bin") is None:
                raise SkipTest(f"{program} is not installed: NO REAL FILE SYSTEM IS TRIMMED")

    async def test_blocks_come_back(self):
        host = self.host()
        volid = host.volumes.make("vm-100-disk-0.raw", size_bytes=DISK_MIB * MIB)
        disk = self.folder / "host" / "images" / "vm-100-disk-0.raw"
        run_program(["/usr/sbin/mkfs.ext4", "-q", "-F", str(disk)])
        ramdisk = self.folder / "ramdisk"
        ramdisk.write_bytes(make_ramdisk())
        words = f"args: -kernel {self.kernel} -initrd {ramdisk} -append 'console=ttyS0 quiet panic=1'"
        conf = guest(f"{volid},discard=on", "agent: 1", words, memory=384)
        await host.machines.local_start(100, conf, self.report)
        console = await host.serial(100)
        self.addCleanup(console.transport.loseConnection)
        await self.until(lambda: b"file system is ready" in console.received, "the guest's file system", BOOT_S)
        full = allocated(disk)
        self.assertGreater(full, FILL_MIB * MIB)
        self.reports.clear()
        await self.agent_answers(host)
        await host.machines.trim(100, self.report)
        self.assertEqual(self.reports, [])
        left = allocated(disk)
        self.assertLess(left, full - FILL_MIB * MIB * 3 // 4, bytes(console.received[-2000:]))

    async def agent_answers(self, host):
        """It starts right after the line that said so."""
        for attempt in range(20):
            try:
                (await connect_agent(reactor, host.runtime_dir / "100.qga")).hang_up()
            except TunnelError:
                if attempt == 19:
                    raise
            else:
                return


def allocated(path):
    """Bytes that a file really takes."""
    return path.stat().st_blocks * 512
