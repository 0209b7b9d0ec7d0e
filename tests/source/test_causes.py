"""Of all that fails when a connection is lost, the connection is named."""

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.source.causes import Causes
from mtunnel_tx.stream.flow import CANCELLED
from mtunnel_tx.wire.socketkinds import COMMANDS, MEMORY, NBD


class Link:
    def __init__(self):
        self.reason = None
        self.bytes_in = self.bytes_out = 0
        self.done = Deferred()

    async def ended(self):
        return await self.done

    def end(self, reason):
        self.reason = reason
        self.done.callback(reason is None)


class CausesTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.causes = Causes(self.clock, "far")
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))
        self.addCleanup(self.causes.close)
        self.links = {kind: Link() for kind in (COMMANDS, NBD, MEMORY)}
        for kind, link in self.links.items():
            self.causes.watch(kind, link)

    def test_none(self):
        self.assertIsNone(self.causes.find())
        self.links[NBD].end(None)
        self.assertIsNone(self.causes.find())

    def test_the_first_one(self):
        self.links[NBD].end("peer ended without a Close frame: end of file")
        self.clock.advance(1)
        self.links[COMMANDS].end("reset")
        text = "the disk connection to far was lost: peer ended without a Close frame: end of file"
        self.assertEqual(self.causes.find(), text)

    def test_after_a_silence(self):
        """A proxy's time limit looks like this."""
        for _ in range(6):
            self.links[NBD].bytes_out += 1
            self.clock.advance(5)
        self.clock.pump([5] * 12)
        self.links[NBD].end("end of file")
        self.assertEqual(self.causes.find(), "the disk connection to far was lost after 60 s without data: end of file")

    def test_what_the_peer_said_has_another_reason(self):
        for reason in ("peer closed with status 1011", "peer gave up: no space", "the peer has ended the flow"):
            self.links[NBD].reason = reason
            self.assertIsNone(self.causes.find(), reason)

    def test_what_was_broken_off_here(self):
        self.links[MEMORY].end(CANCELLED)
        self.assertIsNone(self.causes.find())

    def test_before_its_end_is_told(self):
        """QEMU may complain before all sockets are closed."""
        self.links[MEMORY].reason = "reset\x1b"
        self.assertEqual(self.causes.find(), "the memory connection to far was lost: reset?")
