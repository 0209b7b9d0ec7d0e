"""A guest that changes its memory faster than it is sent: what is said, what is done, and how it ends."""

from __future__ import annotations

from tests.whole.node import wait_for
from tests.whole.test_online import Listener, OnlineCase


class BusyTests(OnlineCase):
    """8 MiB change many times a second, and 2 MiB a second are sent: 4 s would be enough to stand still."""

    def move(self, *more: str, check: bool = True) -> str:
        done = self.migrate("--bwlimit", "2048", *more, check=check)
        return f"{done.stdout}{done.stderr}"

    def test_the_downtime_is_raised_until_it_fits(self) -> None:
        self.boot(burst=128)
        said = self.move()
        self.assertIn("memory: speed: 2.0 MiB/s; downtime: 100 ms, 10000 ms at most\n", said)
        self.assertRegex(said, r"guest changes \d+\.\d MiB/s, \d\.\d MiB/s are sent: it may stand still for 200 ms")
        self.assertIn("running", self.status(self.there, 200))

    def test_time_is_up(self) -> None:
        before = self.boot(burst=128)
        said = self.move("--max-downtime", "0.2", "--timeout", "12", check=False)
        self.assertRegex(said, "migration failed: it was not there within 12 s: memory: the guest changes ")
        self.assertIn("VM 100 runs on here\n", said)
        beats = len(before.beats)
        wait_for("beats here", lambda: len(before.beats) > beats + 3)
        self.assertIsNone(self.there.guest(200))

    def test_it_stands_still_until_it_is_there(self) -> None:
        self.boot(burst=128)
        after = Listener(self.there.runtime / "200.serial0")
        self.addCleanup(setattr, after, "stopped", True)
        said = self.move("--max-downtime", "0.2", "--timeout", "12", "--on-timeout", "pause")
        self.assertIn("; it stands still until it is there\n", said)
        wait_for("beats there", lambda: len(after.beats) > 3)
        self.assertEqual({flag for _, flag in after.beats}, {"."})
