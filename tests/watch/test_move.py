"""The fold of what is said about a move: what holds whatever is said, and in which order."""

from __future__ import annotations

import json
from dataclasses import asdict

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.ports.moves import (
    Carried,
    Expected,
    Finished,
    MovePhase,
    Reached,
    StoodStill,
    TransferKind,
    WasParked,
    Wired,
)
from mtunnel_tx.watch.move import MOST_TRANSFERS, MoveState, apply
from mtunnel_tx.watch.shape import move_json, read_move

MIB = 1 << 20
NEW = MoveState(
    direction="out",
    vmid=100,
    target_vmid=200,
    source="a",
    target="b",
    address="192.0.2.1",
    token="mig@pve!t1",
    upid="",
    since_s=1000.0,
)
_labels = st.sampled_from(["scsi0", "scsi1", "memory"])
_sizes = st.integers(0, 1 << 50)
_events = st.one_of(
    st.builds(Expected, label=_labels, kind=st.sampled_from(TransferKind), total_bytes=st.one_of(st.none(), _sizes)),
    st.builds(Carried, label=_labels, done_bytes=_sizes, total_bytes=st.one_of(st.none(), _sizes)),
    st.builds(Finished, label=_labels),
    st.builds(Reached, phase=st.sampled_from([phase for phase in MovePhase if not phase.is_end])),
    st.builds(Wired, bytes_in=_sizes, bytes_out=_sizes),
    st.builds(StoodStill, downtime_s=st.floats(-1, 1e6)),
    st.builds(WasParked, parked_s=st.floats(0, 1e6)),
)
_ends = st.builds(Reached, phase=st.sampled_from([phase for phase in MovePhase if phase.is_end]), reason=st.text())
# A clock may be set back; looks may follow each other at once.
_times = st.one_of(st.floats(0, 4e9), st.floats(1000, 1001), st.integers(1000, 1020).map(float))
_carried = st.builds(Carried, label=_labels, done_bytes=st.integers(0, 100), total_bytes=st.none())
_live = st.lists(st.tuples(st.one_of(_carried, _events), _times), max_size=30)
_steps = st.one_of(_live, st.lists(st.tuples(st.one_of(_events, _ends), _times), max_size=30))
EXPECTED = NEW
for name in ("scsi0", "scsi1", "memory"):
    EXPECTED = apply(EXPECTED, Expected(label=name, kind=TransferKind.DISK, total_bytes=100), 1000.0)


def follow(steps, move=EXPECTED):
    for event, at_s in steps:
        move = apply(move, event, at_s)
    return move


class Ends(SynchronousTestCase):
    def test_the_rest_of_the_memory(self):
        """It went while the VM stood still."""
        move = apply(NEW, Expected(label="memory", kind=TransferKind.MEMORY, total_bytes=10 * MIB), 1000.0)
        move = apply(move, Carried(label="memory", done_bytes=8 * MIB), 1001.0)
        for phase, done_mib in ((MovePhase.DONE, 10), (MovePhase.ROLLED_BACK, 8)):
            self.assertEqual(apply(move, Reached(phase=phase), 1002.0).done_bytes, done_mib * MIB)


class Laws(SynchronousTestCase):
    @given(_steps)
    @settings(max_examples=150, deadline=None)
    def test_numbers_make_sense(self, steps):
        move = follow(steps)
        if move.percent is not None:
            self.assertIn(move.percent, range(101))
        for value in (move.rate_bytes_s, move.done_bytes, move.remaining_s or 0, move.downtime_s or 0, move.parked_s):
            self.assertGreaterEqual(value, 0)
        self.assertEqual(move.ended_s is not None, move.phase.is_end)
        for transfer in move.transfers:
            self.assertGreaterEqual(transfer.remaining_bytes or 0, 0)
            if transfer.began_s is not None and transfer.ended_s is not None:
                self.assertLessEqual(transfer.began_s, transfer.ended_s)

    @given(_steps, _events, st.floats(0, 4e9))
    @settings(max_examples=100, deadline=None)
    def test_nothing_comes_after_the_end(self, steps, event, at_s):
        over = apply(follow(steps), Reached(phase=MovePhase.HELD), 1.0)
        self.assertIs(apply(over, event, at_s), over)
        self.assertEqual([one.label for one in over.transfers if one.is_running], [])

    @given(st.lists(st.floats(0, 0.04), max_size=10), st.integers(1, 1 << 40))
    @settings(max_examples=100, deadline=None)
    def test_looks_that_are_close_together_say_nothing_about_a_rate(self, gaps_s, size_bytes):
        move, at_s = EXPECTED, 1000.0
        for number, gap_s in enumerate(gaps_s):
            at_s += gap_s
            move = apply(move, Carried(label="scsi0", done_bytes=number * size_bytes), at_s)
        self.assertEqual(move.rate_bytes_s, 0)

    @given(_steps, st.one_of(_carried, _events), _times)
    @settings(max_examples=100, deadline=None)
    def test_nothing_is_undone(self, steps, event, at_s):
        before = follow(steps)
        after = apply(before, event, at_s)
        self.assertGreaterEqual(after.wire_in_bytes, before.wire_in_bytes)
        self.assertGreaterEqual(after.parked_s, before.parked_s)
        for old in before.transfers:
            new = after.find(old.label)
            self.assertGreaterEqual(new.done_bytes, old.done_bytes)

    @given(_steps)
    @settings(max_examples=100, deadline=None)
    def test_hundred_percent_is_all(self, steps):
        move = follow(steps)
        if move.percent == 100 and move.phase is not MovePhase.DONE:
            self.assertEqual(move.remaining_bytes, 0)

    @given(_steps)
    @settings(max_examples=100, deadline=None)
    def test_the_json_says_it_all(self, steps):
        move = follow(steps)
        there = read_move(json.loads(json.dumps(move_json(move))))
        self.assertEqual((there.percent, there.phase, there.total_bytes), (move.percent, move.phase, move.total_bytes))
        self.assertEqual({**asdict(there), "transfers": 0}, {**asdict(move), "transfers": 0})

    def test_a_peer_cannot_name_too_much(self):
        move = follow([(Expected(label=str(n), kind=TransferKind.DISK), 1.0) for n in range(MOST_TRANSFERS + 5)], NEW)
        self.assertEqual(len(move.transfers), MOST_TRANSFERS)


class Figures(SynchronousTestCase):
    def expected(self, **sizes):
        return follow([(Expected(label=label, kind=TransferKind.DISK, total_bytes=size), 1000.0)
                       for label, size in sizes.items()], NEW)  # fmt: skip

    def test_rate_percentage_and_rest(self):
        """10 MiB/s; the second disk has not begun, and counts for all of it."""
        move = self.expected(scsi0=100 * MIB, scsi1=100 * MIB)
        for second in range(6):
            move = apply(move, Carried(label="scsi0", done_bytes=second * 10 * MIB), 1000.0 + second)
        self.assertEqual((move.rate_bytes_s / MIB, move.percent), (10, 25))
        self.assertEqual((move.transfers[0].remaining_s, move.remaining_s), (5, 15))

    def test_a_rate_follows_what_happens(self):
        """It stands still for a while: the rate falls, as nothing is carried any more."""
        move = self.expected(scsi0=100 * MIB)
        for second, mib in enumerate([0, 10, 20, 20, 20, 20, 20, 20, 20, 20]):
            move = apply(move, Carried(label="scsi0", done_bytes=mib * MIB), 1000.0 + second)
        self.assertLess(move.rate_bytes_s, 3 * MIB)

    def test_nobody_knows(self):
        move = apply(NEW, Expected(label="scsi0", kind=TransferKind.DISK), 1000.0)
        move = apply(move, Carried(label="scsi0", done_bytes=MIB), 1000.0)
        self.assertEqual((move.percent, move.remaining_s, move.total_bytes), (None, None, None))

    def test_the_end(self):
        move = apply(self.expected(scsi0=MIB), Reached(phase=MovePhase.DONE), 1002.0)
        self.assertEqual((move.percent, move.remaining_s, move.ended_s), (100, None, 1002.0))
