"""Which folders are mount points, by the kernel's table."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.config import load_settings
from mtunnel_tx.pve.storagecfg import parse_storage_config
from mtunnel_tx.pvesm.types import dir as dirtype


class MountTests(SynchronousTestCase):
    def setUp(self):
        self.root = Path(self.mktemp()).absolute() / "a b"
        self.root.mkdir(parents=True)

    def problem(self, is_mountpoint="1"):
        text = f"dir: store\n\tpath {self.root}\n\tis_mountpoint {is_mountpoint}\n"
        entry = parse_storage_config(text)["store"]
        return dirtype.DirDriver(load_settings(None, {"HOME": str(self.root)}), entry).find_problem()

    def test_bind_mount_of_the_same_file_system(self):
        """To stat it looks like any folder."""
        self.assertIn("is expected to be a mount point but is not mounted", self.problem())
        escaped = str(self.root).replace(" ", "\\040")
        table = self.root / "mountinfo"
        table.write_text(f"36 35 98:0 /srv {escaped} rw,noatime master:1 - ext4 /dev/root rw\n")
        self.patch(dirtype, "_MOUNTS", table)
        self.assertIsNone(self.problem())
        self.assertIsNone(self.problem(self.root))
        self.assertIn("not mounted", self.problem(self.root.parent))

    def test_the_kernels_own(self):
        self.assertIsNone(self.problem("/proc"))
