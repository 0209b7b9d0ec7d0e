"""PvesmStorage on the real mtunnel-pvesm, and on a stand-in with the output of Proxmox's own."""

import hashlib
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from mtunnel_tx.backends.storage import PvesmStorage
from mtunnel_tx.errors import BackendFailed, NotFound, TunnelError
from mtunnel_tx.ports.storage import ImportRequest, Volume
from tests.patience import patience_s
from tests.processes import run_program

MIB = 1 << 20
CFG = "dir: local\n\tpath {root}/local\n\tcontent images,iso\n\tbwlimit migration=100\n\nzfspool: tank\n\tpool tank\n"
PROXMOX = r"""#!/bin/sh
case "$1" in
list) cat <<E
WARNING: something about storage 'tank'
Volid              Format  Type            Size VMID
tank:vm-100-disk-0 raw     images    1073741824 100
local:iso/a b.iso  iso     iso           12345
E
;;
alloc) echo "  Formatting '$2'"; echo "successfully created 'tank:vm-$3-disk-0'"; echo "args: $*" ;;
path) echo "warning"; echo "/dev/zvol/tank/vm-100-disk-0" ;;
status) echo "Name Type Status Total (KiB) Used (KiB) Available (KiB) %"
echo "tank zfspool active 1000 400 600 40.00%" ;;
*) echo "$*"; echo "gone wrong" >&2; exit 9 ;;
esac
"""


class StorageCase(TestCase):
    def setUp(self):
        self.root = Path(tempfile.mkdtemp(prefix="storage-"))
        self.addCleanup(shutil.rmtree, self.root)
        self.pve_dir = self.root / "state/pve"
        self.pve_dir.mkdir(parents=True)
        (self.root / "run").mkdir(mode=0o700)
        self.cfg = self.pve_dir / "storage.cfg"
        self.cfg.write_text(CFG.format(root=self.root))
        config = self.root / "mtunnel.toml"
        config.write_text(f'node = "n"\nstate_dir = "{self.root}/state"\nruntime_dir = "{self.root}/run"\n')
        self.env = {**os.environ, "MTUNNEL_CONFIG": str(config), "PYTHONPATH": str(Path(__file__).parents[2])}
        self.images = self.root / "local/images"
        self.lines = []
        self.storage = self.make([sys.executable, "-m", "mtunnel_tx.pvesm"])

    def make(self, command) -> PvesmStorage:
        return PvesmStorage(reactor, command=command, environ=self.env, pve_dir=self.pve_dir, owner=str(self.root))

    def qcow2(self, name, *options) -> str:
        folder = self.images / "100"
        folder.mkdir(parents=True, exist_ok=True)
        argv = ["qemu-img", "create", "-q", "-f", name.rpartition(".")[2], *options, folder / name, "4M"]
        run_program(argv)
        return f"local:100/{name}"

    async def failure(self, awaitable, kind):
        try:
            await awaitable
        except kind as error:
            return error.text
        return self.fail("no failure")


class OwnProgramTests(StorageCase):
    async def test_life_of_a_volume(self):
        volid = await self.storage.alloc("local", 100, 4 * MIB - 1, "qcow2", self.lines.append)
        self.assertEqual(volid, "local:100/vm-100-disk-0.qcow2")
        self.assertTrue(self.lines[0].startswith("Formatting '"))
        wanted = Volume(volid=volid, format="qcow2", content="images", size_bytes=4 * MIB, vmid=100)
        self.assertEqual(await self.storage.volumes("local", 100), [wanted])
        self.assertEqual(await self.storage.volumes("local", 101), [])
        self.assertEqual(await self.storage.size_bytes(volid), 4 * MIB)
        path = await self.storage.path(volid)
        self.assertEqual(path, str(self.images / "100/vm-100-disk-0.qcow2"))
        self.assertEqual(await self.storage.digest(volid), hashlib.sha256(Path(path).read_bytes()).hexdigest())
        self.assertIsNone(await self.storage.refers_elsewhere(volid))
        await self.storage.sync([volid, "local:100/vm-100-disk-9.raw"])
        await self.storage.free(volid)
        self.assertEqual(await self.storage.volumes("local"), [])
        self.assertIsNone(await self.storage.size_bytes(volid))

    async def test_holes(self):
        path = self.images / "100/vm-100-disk-0.raw"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.seek(64 * MIB)
            file.write(b"x" * 65536)
            file.truncate(1 << 30)
        found = await self.storage.extents("local:100/vm-100-disk-0.raw")
        self.assertEqual((found.length_bytes, found.data_bytes, found.count), (1 << 30, 65536, 1))
        await self.failure(self.storage.extents("local:100/vm-100-disk-1.raw"), BackendFailed)

    async def test_what_a_copy_would_take(self):
        """The map of an image says it, not its file, which has snapshots as well."""
        volid = self.qcow2("vm-100-disk-0.qcow2")
        path = str(self.images / "100/vm-100-disk-0.qcow2")
        run_program(["qemu-io", "-c", "write 0 2M", path], check=True)
        run_program(["qemu-img", "snapshot", "-c", "before", path], check=True)
        run_program(["qemu-io", "-c", "write 0 2M", path], check=True)
        self.assertGreater((await self.storage.extents(volid)).data_bytes, 4 * MIB)
        written_bytes = await self.storage.written_bytes(volid)
        self.assertTrue(2 * MIB < written_bytes < 3 * MIB, written_bytes)
        self.assertIsNone(await self.storage.written_bytes("local:100/vm-100-disk-0.raw"))

    async def test_every_size_in_sectors(self):
        """A mirror needs equal sizes; `pvesm alloc` counts in KiB."""
        for number, (format, size_bytes) in enumerate(
            (("raw", 4 * MIB + 512), ("qcow2", 4 * MIB + 1536), ("raw", 513))
        ):
            volid = await self.storage.alloc("local", 100, size_bytes, format, self.lines.append)
            self.assertIn(f"disk-{number}.{format}", volid)
            self.assertEqual(await self.storage.size_bytes(volid), -(-size_bytes // 512) * 512)

    async def test_iso(self):
        iso = self.root / "local/template/iso/my disk.iso"
        iso.parent.mkdir(parents=True)
        iso.write_bytes(b"12345")
        self.assertEqual(await self.storage.size_bytes("local:iso/my disk.iso"), 5)
        self.assertIsNone(await self.storage.size_bytes("local:iso/other.iso"))
        self.assertEqual(await self.storage.digest("local:iso/my disk.iso"), hashlib.sha256(b"12345").hexdigest())

    async def test_failures_name_the_command_and_its_words(self):
        text = await self.failure(self.storage.alloc("nosuch", 100, MIB, "raw", self.lines.append), BackendFailed)
        self.assertEqual(text, "'pvesm alloc' failed with exit code 255: storage 'nosuch' does not exist")
        text = await self.failure(self.storage.size_bytes("nosuch:100/x.raw"), NotFound)
        self.assertEqual(text, "storage 'nosuch' does not exist")
        await self.failure(self.storage.size_bytes("local:100/../x.raw"), TunnelError)
        await self.failure(self.storage.digest("local:100/vm-100-disk-0.raw"), BackendFailed)

    async def test_import(self):
        path = self.root / "x.sock"
        child = self.storage.start_import(
            ImportRequest(
                volid="local:100/vm-100-disk-0.raw",
                stream_format="raw+size",
                socket=path,
                with_snapshots=False,
                allow_rename=True,
            )
        )
        self.assertEqual(await child.next_line(patience_s()), "ready\n")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall((1024).to_bytes(8, "little") + b"x" * 1024)
        self.assertIn("Formatting", await child.next_line(patience_s()))
        self.assertEqual(await child.next_line(patience_s()), "successfully imported 'local:100/vm-100-disk-0.raw'\n")
        self.assertIsNone(await child.next_line(patience_s()))
        self.assertTrue(child.exhausted())
        self.assertEqual(await child.ended(), 0)

    async def test_a_killed_import_leaves_nothing_after_the_next_look(self):
        path = self.root / "x.sock"
        child = self.storage.start_import(
            ImportRequest(
                volid="local:100/vm-100-disk-0.raw",
                stream_format="raw+size",
                socket=path,
                with_snapshots=False,
                allow_rename=False,
            )
        )
        self.assertEqual(await child.next_line(patience_s()), "ready\n")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall((2 * MIB).to_bytes(8, "little") + b"x" * MIB)
            self.assertIn("Formatting", await child.next_line(patience_s()))
            await child.kill()
        self.assertEqual(await self.storage.volumes("local", 100), [])
        self.assertFalse((self.images / "100").exists())

    async def test_export(self):
        volid = self.qcow2("vm-100-disk-0.qcow2")
        image = (self.images / "100/vm-100-disk-0.qcow2").read_bytes()
        with tempfile.TemporaryFile() as file:
            child = self.storage.start_export(volid, "qcow2+size", with_snapshots=True, stdout=file.fileno())
            self.assertIsNone(await child.next_line(patience_s()))
            self.assertEqual(await child.ended(), 0)
            file.seek(0)
            self.assertEqual(file.read(), (4 * MIB).to_bytes(8, "little") + image)

    async def test_available_bytes(self):
        free = await self.storage.available_bytes("local")
        self.assertLess(abs(free - shutil.disk_usage(self.root).free), 1 << 30)
        self.assertIsNone(await self.storage.available_bytes("nosuch"))


class ConfigTests(StorageCase):
    def test_read_again_when_changed(self):
        self.assertEqual(set(self.storage.config()), {"local", "tank"})
        self.assertIs(self.storage.config(), self.storage.config())
        self.cfg.write_text("dir: other\n\tpath /other\n")
        self.assertEqual(set(self.storage.config()), {"other"})
        self.cfg.unlink()
        self.assertEqual(self.storage.config(), {})
        self.cfg.write_text("dir: other\n\tpath /other\n")
        self.assertEqual(set(self.storage.config()), {"other"})

    def test_datacenter(self):
        self.assertIsNone(self.storage.datacenter_bwlimit())
        (self.pve_dir / "datacenter.cfg").write_text("keyboard: de\nbwlimit: migration=51200\n")
        self.assertEqual(self.storage.datacenter_bwlimit(), "migration=51200")

    def test_a_file_that_cannot_be_read(self):
        self.cfg.unlink()
        self.cfg.mkdir()
        self.assertRaises(BackendFailed, self.storage.config)


class ProxmoxProgramTests(StorageCase):
    """What Proxmox's own pvesm prints differs in its columns and its chatter."""

    def setUp(self):
        super().setUp()
        program = self.root / "pvesm"
        program.write_text(PROXMOX)
        program.chmod(0o755)
        self.storage = self.make([str(program)])

    async def test_list(self):
        wanted = Volume(volid="tank:vm-100-disk-0", format="raw", content="images", size_bytes=1 << 30, vmid=100)
        self.assertEqual(await self.storage.volumes("tank", 100), [wanted])
        wanted = Volume(volid="local:iso/a b.iso", format="iso", content="iso", size_bytes=12345, vmid=None)
        self.assertEqual(await self.storage.volumes("local"), [wanted])

    async def test_alloc_passes_the_other_lines_on(self):
        self.assertEqual(await self.storage.alloc("tank", 100, 1025, "raw", self.lines.append), "tank:vm-100-disk-0")
        self.assertEqual(self.lines, ["  Formatting 'tank'", "args: alloc tank 100  2 -format raw"])

    async def test_alloc_of_a_name_with_an_apostrophe(self):
        program = self.root / "pvesm"
        program.write_text("#!/bin/sh\necho \"successfully created 'tank:vm-100-o'clock'\"\n")
        self.assertEqual(await self.storage.alloc("tank", 100, 1, "raw", self.lines.append), "tank:vm-100-o'clock")

    async def test_path_and_size(self):
        self.assertEqual(await self.storage.path("tank:vm-100-disk-0"), "/dev/zvol/tank/vm-100-disk-0")
        self.assertEqual(await self.storage.size_bytes("tank:vm-100-disk-0"), 1 << 30)
        self.assertIsNone(await self.storage.size_bytes("tank:vm-100-disk-1"))
        self.assertIsNone(await self.storage.refers_elsewhere("tank:vm-100-disk-0"))

    async def test_what_is_no_file_is_not_synced(self):
        await self.storage.sync(["tank:vm-100-disk-0"])

    async def test_its_streams_are_those_of_proxmox(self):
        self.assertNotIn("raw+sparse", self.storage.stream_formats)
        for command in ([sys.executable, "-m", "mtunnel_tx.pvesm"], ["/opt/bin/mtunnel-pvesm"]):
            self.assertIn("raw+sparse", self.make(command).stream_formats)
        self.assertIsNone(await self.storage.extents("tank:vm-100-disk-0"))

    async def test_available(self):
        self.assertEqual(await self.storage.available_bytes("tank"), 600 * 1024)

    async def test_failure(self):
        text = await self.failure(self.storage.free("tank:vm-100-disk-0"), BackendFailed)
        self.assertEqual(text, "'pvesm free' failed with exit code 9: free tank:vm-100-disk-0\ngone wrong")

    async def test_import_arguments(self):
        request = ImportRequest(
            volid="tank:vm-100-disk-0",
            stream_format="zfs",
            socket=Path("/run/x"),
            with_snapshots=True,
            allow_rename=False,
            snapshot="__migration__",
            delete_snapshot="__migration__",
        )
        line = await self.storage.start_import(request).next_line(patience_s())
        self.assertEqual(
            line,
            "import tank:vm-100-disk-0 zfs unix:///run/x -with-snapshots 1 -snapshot __migration__"
            " -delete-snapshot __migration__ -allow-rename 0\n",
        )
