"""The relay on the reactor."""

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from mtunnel_tx.stream.mask import unmask_slowly
from mtunnel_tx.stream.reactorrelay import ReactorRelay
from tests.stream.relaying import RelayTests


class TlsRelay(RelayTests, TestCase):
    def setUp(self):
        self.relay = ReactorRelay(reactor)


class PlainRelay(RelayTests, TestCase):
    tls = False

    def setUp(self):
        self.relay = ReactorRelay(reactor, unmask_slowly)
