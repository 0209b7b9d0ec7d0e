"""What tests of imports have in common."""

import os

from twisted.trial.unittest import SkipTest

from tests.processes import run_program
from tests.pvesm.programs import PvesmCase

SNAPSHOTS = ("-with-snapshots", "1")


class ImportCase(PvesmCase):
    def feed(self, target, payload, *options, **more):
        """Import from standard input."""
        with_snapshots = () if target[1] == "raw+size" else SNAPSHOTS
        return self.pvesm("import", *target, "-", *with_snapshots, *options, given=payload, **more)

    def refused(self, done, text):
        """An error that says so, and nothing left behind: no file, no folder, no word of success."""
        self.assertIn(text, done.err)
        self.assertEqual(done.code, 255)
        self.assertNotIn("successfully", done.out)
        self.assertEqual(self.tree(), [])

    def stored(self, name) -> bytes:
        return (self.images / "100" / name).read_bytes()

    def mount_small(self, size):
        """Put the storage on a file system of this size."""
        if os.geteuid() != 0:
            raise SkipTest("NEEDS ROOT: a small file system is mounted")
        place = self.root / "local"
        place.mkdir()
        mounted = run_program(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], check=False)
        if mounted.returncode:
            raise SkipTest("NEEDS MOUNT: no file system can be mounted here")
        self.addCleanup(run_program, ["umount", place])
