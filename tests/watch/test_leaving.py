"""Moves that programs send: their files, and those of programs that were killed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.programs import HostPrograms
from mtunnel_tx.watch.leaving import STALE_S, LeavingFile, read_leaving, remove_dead
from tests.watch.test_move import NEW


class Leaving(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.programs = HostPrograms()
        self.file = LeavingFile(self.folder, 100, self.programs.this())

    def read(self) -> list[int]:
        return [move.vmid for move in read_leaving(self.folder, self.programs)]

    def test_one_for_each_vm(self) -> None:
        self.file.write(NEW)
        self.file.write(replace(NEW, wire_out_bytes=7))
        LeavingFile(self.folder, 99, self.programs.this()).write(replace(NEW, vmid=99))
        self.assertEqual(self.read(), [99, 100])
        self.assertEqual(read_leaving(self.folder, self.programs)[1].wire_out_bytes, 7)
        self.file.remove()
        self.file.remove()
        self.assertEqual(self.read(), [99])

    def test_only_its_owner_may_read_it(self) -> None:
        self.file.write(NEW)
        self.assertEqual(next(self.folder.iterdir()).stat().st_mode & 0o777, 0o600)

    def test_the_program_was_killed(self) -> None:
        dead = replace(self.programs.this(), started=1)
        LeavingFile(self.folder, 100, replace(dead, pid=1)).write(NEW)
        self.file.write(NEW)
        self.assertEqual(self.read(), [100])
        remove_dead(self.folder, self.programs, time.time())
        self.assertEqual(len(list(self.folder.iterdir())), 1)

    def test_what_is_half_written_goes_when_it_is_old(self) -> None:
        self.file.write(NEW)
        for name in ("99-7.leaving", "99-7.leaving.new"):
            (self.folder / name).write_text("{")
        remove_dead(self.folder, self.programs, time.time())
        self.assertEqual(len(list(self.folder.iterdir())), 3)
        remove_dead(self.folder, self.programs, time.time() + STALE_S + 1)
        self.assertEqual(len(list(self.folder.iterdir())), 1)
        self.assertEqual(self.read(), [100])

    def test_a_second_program_does_not_hide_the_first(self) -> None:
        """It is refused, and removes its own file only."""
        self.file.write(NEW)
        second = LeavingFile(self.folder, 100, replace(self.programs.this(), pid=1))
        second.write(NEW)
        second.remove()
        self.assertEqual(self.read(), [100])

    def test_what_cannot_be_read(self) -> None:
        for text in ("", "[]", "{}", '{"program": {}, "move": 1}', "{" * 99):
            (self.folder / "100.leaving").write_text(text)
            self.assertEqual(self.read(), [], text)
        self.assertEqual(read_leaving(self.folder / "none", self.programs), [])
