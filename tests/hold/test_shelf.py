"""Descriptors under names: who closes them, and the bounds."""

import os

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.hold import shelf
from mtunnel_tx.hold.shelf import Refused, Shelf


def pipe_end() -> int:
    """One descriptor that the shelf may close."""
    kept, other = os.pipe()
    os.close(other)
    return kept


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class ShelfTests(SynchronousTestCase):
    def setUp(self):
        self.shelf = Shelf()
        self.addCleanup(self.shelf.clear)

    def test_what_is_put_there_stays(self):
        fd = pipe_end()
        self.shelf.put("flow/1", {"vmid": 100}, [fd])
        entry = self.shelf.get("flow/1")
        self.assertEqual((entry.value, entry.fds, is_open(fd)), ({"vmid": 100}, (fd,), True))

    def test_another_entry_of_the_same_name_closes_the_first_one(self):
        first, second = pipe_end(), pipe_end()
        self.shelf.put("a", 1, [first])
        self.shelf.put("a", 2, [second])
        self.assertEqual((is_open(first), self.shelf.get("a").fds), (False, (second,)))

    def test_a_value_changes_without_its_descriptors(self):
        fd = pipe_end()
        self.shelf.put("a", 1, [fd])
        self.shelf.put("a", 2, [])
        self.assertEqual((self.shelf.get("a").value, self.shelf.get("a").fds, is_open(fd)), (2, (fd,), True))

    def test_what_is_dropped_is_closed(self):
        fd = pipe_end()
        self.shelf.put("a", 1, [fd])
        self.shelf.drop("a")
        self.shelf.drop("a")
        self.assertFalse(is_open(fd))
        self.assertRaises(Refused, self.shelf.get, "a")

    def test_no_more_than_so_many_entries(self):
        self.patch(shelf, "MOST_ENTRIES", 2)
        for name in "ab":
            self.shelf.put(name, None, [])
        fd = pipe_end()
        self.assertRaises(Refused, self.shelf.put, "c", None, [fd])
        self.assertFalse(is_open(fd))
        self.shelf.put("a", "one that is there may change", [])

    def test_a_name_is_short_and_plain(self):
        for name in ("", "/a", "a b", "a" * 65, 5, None, "ä"):
            self.assertRaises(Refused, self.shelf.put, name, None, [])
