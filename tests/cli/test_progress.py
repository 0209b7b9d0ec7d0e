"""How far a move is: bars on a terminal, lines elsewhere, and amounts for people."""

import io
import os
import re

from rich.console import Console
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.cli.bars import Bars
from mtunnel_tx.cli.progress import Lines, make_display
from mtunnel_tx.source.amounts import describe_pace, format_amount, format_rate, format_time


class ProgressTest(SynchronousTestCase):
    def test_amounts(self):
        self.assertEqual([format_amount(n) for n in (0, 1023, 1536, 5 << 30, 3 << 50)],
                         ["0.0 MiB", "0.0 MiB", "0.0 MiB", "5120.0 MiB", "3221225472.0 MiB"])  # fmt: skip
        self.assertEqual(format_rate(10 << 20, 2), "5.0 MiB/s")
        self.assertEqual([format_time(s) for s in (0, 61, 3723)], ["0:00", "1:01", "1:02:03"])

    def test_a_rate_over_no_time_is_not_told(self):
        paces = [describe_pace(16 << 20, seconds) for seconds in (0, 0.001, 0.9, 2)]
        self.assertEqual(paces, ["in 0:00", "in 0:00", "in 0:00", "in 0:02, 8.0 MiB/s"])

    def test_lines(self):
        out, clock = io.StringIO(), Clock()
        with Lines(out, clock) as lines:
            lines.begin("scsi0", 40 << 20)
            for _ in range(7):
                clock.advance(1)
                lines.advance("scsi0", 1 << 20)
            lines.finish("scsi0")
            lines.say("target: x")
        self.assertEqual(out.getvalue().splitlines(), [
            "scsi0: sending 40.0 MiB",
            "scsi0: 5.0 MiB of 40.0 MiB, 1.0 MiB/s, 0:35 left",
            "scsi0: 7.0 MiB of 40.0 MiB in 0:07, 1.0 MiB/s",
            "target: x",
        ])  # fmt: skip

    def test_bars(self):
        out = io.StringIO()
        with Bars(Console(file=out, force_terminal=True, width=120)) as bars:
            bars.begin("scsi0", 1 << 20)
            bars.advance("scsi0", 1 << 19)
            bars.say("target: [red]x")
            bars.advance("scsi0", 1 << 19)
            bars.finish("scsi0")
        self.assertIn("scsi0", out.getvalue())
        self.assertIn("1.0 of 1.0 MiB", out.getvalue())
        self.assertIn("target: [red]x", out.getvalue())

    def test_units_of_bars(self):
        """One unit for all, however large; and no decimal ones."""
        out = io.StringIO()
        with Bars(Console(file=out, force_terminal=True, width=120)) as bars:
            bars.begin("scsi0", 4 << 30)
            bars.advance("scsi0", 1 << 30)
            bars.finish("scsi0")
        self.assertIn("1024.0 of 4096.0 MiB", out.getvalue())
        self.assertNotRegex(out.getvalue(), r"\d (MB|GB|GiB)")

    def test_a_rate_outlives_a_new_total(self):
        """Of memory there is a new one every second."""
        out = io.StringIO()
        with Bars(Console(file=out, force_terminal=True, width=120)) as bars:
            bars.begin("memory", 8 << 20)
            for size_mib in (9, 10, 11):
                bars.advance("memory", 1 << 20)
                bars.resize("memory", size_mib << 20)
        last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).rpartition("memory")[2]
        self.assertRegex(last, r"3\.0 of 11\.0 MiB +\d+\.\d MiB/s +\d:\d\d left")

    def test_a_bar_that_has_ended_tells_its_mean_rate(self):
        out = io.StringIO()
        with Bars(Console(file=out, force_terminal=True, width=120)) as bars:
            bars.begin("scsi0", 4 << 20)
            for _ in range(4):
                bars.advance("scsi0", 1 << 20)
            bars.finish("scsi0")
        last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).rpartition("scsi0")[2]
        self.assertRegex(last, r"4\.0 of 4\.0 MiB +\d+\.\d MiB/s +in 0:00")

    def test_one_bar_for_what_is_sent_again(self):
        out = io.StringIO()
        with Bars(Console(file=out, force_terminal=True, width=120)) as bars:
            bars.begin("all", 2 << 20)
            for _ in range(2):
                bars.begin("scsi0", 1 << 20)
                bars.finish("scsi0")
        last = re.findall(r"(scsi0|all) ", out.getvalue())[-4:]
        self.assertEqual(last, ["scsi0", "all"] * 2, "two bars, and what is for all stands below")

    def test_several_at_once(self):
        out, clock = io.StringIO(), Clock()
        with Lines(out, clock) as lines:
            lines.begin("scsi0", 2 << 20)
            lines.begin("memory", 4 << 20)
            clock.advance(2)
            lines.advance("memory", 3 << 20)
            lines.advance("scsi0", 2 << 20)
            lines.resize("memory", 6 << 20)
            lines.finish("scsi0")
            clock.advance(4)
            lines.advance("memory", 1 << 20)
        self.assertEqual(out.getvalue().splitlines(), [
            "scsi0: sending 2.0 MiB",
            "memory: sending 4.0 MiB",
            "scsi0: 2.0 MiB of 2.0 MiB in 0:02, 1.0 MiB/s",
            "memory: 4.0 MiB of 6.0 MiB, 0.7 MiB/s, 0:03 left",
        ])  # fmt: skip

    def test_a_bar_for_each(self):
        out = io.StringIO()
        with Bars(Console(file=out, force_terminal=True, width=120)) as bars:
            for label in ("scsi0", "virtio1", "memory"):
                bars.begin(label, 1 << 20)
            bars.resize("memory", 4 << 20)
            bars.advance("memory", 2 << 20)
            bars.advance("virtio1", 1 << 20)
            bars.finish("virtio1")
        last = out.getvalue().rpartition("scsi0")[2]
        self.assertIn("0.0 of 1.0 MiB", last.partition("virtio1")[0])
        self.assertIn("1.0 of 1.0 MiB", last.partition("virtio1")[2].partition("memory")[0])
        self.assertIn("2.0 of 4.0 MiB", last.partition("memory")[2])

    def test_nobody_listens_any_more(self):
        """What runs is not ended by a pager that was."""
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as out, make_display(out, Clock()) as lines:
            lines.say("a")
            lines.begin("scsi0", 1)
            lines.finish("scsi0")

    def test_which(self):
        self.assertIsInstance(make_display(io.StringIO(), Clock()), Lines)
