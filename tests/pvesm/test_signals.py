"""A signal is never slept through."""

import signal
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.processes import run_program

MISSED = """
import os, signal, sys, threading, time
from mtunnel_tx.pvesm.signals import Interrupted, catch_signals
from mtunnel_tx.pvesm.sparse import fill

def sleeps(thread):
    return open(f"/proc/self/task/{thread}/stat").read().rpartition(")")[2].split()[0] == "S"

def ring(main):
    # To this thread: the one that reads is not woken by it, just as by one that came before it began to read.
    while not sleeps(main):
        pass
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

catch_signals()
reader, writer = os.pipe()
threading.Thread(target=ring, args=(threading.get_native_id(),), daemon=True).start()
try:
    fill(reader, memoryview(bytearray(1)))
except Interrupted as error:
    sys.exit(error.number)
"""


class SignalTests(SynchronousTestCase):
    def test_one_that_does_not_break_off_the_call(self):
        done = run_program([sys.executable, "-c", MISSED], check=False)
        self.assertEqual(done.returncode, signal.SIGTERM)
