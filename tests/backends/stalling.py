"""A UNIX socket that leads to another one, and can stand still as a network does that is lost: nobody is told."""

from contextlib import suppress

from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import UNIXClientEndpoint, UNIXServerEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol


class Half(Protocol):
    """One side of a connection; `other` is the other one."""

    other = None

    def dataReceived(self, data):
        self.other.transport.write(data)

    def connectionLost(self, reason):
        if self.other is not None and self.other.transport is not None:
            self.other.transport.loseConnection()


class Accepted(Half):
    def connectionMade(self):
        self.transport.pauseProducing()
        self.factory.path.join(self)


class StallingPath:
    """Made by `open`; `stalled`: nothing passes, in either direction."""

    def __init__(self, target):
        self._target = target
        self._halves = []
        self.stalled = False

    @classmethod
    async def open(cls, path, target):
        """Listen."""
        self = cls(target)
        factory = Factory.forProtocol(Accepted)
        factory.path = self
        self._port = await UNIXServerEndpoint(reactor, str(path)).listen(factory)
        return self

    def join(self, accepted):
        work = UNIXClientEndpoint(reactor, str(self._target)).connect(Factory.forProtocol(Half))
        work.addCallbacks(lambda half: self._joined(accepted, half), lambda _: accepted.transport.abortConnection())

    def _joined(self, accepted, half):
        accepted.other, half.other = half, accepted
        self._halves += [accepted, half]
        self.flow() if not self.stalled else self.stall()

    def stall(self):
        """Nothing passes from now on."""
        self.stalled = True
        for half in self._halves:
            with suppress(AttributeError, RuntimeError):
                half.transport.pauseProducing()

    def flow(self):
        """It passes again."""
        self.stalled = False
        for half in self._halves:
            if half.connected:
                half.transport.resumeProducing()

    async def close(self):
        """End it, and all that goes through it; once more is nothing."""
        await maybeDeferred(self._port.stopListening)
        for half in self._halves:
            with suppress(ConnectError):
                half.transport.abortConnection()
