"""Whether a VM could run here before all of its memory has come."""

import json
import os
import shutil
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SkipTest, TestCase

from mtunnel_tx.backends.host import PROGRAM
from mtunnel_tx.backends.postcopytrial import check_answer, try_postcopy
from mtunnel_tx.errors import BackendFailed

KERNEL = Path("/proc/sys/vm/unprivileged_userfaultfd")


class TrialTest(TestCase):
    async def test_this_host(self):
        """Root may use userfaultfd wherever the kernel has it."""
        if shutil.which(PROGRAM) is None or os.geteuid() or not KERNEL.exists():
            raise SkipTest(f"{PROGRAM}, root or userfaultfd is missing")
        await Deferred.fromCoroutine(try_postcopy(reactor, dict(os.environ), PROGRAM))

    def test_a_host_that_cannot(self):
        refusal = {"id": "asked", "error": {"class": "GenericError", "desc": "Postcopy is not supported"}}
        output = "\n".join(["warning: no userfaultfd", *map(json.dumps, ({"QMP": {}}, {"return": {}}, refusal))])
        with self.assertRaises(BackendFailed) as caught:
            check_answer(output)
        self.assertIn("no post-copy here: Postcopy is not supported; QEMU needs userfaultfd", caught.exception.text)

    def test_a_qemu_that_says_nothing(self):
        with self.assertRaises(BackendFailed) as caught:
            check_answer('{"QMP": {}}\n')
        self.assertIn("QEMU does not say why", caught.exception.text)
