"""Every reader of foreign bytes, for a short while: anything at all, and real inputs a little changed."""

from __future__ import annotations

import os
from datetime import timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import NEED_NATIVE, TARGETS, run
from tests.patience import patience_s
from tests.stream.decoding import NATIVE

SEEDS = seeds()
EXAMPLES = int(os.environ.get("MTUNNEL_FUZZ_EXAMPLES", "60"))
Edit = tuple[int, int, bytes]
"""Where, how many bytes go, what comes instead."""
TELLING = [b"\n", b",", b":", b"=", b"[", b"]", b"\0", b"\xff", b"%", b'"', b"{", b" ", b"-1", b"1" * 20, b"\xc3\xa4"]
PIECES = st.one_of(st.binary(max_size=4), st.sampled_from(TELLING))
EDITS = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 8), PIECES), max_size=6)


def edit(data: bytes, edits: list[Edit]) -> bytes:
    for at, count, piece in edits:
        at %= len(data) + 1
        data = data[:at] + piece + data[at + count :]
    return data


class TargetTests(SynchronousTestCase):
    def check(self, name: str) -> None:
        _skip_without_native(name)
        # Longer than this is a hang.
        limit = timedelta(seconds=patience_s(5))
        patient = settings(
            max_examples=EXAMPLES, deadline=limit, suppress_health_check=list(HealthCheck), database=None
        )

        @patient
        @given(st.binary(max_size=300))
        def anything(data: bytes) -> None:
            run(name, data)

        @patient
        @given(st.sampled_from(SEEDS[name]), EDITS)
        def changed(data: bytes, edits: list[Edit]) -> None:
            run(name, edit(data, edits))

        for each in (anything, changed):
            try:
                each()
            except Exception as error:
                # Hypothesis adds the input that failed as a note, which trial does not print.
                raise AssertionError("\n".join(getattr(error, "__notes__", []))) from error

    def test_there_are_seeds_for_each(self) -> None:
        self.assertEqual(SEEDS.keys(), TARGETS.keys())
        for name, found in SEEDS.items():
            self.assertTrue(found, name)

    def test_seeds_are_read_well(self) -> None:
        for name in TARGETS.keys() - NEED_NATIVE:
            for data in SEEDS[name]:
                run(name, data)


def _skip_without_native(name: str) -> None:
    if name in NEED_NATIVE and NATIVE.module is None:
        raise SkipTest(f"the native module is not there: {NATIVE.reason}")


def _add(name: str) -> None:
    def test(self: TargetTests) -> None:
        self.check(name)

    setattr(TargetTests, f"test_{name.replace('-', '_')}", test)


for _name in TARGETS:
    _add(_name)
