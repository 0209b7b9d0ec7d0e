"""`mtunnel status`: what people see of a daemon's answer, and what they see where none runs."""

import io
import json
import sys
from datetime import UTC, datetime

from rich.console import Console

from mtunnel_tx.cli import status as status_module
from mtunnel_tx.cli.status import show
from mtunnel_tx.errors import TimedOut
from mtunnel_tx.ports.programs import Program
from mtunnel_tx.source.departure import Power, claim
from tests.cli.test_main import Case, run
from tests.processes import run_program

STATUS = {
    "success": True,
    "version": "0.1.0",
    "pid": 7,
    "listening": ["127.0.0.1:8016"],
    "draining": False,
    "tunnels": [],
    "held": {},
}
TUNNEL = {
    "vmid": 200,
    "token": "mig@pve!t1",
    "upid": "UPID:x",
    "state": "serving",
    "since": 1000.0,
    "streams": 2,
    "bytes_in": 3 << 20,
    "bytes_out": 1 << 19,
}


class Status(Case):
    def shown(self, **changes):
        out = io.StringIO()
        show({**STATUS, **changes}, datetime.fromtimestamp(1083, UTC), Console(file=out, width=120))
        return out.getvalue()

    def test_nothing_to_do(self):
        self.assertEqual(self.shown(), "mtunnel-tx 0.1.0, pid 7, listening on 127.0.0.1:8016\nno tunnels\n")

    def test_a_tunnel(self):
        cells = self.shown(tunnels=[TUNNEL]).splitlines()[2].split()
        self.assertEqual(cells, ["200", "serving", "0:01:23", "2", "3.0", "MiB", "0.5", "MiB", "mig@pve!t1"])

    def test_which_way_streams_run(self):
        shown = self.shown(relay="pure Python (not built)").splitlines()
        self.assertEqual(shown[1], "streams run by: pure Python (not built)")

    def test_worker_processes(self):
        shown = self.shown(workers=[{"pid": 12, "connections": 3, "busy": 1}]).splitlines()
        self.assertEqual(shown[1], "worker process 12: 3 connections, 1 of them busy")

    def test_brackets_are_no_markup(self):
        tunnel = {**TUNNEL, "token": "[red]mig@pve!t1"}
        self.assertIn("[red]mig@pve!t1", self.shown(tunnels=[tunnel]))
        self.assertIn("[bold]why", self.shown(held={"9": "[bold]why"}))

    def test_what_is_held(self):
        self.assertIn("VM 300 waits for 'mtunnel settle 300': paused\n", self.shown(held={"300": "paused"}))
        self.assertIn("takes no new tunnels", self.shown(draining=True, listening=[]))

    def test_a_vm_on_its_way_out(self):
        self.assertIn("VM 100 runs at b as VM 200\n", self.shown(departures={100: "runs at b as VM 200"}))

    def test_a_vm_that_was_half_sent(self):
        """No daemon is needed to know it, and none to say it."""
        folder = self.folder / "state" / "journal"
        folder.mkdir(parents=True)
        where = {"host": "b", "target_vmid": 200, "token": "mig@pve!t1"}
        dead = Program(boot="x", pid=1, started=1)
        record = claim(program=dead, power=Power.RUNNING, at_s=0, delete=False, **where)
        (folder / "source-100.jsonl").write_text(json.dumps({"version": 2, **record}) + "\n")
        (folder / "source-101.jsonl").touch()
        status, out, _ = self.status()
        left, torn = out.splitlines()
        said = "was on its way to b as VM 200; its program has ended: run 'mtunnel settle 100'"
        self.assertEqual((status, left), (1, f"VM 100 {said}"))
        self.assertRegex(torn, "VM 101 is locked: the journal of VM 101 has no whole record: .*/source-101.jsonl'")
        departures = json.loads(self.status("--json")[1])["departures"]
        self.assertEqual(departures, {"100": said, "101": torn.removeprefix("VM 101 ")})

    def test_no_daemon(self):
        (self.folder / "state" / "journal").mkdir(parents=True)
        (self.folder / "state" / "journal" / "300.jsonl").touch()
        status, out, err = self.status()
        self.assertEqual(status, 1)
        self.assertIn(f"mtunnel status: no daemon answers at '{self.folder}/run/control.sock'", err)
        self.assertIn("VM 300: a tunnel did not end", out)
        status, out, _ = self.status("--json")
        self.assertEqual((status, json.loads(out)["journals"]), (1, [300]))

    def test_no_daemon_and_no_journal_that_can_be_read(self):
        (self.folder / "state").mkdir()
        (self.folder / "state" / "journal").touch()
        reason = f"{self.folder}/state/journal: Not a directory"
        status, out, err = self.status()
        self.assertEqual((status, out), (1, ""))
        self.assertIn(f"mtunnel status: no daemon answers at '{self.folder}/run/control.sock'", err.splitlines()[0])
        self.assertEqual(err.splitlines()[1:], [f"mtunnel status: {reason}"])
        status, out, err = self.status("--json")
        found = json.loads(out)
        self.assertEqual((status, err, found["journals"], found["journals_msg"]), (1, "", [], reason))
        self.assertIn("no daemon answers", found["msg"])

    def test_a_daemon_that_refuses(self):
        def refuse(*_):
            raise TimedOut("no reply")

        self.patch(status_module, "ask_daemon", refuse)
        self.assertEqual(run("status", "--config", self.config), (1, "", "mtunnel status: no reply\n"))
        status, out, err = run("status", "--json", "--config", self.config)
        self.assertEqual((status, json.loads(out), err), (1, {"success": False, "msg": "no reply"}, ""))

    def test_what_a_journal_tells_without_a_daemon(self):
        records = (
            {"version": 1, "do": "claim", "token": "mig@pve!t1", "at": 1000},
            {"do": "storage", "storage": "local", "before": []},
            {"do": "making", "storage": "local"},
            {"do": "made", "storage": "local", "volid": "local:300/vm-300-disk-0.raw"},
        )
        folder = self.folder / "state" / "journal"
        folder.mkdir(parents=True)
        (folder / "300.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (folder / "301.jsonl").write_text('{"version":9}\n')
        out = self.status()[1]
        self.assertIn(
            "VM 300: a tunnel did not end (mig@pve!t1, not handed over, made local:300/vm-300-disk-0.raw)", out
        )
        self.assertIn("VM 301: a tunnel did not end (the journal of VM 301 has an unknown version)", out)

    def status(self, *args):
        """In a process of its own: it runs the reactor."""
        command = [sys.executable, "-m", "mtunnel_tx.cli", "status", "--config", str(self.config), *args]
        done = run_program(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr
