"""A running VM with a TPM goes from one node to another and back; its TPM's state comes along."""

import shutil

from twisted.trial.unittest import SkipTest

from mtunnel_tx.pve.drive import TPM_STATE_BYTES
from tests.whole.test_online import OnlineCase

TPM = "tpmstate0: local:100/vm-100-disk-1.raw,size=4M,version=v2.0\n"


class WithTpm(OnlineCase):
    def setUp(self) -> None:
        super().setUp()
        if not (shutil.which("swtpm") and shutil.which("swtpm_setup")):
            raise SkipTest("swtpm and swtpm-tools are not installed: NO VM WITH A TPM IS MOVED IN THESE TESTS")

    def test_it_moves_while_it_runs(self) -> None:
        self.boot(more=TPM)
        state = self.here.storage / "images" / "100" / "vm-100-disk-1.raw"
        self.assertTrue(any(state.read_bytes()))
        # What swtpm has made of the file, and what no stream format carries.
        self.assertNotEqual(state.stat().st_size, TPM_STATE_BYTES)
        self.migrate("--delete")
        self.assertIn("running", self.status(self.there, 200))
        self.assertEqual(list(state.parent.glob("*")), [])
        files = sorted((self.there.storage / "images" / "200").iterdir())
        self.assertEqual(len(files), 2)
        self.assertTrue(all(any(file.read_bytes()) for file in files))
        self.assertIn("version=v2.0", self.there.guest_file(200).read_text())

    def test_it_moves_while_it_is_stopped(self) -> None:
        self.boot(more=TPM)
        self.here.run("mtunnel_tx.cli", "vm", "stop", "100")
        before = (self.here.storage / "images" / "100" / "vm-100-disk-1.raw").read_bytes()
        self.migrate("--delete")
        files = (self.there.storage / "images" / "200").iterdir()
        (moved,) = [file for file in files if file.stat().st_size == TPM_STATE_BYTES]
        self.assertEqual(moved.read_bytes().rstrip(b"\0"), before.rstrip(b"\0"))
        self.there.run("mtunnel_tx.cli", "vm", "start", "200")
        self.assertIn("running", self.status(self.there, 200))
