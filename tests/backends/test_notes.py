"""Notes in files."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.notes import FileNotes


class FileNotesTests(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.notes = FileNotes(self.folder)

    def test_notes_in_order(self):
        self.notes.replace(100, {"a": 1})
        self.notes.add(100, {"b": "ä"})
        self.assertEqual(self.notes.read(100), [{"a": 1}, {"b": "ä"}])
        self.assertEqual((self.folder / "100.notes").stat().st_mode & 0o777, 0o600)

    def test_one_in_the_place_of_all(self):
        self.notes.replace(100, {"a": 1})
        self.notes.add(100, {"b": 2})
        self.notes.replace(100, {"c": 3})
        self.assertEqual(self.notes.read(100), [{"c": 3}])
        self.assertEqual([path.name for path in self.folder.iterdir()], ["100.notes"])

    def test_a_torn_line_does_not_count(self):
        self.notes.replace(100, {"a": 1})
        with (self.folder / "100.notes").open("ab") as file:
            file.write(b'{"b": 2')
        self.assertEqual(self.notes.read(100), [{"a": 1}])

    def test_damage(self):
        (self.folder / "100.notes").write_bytes(b"{\n")
        self.assertIsNone(self.notes.read(100))

    def test_what_was_removed_stays_so(self):
        self.notes.replace(100, {"a": 1})
        self.notes.remove(100)
        self.notes.add(100, {"b": 2})
        self.assertEqual((self.notes.read(100), self.notes.standing()), (None, []))

    def test_whose_there_are(self):
        for vmid in (100, 9):
            self.notes.replace(vmid, {})
        (self.folder / "x.notes").touch()
        self.assertEqual(self.notes.standing(), [9, 100])

    def test_notes_that_cannot_be_written_go(self):
        self.notes.replace(100, {"a": 1})
        (self.folder / "100.notes.tmp").mkdir()
        self.notes.replace(100, {"b": 2})
        self.assertIsNone(self.notes.read(100))
