"""What children get of our environment."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.config import load_settings
from mtunnel_tx.local import SYSTEM_PATH, make_environ


class Environment(SynchronousTestCase):
    def setUp(self):
        self.file = Path(self.mktemp())
        self.file.write_text('node = "here"\nstate_dir = "/s"\nruntime_dir = "/r"\n')
        self.settings = load_settings(self.file, {})

    def test_programs_of_an_administrator_are_found(self):
        """Proxmox's `pvesm` and `qm` are in /usr/sbin, where nobody looks who has no PATH."""
        self.assertIn("/usr/sbin", SYSTEM_PATH.split(":"))
        self.assertEqual(make_environ(self.settings, {})["PATH"], SYSTEM_PATH)
        self.assertEqual(make_environ(self.settings, {"PATH": "/x"})["PATH"], "/x")

    def test_little_else(self):
        given = {"HOME": "/root", "NOTIFY_SOCKET": "/n", "LC_ALL": "de_DE.UTF-8", "MTUNNEL_CONFIG": "/other"}
        environ = make_environ(self.settings, given)
        self.assertEqual(set(environ), {"HOME", "PATH", "LC_ALL", "MTUNNEL_CONFIG"})
        self.assertEqual((environ["LC_ALL"], environ["MTUNNEL_CONFIG"]), ("C", str(self.file.absolute())))
