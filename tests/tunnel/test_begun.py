"""A command that a daemon has begun before it was killed, at every record of its journal."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from mtunnel_tx.ports.machines import MachineState
from mtunnel_tx.tunnel.begun import Course, answer_again, choose
from mtunnel_tx.tunnel.ledger import Ledger, fold
from mtunnel_tx.tunnel.tunnel import Tunnel
from tests.tunnel.case import CONFIG, DISK, TunnelCase


class CourseTests(TunnelCase):
    def test_what_is_complete_is_only_answered(self):
        for name, word, runs, locked in (
            ("config", "configured", False, True),
            ("resume", "resuming", True, True),
            ("unlock", "handed_over", False, False),
        ):
            self.assertIs(choose(name, [word], runs=runs, locked=locked), Course.ANSWER)
            self.assertIs(choose(name, [], runs=runs, locked=locked), Course.DO_AGAIN)

    def test_what_is_half_done_is_done_again(self):
        self.assertIs(choose("resume", ["resuming"], runs=False, locked=True), Course.DO_AGAIN)
        self.assertIs(choose("unlock", ["handed_over"], runs=False, locked=True), Course.DO_AGAIN)
        self.assertIs(choose("config", ["config"], runs=False, locked=True), Course.DO_AGAIN)

    def test_what_has_made_something_is_undone_first(self):
        for name in ("disk", "disk-import", "start"):
            self.assertIs(choose(name, ["making", "made"], runs=True, locked=True), Course.UNDO_FIRST)


class AgainTests(TunnelCase):
    """The journal ends after each record that a command writes; then the command is answered as if it had been once."""

    def records(self) -> list[dict[str, Any]]:
        return self.fake.journal.records[100]

    def again(self, request: dict[str, Any], since: int) -> dict[str, Any]:
        """A new tunnel with this journal, and the command that was begun."""
        old = self.registry._sessions[100].tunnel
        ledger = Ledger(self.fake.journal, fold(100, self.records()), stands=True, count=len(self.records()))
        self.tunnel = Tunnel(self.fake.services, old.kind, ledger, self.task, "")
        line = json.dumps(request).encode()
        return json.loads(self.successResultOf(Deferred.fromCoroutine(answer_again(self.tunnel, line, since))))

    def test_a_disk(self):
        """One volume stays, whose name the source is told."""
        for cut in ("making", "made"):
            self.setUp()
            self.connect()
            since = len(self.records())
            self.ask(**DISK)
            self.cut_behind(cut, since)
            reply = self.again(DISK, since)
            self.assertIs(reply["success"], True, (cut, reply))
            self.assertEqual(sorted(self.fake.storage.sizes), [reply["volid"]], cut)
            self.assertEqual(self.tunnel.own.volumes, (reply["volid"],), cut)

    def test_a_config(self):
        for cut in ("config", "configured"):
            self.setUp()
            self.connect()
            since = len(self.records())
            self.ask(**CONFIG)
            self.cut_behind(cut, since)
            self.assertEqual(self.again(CONFIG, since), {"success": True}, cut)
            self.assertEqual(self.fake.guests.configs[100].lock, "migrate", cut)
            self.assertTrue(self.tunnel.ledger.owed.configured, cut)

    def test_an_unlock(self):
        for is_written in (False, True):
            self.setUp()
            self.connect()
            self.ask(**CONFIG)
            since = len(self.records())
            self.ask(cmd="unlock")
            self.cut_behind("handed_over", since)
            if not is_written:
                conf = self.fake.guests.configs[100]
                conf.options["lock"] = "migrate"
            self.assertEqual(self.again({"cmd": "unlock"}, since), {"success": True})
            self.assertIsNone(self.fake.guests.configs[100].lock)
            self.assertEqual(self.tunnel.ledger.owed.marks, frozenset())

    def test_a_resume(self):
        for status, is_whole in (("running", True), ("paused", True)):
            self.setUp()
            self.connect()
            self.ask(**CONFIG)
            self.records().append({"do": "starting"})
            since = len(self.records())
            self.records().append({"do": "resuming"})
            self.fake.machines.now = MachineState(status=status, whole=is_whole)
            self.assertEqual(self.again({"cmd": "resume"}, since), {"success": True})
            self.assertTrue(self.tunnel.ledger.owed.resumed, status)

    def test_a_start_ends_what_it_has_started(self):
        self.connect()
        self.ask(**CONFIG)
        since = len(self.records())
        self.records().append({"do": "starting"})
        self.fake.machines.now = MachineState(status="inmigrate")
        self.again({"cmd": "start"}, since)
        self.assertTrue(any("stop" in event for event in self.events), self.events)

    def test_nonsense_is_refused_as_ever(self):
        self.connect()
        reply = json.loads(self.now(answer_again(self.registry._sessions[100].tunnel, b"{", 1)))
        self.assertIn("failed to parse command", reply["msg"])

    def cut_behind(self, word: str, since: int) -> None:
        """The journal of a daemon that was killed when it had written this record."""
        records = self.records()
        place = next(n for n, record in enumerate(records[since:], since) if record["do"] == word)
        del records[place + 1 :]
