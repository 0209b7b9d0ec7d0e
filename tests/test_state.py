"""What a daemon has of its own on disk."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.daemon.state import lock_state
from mtunnel_tx.errors import WrongState


class LockTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="state-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def test_one_daemon_on_one_state(self) -> None:
        with lock_state(self.folder), self.assertRaises(WrongState):
            lock_state(self.folder)
        lock_state(self.folder).close()

    def test_also_where_somebody_removed_the_file(self) -> None:
        with lock_state(self.folder):
            (self.folder / "daemon.lock").unlink()
            with self.assertRaises(WrongState):
                lock_state(self.folder)
        lock_state(self.folder).close()
