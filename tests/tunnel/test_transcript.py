"""Each command once: the fold of the notes, cut at every place where a daemon can be killed."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import WrongState
from mtunnel_tx.tunnel import notebook, transcript
from mtunnel_tx.tunnel.notebook import Notebook
from mtunnel_tx.tunnel.transcript import Transcript, answered, asked, fold_notes, heard, summary


class MemoryNotes:
    """Notes as they would be found; `killed_after` writes nothing is written any more."""

    def __init__(self, killed_after: int | None = None) -> None:
        self.lines: dict[int, list[str]] = {}
        self.left = killed_after

    def add(self, vmid, note) -> None:
        if vmid in self.lines:
            self.live_on()
            self.lines[vmid].append(json.dumps(note))

    def replace(self, vmid, note) -> None:
        self.live_on()
        self.lines[vmid] = [json.dumps(note)]

    def remove(self, vmid) -> None:
        self.lines.pop(vmid, None)

    def read(self, vmid):
        return [json.loads(line) for line in self.lines[vmid]] if vmid in self.lines else None

    def standing(self):
        return sorted(self.lines)

    def live_on(self) -> None:
        """A place where the daemon can be killed."""
        if self.left is not None:
            if self.left == 0:
                raise Killed
            self.left -= 1


class Killed(Exception):
    """What SIGKILL does to the daemon of these tests."""


class World:
    """A peer that sends lines in pieces, a daemon that is killed at a write, and the effects of its commands."""

    def __init__(self, lines: list[bytes], pieces: list[int]) -> None:
        self.sent = b"".join(line + b"\n" for line in lines)
        self.pieces = pieces
        self.taken = 0
        self.received = b""
        self.effects: list[bytes] = []
        self.notes = MemoryNotes()

    def run(self, killed_after: int | None) -> None:
        """One life of a daemon. A command's effect is one step with what tells of it, as records of a journal are."""
        self.notes.left = killed_after
        found = fold_notes(self.notes.read(1) or [])
        try:
            self._live(found)
        except Killed:
            return

    def _live(self, found: Transcript) -> None:
        assert found.heard_bytes == self.taken, "what the kernel gave and what was noted"
        book = Notebook(self.notes, 1, found)
        unsaid = found.unsaid(len(self.received))
        assert unsaid is not None
        self.received += unsaid
        buffer, is_begun = found.pending, found.asked is not None
        while True:
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                if not is_begun:
                    book.asked(len(self.effects))
                if not is_begun or len(self.effects) == book.transcript.asked:
                    self.notes.live_on()
                    self.effects.append(line)
                is_begun = False
                reply = b"did " + line
                book.answered(reply, lambda: {"done": len(self.effects)})
                for part in (reply[:3], reply[3:] + b"\n"):
                    self.notes.live_on()
                    self.received += part
            if self.taken == len(self.sent):
                return
            size = self.pieces[self.taken % len(self.pieces)]
            data = self.sent[self.taken : self.taken + size]
            book.heard(data)
            self.taken += len(data)
            buffer += data


class ExactlyOnceTests(SynchronousTestCase):
    @settings(max_examples=300, deadline=None)
    @given(
        lines=st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"")), max_size=5),
        pieces=st.lists(st.integers(1, 20), min_size=1, max_size=4),
        kills=st.lists(st.integers(0, 9), max_size=6),
        folded=st.sampled_from([0, 1 << 20]),
    )
    def test_whenever_it_is_killed(self, lines, pieces, kills, folded):
        self.patch(notebook, "FOLDED_BYTES", folded)
        world = World(lines, pieces)
        for kill in [*kills, None]:
            world.run(kill)
        self.assertEqual(world.effects, lines)
        self.assertEqual(world.received, b"".join(b"did " + line + b"\n" for line in lines))


class FoldTests(SynchronousTestCase):
    def test_a_line_that_was_begun(self):
        found = fold_notes([heard(b"one\ntw"), asked(3)])
        self.assertEqual((found.begun, found.asked, found.pending), (b"one", 3, b"one\ntw"))

    def test_a_line_that_was_answered(self):
        found = fold_notes([heard(b"one\ntw"), asked(3), answered(b"1", {"a": 1})])
        self.assertEqual((found.begun, found.pending, found.state), (None, b"tw", {"a": 1}))
        self.assertEqual((found.heard_bytes, found.said_bytes), (6, 2))

    def test_what_the_peer_has_not_received(self):
        found = fold_notes([heard(b"1\n2\n"), asked(0), answered(b"one", {}), asked(0), answered(b"two", {})])
        self.assertEqual([found.unsaid(count) for count in (8, 6, 4, 0)], [b"", b"o\n"[-2:], b"two\n", b"one\ntwo\n"])
        self.assertEqual([found.unsaid(9), found.unsaid(-1)], [None, None])

    def test_no_more_than_the_tail_can_be_said_again(self):
        self.patch(transcript, "TAIL_BYTES", 4)
        found = fold_notes([heard(b"1\n2\n"), asked(0), answered(b"one", {}), asked(0), answered(b"two", {})])
        self.assertEqual([found.unsaid(4), found.unsaid(3)], [b"two\n", None])

    def test_one_note_says_the_same_as_all(self):
        found = fold_notes([heard(bytes(range(256)) + b"\n"), asked(1)])
        self.assertEqual(fold_notes([json.loads(json.dumps(summary(found)))]), found)

    def test_what_makes_no_sense(self):
        for notes in (
            [{"note": "fly"}],
            [{}],
            [asked(1), asked(2)],
            [{"note": "heard", "data": 5}],
            [{"note": "heard", "data": "\u20ac"}],
            [{"note": "asked", "records": "x"}],
            [{"note": "summary", "version": 1, "pending": "", "tail": "", "unknown": 1}],
            [{**summary(Transcript()), "version": 2}],
            [{"note": "summary"}],
        ):
            self.assertRaises(WrongState, fold_notes, notes)
