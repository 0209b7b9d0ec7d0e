"""A second storage type is one more driver: here one whose volumes are bytes in memory."""

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.pvesm import commands, main, storages
from mtunnel_tx.pvesm.driver import ListedVolume, StorageUsage
from mtunnel_tx.pvesm.header import read_size, read_stream, send_size
from mtunnel_tx.pvesm.sparse import send_all

VOLUMES: dict[str, bytes] = {}


class MemoryDriver:
    plugin = "PVE::Storage::LvmThinPlugin"

    def __init__(self, _settings, entry):
        self.entry = entry

    def find_problem(self):
        return None if self.entry.options.get("thinpool") else "no thin pool"

    def usage(self):
        return StorageUsage(total_bytes=4096, used_bytes=1024, free_bytes=3072)

    def path(self, name):
        return Path("/dev/vg") / name

    def volumes(self, kinds, vmid):
        for name, data in VOLUMES.items():
            owner = int(name.split("-")[1])
            if "images" in kinds and vmid in (None, owner):
                volid = f"{self.entry.id}:{name}"
                yield ListedVolume(volid=volid, format="raw", content="images", size_bytes=len(data), vmid=owner)

    def free(self, name):
        del VOLUMES[name]

    def allocate(self, wanted, announce):
        self._add(wanted.name or f"vm-{wanted.vmid}-disk-0", bytes(wanted.size_bytes), announce)

    def receive(self, name, _order, stream, announce):
        size_bytes = read_size(stream)
        data = bytearray(size_bytes)
        if read_stream(stream, memoryview(data)) < size_bytes:
            raise BackendFailed("cut short")
        self._add(name, bytes(data), announce)

    def send(self, name, _order, target):
        send_size(len(VOLUMES[name]), target)
        send_all(memoryview(VOLUMES[name]), target)

    def _add(self, name, data, announce):
        VOLUMES[name] = data
        announce(f"{self.entry.id}:{name}")


class SecondTypeTests(SynchronousTestCase):
    def setUp(self):
        VOLUMES.clear()
        self.addCleanup(VOLUMES.clear)
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir()
        (self.root / "storage.cfg").write_text("lvmthin: thin\n\tthinpool data\n\nlvmthin: off\n\nzfspool: tank\n")
        (self.root / "mtunnel.toml").write_text(f'pve_dir = "{self.root}"\nstate_dir = "{self.root}"\n')
        self.patch(os, "environ", {**os.environ, "MTUNNEL_CONFIG": str(self.root / "mtunnel.toml")})
        self.patch(storages, "DRIVERS", {"lvmthin": MemoryDriver})
        self.patch(main, "catch_signals", lambda: None)
        self.said = []
        for module in (main, commands):
            for name in ("say", "warn"):
                self.patch(module, name, self.said.append)

    def run_pvesm(self, *words):
        self.said.clear()
        code = main.main(words)
        return code, "\n".join(self.said)

    def test_every_command(self):
        self.assertEqual(
            self.run_pvesm("alloc", "thin", "100", "", "1"), (0, "successfully created 'thin:vm-100-disk-0'")
        )
        self.assertIn("thin:vm-100-disk-0 raw     images    1024 100", self.run_pvesm("list", "thin")[1])
        self.assertEqual(self.run_pvesm("path", "thin:vm-100-disk-0"), (0, "/dev/vg/vm-100-disk-0"))
        self.assertEqual(self.run_pvesm("free", "thin:vm-100-disk-0"), (0, "Removed volume 'thin:vm-100-disk-0'"))
        self.assertEqual(VOLUMES, {})

    def test_streams(self):
        VOLUMES["vm-100-disk-0"] = b"x" * 700
        file = str(self.root / "stream")
        self.assertEqual(self.run_pvesm("export", "thin:vm-100-disk-0", "raw+size", file)[0], 0)
        code, text = self.run_pvesm("import", "thin:vm-100-disk-1", "raw+size", file)
        self.assertEqual((code, text), (0, "successfully imported 'thin:vm-100-disk-1'"))
        self.assertEqual(VOLUMES["vm-100-disk-1"], b"x" * 700)

    def test_the_core_knows_which_streams_a_type_takes(self):
        text = "volume import format 'zfs' not available for PVE::Storage::LvmThinPlugin"
        self.assertEqual(self.run_pvesm("import", "thin:vm-100-disk-1", "zfs", "/dev/null"), (255, text))
        text = "format raw+size cannot be imported with snapshots"
        words = ("import", "thin:vm-100-disk-1", "raw+size", "/dev/null", "-with-snapshots", "1")
        self.assertEqual(self.run_pvesm(*words), (255, text))

    def test_problems_and_other_types(self):
        self.assertEqual(self.run_pvesm("list", "off")[1], "unable to activate storage 'off' - no thin pool")
        text = "storage 'tank' has type 'zfspool', mtunnel-pvesm drives type 'lvmthin' only"
        self.assertEqual(self.run_pvesm("list", "tank")[1], text)
        rows = {line.split()[0]: line.split()[1:] for line in self.run_pvesm("status")[1].splitlines()[2:]}
        self.assertEqual(rows["thin"], ["lvmthin", "active", "4", "1", "3", "25.00%"])
        self.assertEqual(rows["tank"][:2], ["zfspool", "inactive"])
