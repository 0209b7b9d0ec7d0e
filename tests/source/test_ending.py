from twisted.internet import reactor

from mtunnel_tx.errors import BackendFailed
from tests.patience import patience_s
from tests.source.case import SourceCase


class EndOfStreamTest(SourceCase):
    """A disk is there when its import says so."""

    async def test_the_websocket_outlives_the_import(self):
        self.target.keeps_open = True
        began = reactor.seconds()
        await self.migrate()
        self.assertLess(reactor.seconds() - began, patience_s(20))
        self.assertEqual(self.target.commands[-1], {"cmd": "quit", "cleanup": 0})


class OddTextTest(SourceCase):
    """What could not stand in a line is no text: said in one line, and everything is as it was."""

    async def test_values_that_no_target_sends(self):
        for name, reply in (
            ("ticket", {"ticket": "\ud800"}),
            ("disk-import", {"socket": "/run/qemu-server/300.\ud800", "format": "raw+size"}),
        ):
            self.target.replies = {name: reply}
            with self.assertRaises(BackendFailed) as caught:
                await self.migrate()
            self.assertIn("the target's reply has no '", caught.exception.text)
            self.assert_unlocked()
