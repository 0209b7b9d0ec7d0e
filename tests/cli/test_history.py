"""`mtunnel history`: what it shows, chooses, and says where there is nothing."""

import json
import time
from dataclasses import replace

from mtunnel_tx.watch.history import HistoryFile
from tests.cli.test_main import Case, run
from tests.watch.test_history import MOVE


class HistoryTests(Case):
    def add(self, **changes):
        (self.folder / "state").mkdir(exist_ok=True)
        file = HistoryFile(self.folder / "state/history.sqlite3", most_rows=9, most_days=99999)
        file.add(replace(MOVE, **changes))

    def shown(self, *words):
        status, out, err = run("--config", self.config, "history", *words)
        self.assertEqual((status, err), (0, ""))
        return out

    def test_nothing_yet(self):
        self.assertEqual(self.shown(), "no moves\n")
        self.assertEqual(self.shown("--json"), "[]\n")

    def test_the_newest_is_last(self):
        self.add(since_s=2000.0, vmid=7, outcome="rolled back", reason="[b]the source left", token="a@pve!b")
        self.add()
        rows = self.shown().splitlines()
        self.assertEqual(
            rows[0].split(), ["WHEN", "VMID", "PEER", "OUTCOME", "TIME", "MiB", "IN", "MiB", "OUT", "TOKEN"]
        )
        self.assertEqual(
            rows[1].split()[2:], ["100", "in", "192.0.2.1", "kept", "0:00:02", "1048576.0", "0.0", "mig@pve!t1"]
        )
        self.assertIn("rolled back: [b]the source left", rows[2])

    def test_json_has_every_field(self):
        self.add()
        (move,) = json.loads(self.shown("--json"))
        self.assertEqual(move["phases"], {"serving": 0.5})
        self.assertEqual(move["bytes_in"], 1 << 40)

    def test_choices(self):
        self.add(since_s=time.time() - 3600, vmid=107)
        self.add(since_s=time.time() - 7200, vmid=108)
        vmids = lambda *words: [move["vmid"] for move in json.loads(self.shown("--json", *words))]  # noqa: E731
        self.assertEqual(vmids(), [108, 107])
        self.assertEqual(vmids("--since", "90m"), [107])
        self.assertEqual(vmids("--since", "2020-01-01"), [108, 107])
        self.assertEqual(vmids("--vmid", "108"), [108])
        self.assertEqual(vmids("--limit", "1"), [107])

    def test_what_is_no_time(self):
        for word in ("yesterday", "7x", "2026-13-01"):
            status, _, err = run("--config", self.config, "history", "--since", word)
            self.assertEqual(status, 2)
            self.assertIn(f"'{word}' is neither a date nor a time like 12h or 7d", err)

    def test_a_damaged_file(self):
        (self.folder / "state").mkdir()
        (self.folder / "state/history.sqlite3").write_bytes(b"rubbish" * 1000)
        status, out, err = run("--config", self.config, "history")
        self.assertEqual((status, out), (1, ""))
        self.assertEqual(err, "mtunnel history: the history cannot be read: file is not a database\n")
