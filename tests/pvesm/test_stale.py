"""Unfinished images whose maker's number has gone to another process, one that we may not look into."""

import os
from pathlib import Path

from mtunnel_tx.config import load_settings
from mtunnel_tx.pvesm import commands
from mtunnel_tx.pvesm.images import removal, reservation
from mtunnel_tx.pvesm.storages import open_storage
from tests.pvesm.programs import PvesmCase


class StaleTests(PvesmCase):
    def setUp(self):
        super().setUp()
        self.settings = load_settings(None, self.env)
        (self.images / "100").mkdir(parents=True)
        self.part = self.images / f"100/.vm-100-disk-0.raw.part-{os.getpid()}"
        self.part.touch()

    def test_files_that_may_not_be_looked_at(self):
        real = Path.stat

        def stat(path, **options):
            if path.parts[:2] == ("/", "proc"):
                raise PermissionError
            return real(path, **options)

        self.patch(Path, "stat", stat)
        reservation.sweep(open_storage(self.settings, "local")._folders, 100)
        self.assertEqual(self.tree(), [])

    def test_free_does_not_depend_on_it(self):
        def sweep(_storage, _vmid):
            raise PermissionError

        self.patch(removal, "sweep", sweep)
        (self.images / "100/vm-100-disk-1.raw").touch()
        commands.free(self.settings, "local:100/vm-100-disk-1.raw")
        self.assertEqual(self.tree(), ["images/100", f"images/100/{self.part.name}"])
