"""Timers and the wall clock; events that were meant for a descriptor that is gone."""

import os
import socket
import time

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.net.reactor import close_hole, prepare


class Ear:
    """Hears of one descriptor, and keeps what it heard."""

    def __init__(self, sock, hear=lambda ear: None):
        self.sock = sock
        self.number = sock.fileno()
        self.heard = []
        self._hear = hear

    def fileno(self):
        return self.number

    def logPrefix(self):
        return "ear"

    def doRead(self):
        self.heard.append("read")
        self._hear(self)

    def connectionLost(self, reason):
        self.heard.append("lost")


def end(reactor):
    """Close what wakes it: left to the garbage collector, it would go while another test counts descriptors."""
    for waker in list(reactor._internalReaders):
        waker.connectionLost(None)


class Tests(SynchronousTestCase):
    def setUp(self):
        self.reactor = EPollReactor()
        self.ears = []
        self.newcomer = None
        for _ in range(2):
            near, far = socket.socketpair()
            self.ears.append(Ear(near, self.replace_other))
            self.reactor.addReader(self.ears[-1])
            far.close()

    def tearDown(self):
        self.reactor.removeAll()
        end(self.reactor)
        for sock in [ear.sock for ear in self.ears] + [self.newcomer.sock, self.far, self.reactor._poller]:
            sock.close()

    def replace_other(self, ear):
        """Whoever is served first ends the other one, and somebody new gets its number."""
        if self.newcomer is not None:
            return
        other = next(each for each in self.ears if each is not ear)
        self.reactor.removeReader(other)
        near, self.far = socket.socketpair()
        other.sock.detach()
        os.dup2(near.fileno(), other.number)
        near.close()
        self.newcomer = Ear(socket.socket(fileno=other.number))
        self.reactor.addReader(self.newcomer)

    def test_newcomer_hears_nothing_of_the_one_before(self):
        self.assertTrue(close_hole(self.reactor))
        self.reactor.doIteration(0)
        self.assertEqual(sorted(ear.heard for ear in self.ears), [[], ["read"]])
        self.assertEqual(self.newcomer.heard, [])
        self.far.sendall(b"x")
        self.reactor.doIteration(0)
        self.assertEqual(self.newcomer.heard, ["read"])

    def test_twisted_itself(self):
        """Where this fails, Twisted has closed the hole, and ours can go."""
        self.reactor.doIteration(0)
        self.assertEqual(self.newcomer.heard, ["read"])


class TimerTests(SynchronousTestCase):
    def test_timers_follow_the_monotonic_clock(self):
        reactor = SelectReactor()
        self.addCleanup(end, reactor)
        prepare(reactor)
        before_s = time.monotonic()
        timer = reactor.callLater(5, lambda: None)
        self.assertLess(abs(timer.getTime() - before_s - 5), 1)
        timer.cancel()


class Others(SynchronousTestCase):
    def test_another_reactor_stays_as_it_is(self):
        reactor = SelectReactor()
        self.addCleanup(end, reactor)
        self.assertFalse(close_hole(reactor))
        self.assertNotIn("doIteration", vars(reactor))

    def test_unknown_parts(self):
        class EPollReactor:
            """Nothing of it is known."""

        self.assertFalse(close_hole(EPollReactor()))
