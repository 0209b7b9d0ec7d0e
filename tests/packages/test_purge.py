"""What a purge of the package removes, and what it never does: its script in a tree of its own."""

from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.packages.scripts import write_script
from tests.processes import run_program

OWN = (
    "daemon.lock",
    "history.sqlite3",
    "history.sqlite3-wal",
    "pve/firewall/100.fw",
    "pve/priv/access.lock",
    "pve/priv/token.cfg",
    "pve/storage.cfg",
    "pve/user.cfg",
    "pve/virtual-guest/cpu-models.conf",
    "reserve",
    "resume.key",
    "tasks/index",
    "tasks/1/UPID:node:1",
    "ticket.key",
    "tls/certificate.pem",
    "tls/key.pem",
)
GUESTS = (
    "storage/images/100/vm-100-disk-0.qcow2",
    "big/images/100/vm-100-disk-0.raw",
    "tls/images/100/vm-100-disk-0.raw",
    "pve/nodes/node/qemu-server/100.conf",
    "journal/100.jsonl",
    "storage/template/iso/some.iso",
)
MOUNTED = 'mount -t tmpfs none "$1" && mkdir "$1/images" && exec sh "$2" purge'


class Purge(SynchronousTestCase):
    def setUp(self):
        self.root = Path(self.mktemp()).absolute()
        self.state = self.root / "var" / "lib" / "mtunnel"
        for folder in ("journal", "storage/images", "pve/nodes/node/qemu-server"):
            (self.state / folder).mkdir(parents=True)
        for name in OWN:
            self.make(name)
        self.script = write_script("postrm", self.root)

    def make(self, name):
        file = self.state / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
        return file

    def purge(self, *argv):
        done = run_program(argv or ["sh", self.script, "purge"], capture_output=True, check=False, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stderr

    def test_all_that_the_daemon_makes_goes(self):
        self.assertEqual(self.purge(), "")
        self.assertFalse(self.state.exists())
        self.assertEqual(self.purge(), "")

    def test_nothing_goes_where_there_is_a_guest(self):
        """Disks count in every storage below the state directory."""
        for name in GUESTS:
            file = self.make(name)
            self.assertIn(f"mtunnel stays, with guests and their disks ({file}", self.purge())
            for one in (*OWN, name):
                self.assertTrue((self.state / one).exists(), one)
            file.unlink()

    def test_a_link_to_a_disk_is_a_disk(self):
        disk = self.root / "disk.raw"
        disk.write_text("x")
        (self.state / "storage" / "images" / "disk.raw").symlink_to(disk)
        self.assertIn("stays", self.purge())
        self.assertTrue(disk.exists())

    def test_a_storage_that_is_a_mount_point_stays(self):
        storage = self.state / "storage"
        unshare = ["unshare", "--user", "--map-root-user", "--mount"]
        if run_program([*unshare, "true"], check=False, capture_output=True).returncode:
            raise SkipTest("no mounts of one's own here")
        said = self.purge(*unshare, "sh", "-c", MOUNTED, "sh", storage, self.script)
        self.assertIn(f"mtunnel stays: {storage} is", said)
        self.assertEqual([one.name for one in self.state.iterdir()], ["storage"])
