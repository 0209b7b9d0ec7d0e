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
from tests.tunnel.test_machine import INCOMING
from tests.tunnel.test_table import START


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
        for name, words in (("disk", ["making"]), ("disk-import", ["making", "made"]), ("start", ["starting"])):
            self.assertIs(choose(name, words, runs=True, locked=True), Course.UNDO_FIRST)

    def test_a_start_that_has_started_nothing_is_done_again(self):
        self.assertIs(choose("start", [], runs=True, locked=True), Course.DO_AGAIN)


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

    def test_a_start_whose_qemu_is_anothers_by_now(self):
        self.connect()
        self.ask(**CONFIG)
        since = len(self.records())
        self.ask(**START)
        self.fake.machines.replace(INCOMING)
        self.assertIn("already running", self.again(START, since)["msg"])
        self.assertEqual(self.fake.machines.now, INCOMING)

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

    def test_an_unlock_before_a_lock_of_somebody_else(self):
        for is_noted in (False, True):
            self.setUp()
            self.connect()
            self.ask(**CONFIG)
            since = len(self.records())
            self.ask(cmd="unlock")
            if not is_noted:
                self.cut_behind("handed_over", since)
            self.fake.guests.configs[100].options["lock"] = "backup"
            self.assertEqual(self.again({"cmd": "unlock"}, since), {"success": True})
            self.assertEqual(self.fake.guests.configs[100].lock, "backup")

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

    def test_a_start_that_is_refused_ends_nothing(self):
        """A second one, of a VM that runs here already or is about to."""
        for words in ([], ["whole"], ["whole", "resuming"], ["whole", "resuming", "resumed"]):
            self.setUp()
            self.begin_start()
            self.records().extend({"do": word} for word in words)
            self.assert_start_is_refused(len(self.records()))

    def test_a_start_never_ends_what_may_be_the_only_copy(self):
        for word in ("whole", "resuming"):
            self.setUp()
            since = self.begin_start()
            self.records().append({"do": word})
            self.assert_start_is_refused(since)

    def begin_start(self) -> int:
        """A QEMU runs here. Returns: how many records there were before its start."""
        self.connect()
        self.ask(**CONFIG)
        self.records().append({"do": "starting"})
        self.fake.machines.now = MachineState(status="running", whole=True)
        return len(self.records()) - 1

    def assert_start_is_refused(self, since: int) -> None:
        reply = self.again(START, since)
        self.assertIn("already running", reply["msg"])
        self.assertNotIn("stop QEMU", self.events)

    def test_nonsense_is_refused_as_ever(self):
        self.connect()
        reply = json.loads(self.now(answer_again(self.registry._sessions[100].tunnel, b"{", 1)))
        self.assertIn("failed to parse command", reply["msg"])

    def cut_behind(self, word: str, since: int) -> None:
        """The journal of a daemon that was killed when it had written this record."""
        records = self.records()
        place = next(n for n, record in enumerate(records[since:], since) if record["do"] == word)
        del records[place + 1 :]
