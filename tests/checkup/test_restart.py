"""What `mtunnel check` says of restarts."""

import os
from dataclasses import replace
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.checkup.finding import FindingState
from mtunnel_tx.checkup.restart import check_restart
from mtunnel_tx.config import Host, load_settings


class Case(SynchronousTestCase):
    def load(self, uid=1000, users=(), text=""):
        place = {"environ": {"HOME": "/h"}, "temp_dir": Path("/tmp")}
        host = Host(uid=uid, node="node1", is_user=users.__contains__, **place)
        file = Path(self.mktemp())
        file.write_text(text)
        return load_settings(file, {}, host)


class DefaultTests(Case):
    def test_moves_go_on_where_workers_can_run(self):
        self.assertEqual(self.load().limits.restart_s, 120)
        self.assertEqual(self.load().workers, 1)
        self.assertEqual(self.load(0, ("mtunnel",)).workers, 1)
        self.assertEqual(self.load(0, ()).workers, 0)
        self.assertEqual(self.load(0, ("mtunnel",), 'user = "other"').workers, 0)


class RestartTests(Case):
    def check(self, closed=None, restart_s=120.0, **given):
        settings = self.load()
        settings = replace(settings, limits=replace(settings.limits, restart_s=restart_s), **given)
        (found,) = check_restart(settings, closed)
        return found.state, found.text

    def test_moves_go_on(self):
        said = self.check()
        self.assertEqual(said, (FindingState.OK, "1: moves that come wait 120 s for a daemon that is started again"))

    def test_moves_are_not_to_go_on(self):
        state, text = self.check(restart_s=0.0)
        self.assertEqual(state, FindingState.OK)
        self.assertIn("end with the daemon", text)

    def test_nobody_is_there_whom_workers_could_run_as(self):
        self.patch(os, "geteuid", lambda: 0)
        state, text = self.check(workers=0, user="nobody-of-this-name")
        self.assertEqual(state, FindingState.WARNING)
        self.assertIn("there is no user 'nobody-of-this-name'", text)

    def test_whom_they_run_as_cannot_read_the_program(self):
        state, text = self.check("user 'x' cannot enter '/root'")
        self.assertEqual((state, text), (FindingState.PROBLEM, "user 'x' cannot enter '/root'"))
