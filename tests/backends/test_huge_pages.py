"""Guests on huge pages: counted before a start, and taken by real QEMU where this host may set some aside."""

from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mtunnel_tx.backends.host import HUGE_PAGES, check_huge_pages
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.pve.guestconf import parse_guest_config
from mtunnel_tx.pve.hardware import read_hardware
from tests.backends.qemucase import QemuCase

POOL = HUGE_PAGES / "hugepages-2048kB"
GUEST = "numa: 1\nmemory: 64\nhugepages: 2\nfreeze: 1\n"
PAGES = 32


def memory(text):
    return read_hardware(parse_guest_config(text)).memory


class Counted(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp())

    def pool(self, kib, free):
        pool = self.folder / f"hugepages-{kib}kB"
        pool.mkdir(parents=True)
        (pool / "free_hugepages").write_text(f"{free}\n")

    def refused(self, text):
        with self.assertRaises(BackendFailed) as caught:
            check_huge_pages(memory(text), self.folder)
        return caught.exception.text

    def test_enough(self):
        self.pool(2048, 32)
        check_huge_pages(memory(GUEST), self.folder)
        check_huge_pages(memory("memory: 4096\n"), self.folder)

    def test_too_few(self):
        self.pool(2048, 31)
        self.assertEqual(self.refused(GUEST), "hugepages: 32 pages of 2 MiB needed, 31 free on this host")

    def test_a_host_without_this_size(self):
        self.pool(2048, 31)
        text = "numa: 1\nmemory: 2048\nhugepages: 1024\n"
        self.assertEqual(self.refused(text), "hugepages: 2 pages of 1024 MiB needed, 0 free on this host")

    def test_any_takes_the_largest_that_fits(self):
        self.pool(1048576, 2)
        check_huge_pages(memory("numa: 1\nmemory: 2048\nhugepages: any\n"), self.folder)
        self.assertIn("32 pages of 2 MiB", self.refused("numa: 1\nmemory: 64\nhugepages: any\n"))


class Started(QemuCase):
    def set_aside(self):
        """Pages for the test, which are given back after it."""
        count = POOL / "nr_hugepages"
        try:
            before = count.read_text()
            count.write_text(str(int(before) + PAGES))
        except OSError as error:
            raise SkipTest(f"no huge pages can be set aside: {error}") from error
        self.addCleanup(count.write_text, before)

    def free(self):
        return int((POOL / "free_hugepages").read_text())

    async def test_its_memory_is_there(self):
        self.set_aside()
        free, host = self.free(), self.host()
        if free < PAGES:
            raise SkipTest("this host has no room for huge pages")
        await host.machines.local_start(100, parse_guest_config(GUEST), self.report)
        (backend,) = await host.ask(100, "query-memdev")
        self.assertEqual((backend["size"], backend["id"]), (64 << 20, "ram-node0"))
        self.assertEqual(free - self.free(), PAGES)
        await host.machines.stop(100)
        await self.until(lambda: self.free() == free, "the pages' return")

    async def test_too_few(self):
        host, text = self.host(), GUEST.replace("64", "1048576")
        start = host.machines.local_start(100, parse_guest_config(text), self.report)
        error = await self.fails(BackendFailed, start)
        self.assertIn("pages of 2 MiB needed", error.text)
        self.assertEqual(host.files(100), [])
