"""Which CPU models run with KVM, and what is said of it."""

import os
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mtunnel_tx.backends.host import PROGRAM
from mtunnel_tx.backends.kvmtrial import Trial, try_cpus
from mtunnel_tx.checkup.finding import FindingState
from mtunnel_tx.checkup.processor import OFFERED, argument, judge_models

WELL = Trial(runs=True)
NO_AVX = Trial(runs=False, missing=("avx2", "bmi1"), reason="…")
HUNG = Trial(runs=False, reason="did not end")
QEMU = """\
#!/bin/sh
# Plays QEMU with a KVM that has no AVX2.
for word in "$@"; do
    case $word in *avx2*)
        echo "qemu: warning: host doesn't support requested feature: CPUID.07H:EBX.avx2 [bit 5]" >&2
        exit 1;;
    esac
done
exit 33
"""


def judge(trials, wanted=(), *, is_vm=False):
    trials = {**dict.fromkeys(OFFERED, WELL), **trials}
    return [
        (found.subject, found.state, found.text, found.remedy)
        for found in judge_models(trials, dict(wanted), is_vm=is_vm)
    ]


class JudgeTests(SynchronousTestCase):
    def test_all_run(self):
        text = "run with KVM: kvm64, x86-64-v2, x86-64-v2-AES, x86-64-v3, x86-64-v4, host"
        self.assertEqual(judge({}), [("cpu models", FindingState.OK, text, "")])

    def test_what_lacks_flags(self):
        ((_, state, text, _),) = judge({"x86-64-v3": NO_AVX, "x86-64-v4": HUNG})
        not_these = "not: x86-64-v3 (lacks avx2 bmi1), x86-64-v4 (its trial guest did not run)"
        expected = f"run with KVM: kvm64, x86-64-v2, x86-64-v2-AES, host; {not_these}"
        self.assertEqual((state, text), (FindingState.OK, expected))

    def test_a_vm_whose_model_does_not_run(self):
        _, found = judge({"x86-64-v3": NO_AVX, "x86-64-v4": NO_AVX}, {"x86-64-v3": [100], "host": [101]}.items())
        text = "its CPU model x86-64-v3 does not run with KVM here (lacks avx2 bmi1)"
        self.assertEqual(found, ("VM 100", FindingState.PROBLEM, text, "mtunnel vm set 100 cpu=x86-64-v2-AES"))

    def test_none_runs(self):
        for is_vm, word in ((True, "nested virtualisation"), (False, "dmesg")):
            ((_, state, text, remedy),) = judge(dict.fromkeys(OFFERED, HUNG), {"host": [101]}.items(), is_vm=is_vm)
            self.assertEqual((state, word in remedy), (FindingState.WARNING, True))
            self.assertTrue(text.startswith("none runs with KVM: kvm64 (its trial guest did not run), "))


class TrialTests(TestCase):
    async def test_what_qemu_says(self):
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        program = folder / PROGRAM
        program.write_text(QEMU)
        program.chmod(0o755)
        environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        trials = await Deferred.fromCoroutine(
            try_cpus(reactor, environ, PROGRAM, {name: argument(name) for name in ("x86-64-v2", "x86-64-v3", "host")})
        )
        self.assertEqual((trials["x86-64-v2"], trials["host"]), (WELL, WELL))
        self.assertEqual((trials["x86-64-v3"].runs, trials["x86-64-v3"].missing), (False, ("avx2",)))
