"""Each config of Proxmox's set becomes the same machine here, or is refused, with the reason."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import TunnelError
from tests.machines.build import build
from tests.machines.table import ROWS, rendered

DOCUMENT = Path(__file__).parents[2] / "docs" / "machines.md"


class Same(SynchronousTestCase):
    maxDiff = None

    def same(self, row, what, found, expected):
        if found != expected:
            if isinstance(expected, set):
                found, expected = sorted(found - expected), sorted(expected - found)
            self.fail(f"{row.name}: {what}: {found}\nexpected: {expected}")

    def check(self, row):
        built = build(row)
        self.same(row, "devices", built.devices, row.lines)
        kind, options = built.machine
        self.same(row, "machine", kind, row.machine)
        self.same(row, "machine options", options, set(row.options.split()))
        self.same(row, "globals", built.globals, set(row.globals.split()))
        self.same(row, "processor", built.cpu, set(row.cpu.split()))
        self.same(row, "memory", built.memory, row.memory)
        self.same(row, "clock", built.clock, row.clock)

    def test_refused(self):
        for row in ROWS:
            if row.refused:
                with self.assertRaises(TunnelError, msg=row.name) as caught:
                    build(row)
                self.assertIn(row.refused, caught.exception.text)

    def test_documented(self):
        """`python -m tests.machines` writes it."""
        self.assertIn(rendered(), DOCUMENT.read_text("utf-8"))

    def test_each_name_stands_once(self):
        names = [row.name for row in ROWS]
        self.assertEqual(len(set(names)), len(names))


def _add(number, row):
    def test(self):
        self.check(row)

    test.__doc__ = row.name
    setattr(Same, f"test_{number:03}", test)


for _number, _row in enumerate(ROWS):
    if not _row.refused:
        _add(_number, _row)
