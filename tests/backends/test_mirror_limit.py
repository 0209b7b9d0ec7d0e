"""The limit of a mirror, with a real QEMU and a real NBD server."""

import os
import time

from tests.backends.qemucase import QemuCase, guest
from tests.processes import started_process

MIB = 1 << 20
SIZE_BYTES = 128 * MIB
"""What cannot have been copied after minutes."""
LIMIT_BYTES_S = MIB // 2
RESETS = 4


class LimitedMirror(QemuCase):
    async def test_a_guest_that_is_reset_does_not_lift_the_limit(self):
        """Each reset drains the disk, which ends the sleep of QEMU's job: a buffer goes early."""
        host = self.host()
        volume = host.volumes.make("a.raw", os.urandom(MIB) * (SIZE_BYTES // MIB), SIZE_BYTES)
        await self.serve()
        await host.machines.local_start(100, guest(volume), self.report)
        began_s = time.monotonic()
        async with host.machines.attached(100) as running:
            await running.start_mirror("scsi0", self.folder / "nbd", "copy", limit_bytes_s=LIMIT_BYTES_S)
        for _ in range(RESETS):
            await host.ask(100, "system_reset")
        async with host.machines.attached(100) as running:
            await running.adopt_mirrors()
            (mirror,) = await running.mirrors()
            most_bytes = LIMIT_BYTES_S * (time.monotonic() - began_s)
            await running.end_mirrors()
        self.assertLess(mirror.done_bytes, most_bytes + 4 * MIB)
        self.assertFalse(mirror.ready)

    async def serve(self):
        (self.folder / "copy.raw").write_bytes(bytes(SIZE_BYTES))
        words = ["qemu-nbd", "-f", "raw", "-x", "copy", "-k", str(self.folder / "nbd"), "-t", self.folder / "copy.raw"]
        started_process(self.addCleanup, words)
        await self.until((self.folder / "nbd").exists, "the NBD server")
