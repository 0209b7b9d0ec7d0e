from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.turns import Turns


class TurnsTests(SynchronousTestCase):
    def setUp(self):
        self.turns = Turns()
        self.order = []

    async def work(self, vmid, name, until):
        async with self.turns.of(vmid):
            self.order.append(name)
            await until

    def begin(self, vmid, name):
        until = Deferred()
        return until, Deferred.fromCoroutine(self.work(vmid, name, until))

    def test_one_after_the_other(self):
        first, second, other = self.begin(1, "a"), self.begin(1, "b"), self.begin(2, "c")
        self.assertEqual(self.order, ["a", "c"])
        first[0].callback(None)
        self.assertEqual(self.order, ["a", "c", "b"])
        for until, work in (second, other):
            until.callback(None)
            self.successResultOf(work)

    def test_nothing_stays(self):
        for vmid in range(100):
            until, work = self.begin(vmid, "x")
            self.assertEqual(len(self.turns), 1)
            until.callback(None)
            self.successResultOf(work)
            del until, work
        self.assertEqual(len(self.turns), 0)
