"""The pointers of NativeEngine: released where they were made, whatever happens; else garbage collection may crash."""

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.stream.engine import NativeEngine


class FailingLibrary:
    """OpenSSL with every function out of memory."""

    def __getattr__(self, name):
        def fail(*_):
            raise MemoryError

        return fail


class PointerTests(SynchronousTestCase):
    def check(self, deed):
        engine = NativeEngine(SSL.Connection(SSL.Context(SSL.TLS_METHOD), None))
        engine._lib = FailingLibrary()
        view = memoryview(bytearray(100))
        try:
            deed(engine, view)
        except MemoryError as error:
            kept = error
        # BufferError: there are pointers into it, in the frames of the traceback.
        view.release()
        self.assertIsInstance(kept, MemoryError)

    def test_read(self):
        self.check(lambda engine, view: engine.read(view, 0))

    def test_write(self):
        self.check(lambda engine, view: engine.write(view))

    def test_take(self):
        self.check(lambda engine, view: engine.take(view))

    def test_put(self):
        self.check(lambda engine, view: engine.put(view))
