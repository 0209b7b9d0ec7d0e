from twisted.internet import reactor

from tests.source.case import SourceCase


class EndOfStreamTest(SourceCase):
    """A disk is there when its import says so."""

    async def test_the_websocket_outlives_the_import(self):
        self.target.keeps_open = True
        began = reactor.seconds()
        await self.migrate()
        self.assertLess(reactor.seconds() - began, 20)
        self.assertEqual(self.target.commands[-1], {"cmd": "quit", "cleanup": 0})
