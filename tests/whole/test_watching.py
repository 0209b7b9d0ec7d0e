"""A move that one can watch: what both hosts say about it while it runs, and what their histories say then."""

from __future__ import annotations

import json
import shutil
import signal
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.patience import patience_s
from tests.processes import run_program
from tests.whole.node import Node, wait_for
from tests.whole.peer import call
from tests.whole.test_online import OnlineCase


class WatchedTests(OnlineCase):
    def move(self, node: Node) -> dict[str, Any]:
        """What `mtunnel status` says of the only move, whether a daemon runs there or not."""
        said = json.loads(node.run("mtunnel_tx.cli", "status", "--json", check=False).stdout)
        moves = said["moves"]
        return moves[0] if moves else {}

    def history(self, node: Node) -> dict[str, Any]:
        (row,) = json.loads(node.run("mtunnel_tx.cli", "history", "--json").stdout)
        return row

    def test_both_ends_say_the_same(self) -> None:
        """The sending host has no daemon; the target is told what it cannot know."""
        self.boot(burst=64)
        migration = self.start_slow_migration()
        wait_for("the memory on its way", lambda: self.move(self.here).get("phase") == "memory")
        wait_for("that the target was told", lambda: self.move(self.there).get("phase") == "memory")
        here, there = self.move(self.here), self.move(self.there)
        self.assertEqual((here["direction"], here["vmid"], here["target_vmid"]), ("out", 100, 200))
        self.assertEqual((there["direction"], there["vmid"], there["source"]), ("in", 200, "here"))
        self.assertEqual((here["upid"], here["token"]), (there["upid"], there["token"]))
        for said in (here, there):
            disk, memory = said["transfers"]
            self.assertEqual((disk["label"], disk["kind"]), ("scsi0", "mirror"))
            self.assertGreaterEqual(disk["done_bytes"], 16 << 20)
            self.assertEqual((memory["label"], memory["kind"]), ("memory", "memory"))
            self.assertGreater(said["percent"], 10)
        shown = self.here.run("mtunnel_tx.cli", "status", check=False).stdout
        self.assertRegex(shown, r"100 +to +127\.0\.0\.1 as 200 +memory +all +\d+\.\d MiB +\d+\.\d MiB +\d+ ")
        migration.send_signal(signal.SIGINT)
        migration.communicate(timeout=patience_s())
        self.assertEqual(self.move(self.here), {})

    def test_histories(self) -> None:
        self.boot()
        done = self.migrate()
        self.assertRegex(done.stdout, r"downtime \d+ ms")
        wait_for("its end there", lambda: self.move(self.there)["phase"] == "done")
        there = self.move(self.there)
        self.assertEqual((there["percent"], there["reason"]), (100, ""))
        self.assertGreater(there["downtime_s"], 0)
        sent, received = self.history(self.here), self.history(self.there)
        self.assertEqual((sent["direction"], sent["outcome"], sent["vmid"]), ("out", "done", 100))
        self.assertEqual((received["direction"], received["outcome"], received["upid"]), ("in", "kept", sent["upid"]))
        self.assertEqual([*sent["phases"]], ["mirror", "memory", "hand-over", "done"])
        self.assertGreater(sent["bytes_out"], 1 << 20)
        self.assertEqual(list(self.here.runtime.glob("*.leaving*")), [])
        self.check_metrics(there["downtime_s"])

    def check_metrics(self, downtime_s: float) -> None:
        """With the header that Prometheus sends for `authorization` with `type: PVEAPIToken`."""
        header = self.there.authorization.replace("PVEAPIToken=", "PVEAPIToken ")
        answer = call(self.there, "GET", "/mtunnel/metrics", Authorization=header)
        families = text_string_to_metric_families(answer.body.decode())
        samples = [sample for family in families for sample in family.samples]
        values = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
        self.assertEqual(values["mtunnel_tunnels_ended_total", "kept"], 1)
        self.assertEqual(values["mtunnel_downtime_seconds_sum",], downtime_s)
        self.assertGreater(values["mtunnel_payload_bytes_total", "in", "memory"], 1 << 20)
        self.assertGreater(values["mtunnel_journal_append_seconds_count",], 5)
        self.assertGreater(values["mtunnel_event_loop_delay_seconds_count",], 0)
        if promtool := shutil.which("promtool"):
            done = run_program([promtool, "check", "metrics"], input=answer.body, capture_output=True, check=False)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))
