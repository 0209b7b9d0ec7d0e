"""Lines of a guest's config that are no settings: kept, told by their number, and no VM starts with them."""

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.guestconf import StrayLine, format_guest_config, parse_guest_config
from mtunnel_tx.pve.guestrules import find_strays
from mtunnel_tx.pve.hardware import read_hardware

TEXT = "# note\ngarbage here\n\nname: x\nMemory: 5\n\n[snap]\nmore garbage\n"


class StrayTests(SynchronousTestCase):
    def test_where_they_are(self):
        conf = parse_guest_config(TEXT)
        self.assertEqual(conf.strays, [StrayLine(2, "garbage here"), StrayLine(5, "Memory: 5")])
        self.assertEqual(conf.snapshots["snap"].strays, [StrayLine(8, "more garbage")])

    def test_they_are_not_lost(self):
        text = format_guest_config(parse_guest_config(TEXT))
        self.assertEqual(text, "#note\nname: x\ngarbage here\nMemory: 5\n\n[snap]\nmore garbage\n".replace("#n", "# n"))

    def test_they_are_told(self):
        self.assertEqual(
            list(find_strays(parse_guest_config("name: x\nbad\x1b[2J\n"))),
            ["line 2 of its config is no setting: bad?[2J"],
        )
        self.assertEqual(list(find_strays(parse_guest_config("name: x\n[snap]\nbad\n"))), [])

    def test_no_vm_starts_with_them(self):
        for text in ("garbage here\n", "name: x\n\ngarbage here"):
            error = self.assertRaises(TunnelError, read_hardware, parse_guest_config(text), local=True)
            self.assertIn("of its config is no setting: garbage here", error.text)
