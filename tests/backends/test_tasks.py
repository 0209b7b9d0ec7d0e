import json
import os
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.tasks import FileTasks, process_start
from mtunnel_tx.errors import BackendFailed, BadRequest, InvalidParameters
from mtunnel_tx.pve.upid import Upid, parse_upid
from tests.patience import patience_s
from tests.processes import started_process

GOLDEN = Path(__file__).parent.parent / "golden" / "worker-replies.jsonl"
START = 0x6376520F


class TasksTest(SynchronousTestCase):
    def setUp(self):
        self.state = Path(self.mktemp())
        self.clock = Clock()
        self.clock.advance(START + 0.5)
        self.tasks = FileTasks(self.state, "n1", self.clock.seconds)

    def text(self, upid):
        return (self.state / "tasks" / parse_upid(upid).log_path).read_bytes().decode()


class LogTest(TasksTest):
    def test_place_and_name(self):
        task = self.tasks.start("qmtunnel", 100, "mig@pve!t1")
        numbers = f"{os.getpid():08X}:{process_start(os.getpid()):08X}:6376520F"
        self.assertEqual(task.upid, f"UPID:n1:{numbers}:qmtunnel:100:mig@pve!t1:")
        self.assertTrue((self.state / "tasks" / "F" / task.upid).is_file())
        task.finish("OK")

    def test_lines(self):
        task = self.tasks.start("qmtunnel", 100, "a@pve!t1")
        task.line("mtunnel started")
        task.line("ready\n")
        task.line("disk-import: evil \x1b[2J\r\x00\x85\u2028\nTASK OK\ud800ä\n")
        task.finish("OK")
        expected = "mtunnel started\nready\n\ndisk-import: evil ?[2J?????TASK OK?ä\n\nTASK OK\n"
        self.assertEqual(self.text(task.upid), expected)

    def test_endings(self):
        for given, written in (
            ("OK", "TASK OK"),
            ("WARNINGS: 2", "TASK WARNINGS: 2"),
            ("mtunnel exited unexpectedly", "TASK ERROR: mtunnel exited unexpectedly"),
            ("bad\nTASK OK\n", "TASK ERROR: bad?TASK OK"),
            ("OK ", "TASK ERROR: OK"),
            ("", "TASK ERROR: "),
        ):
            task = self.tasks.start("qmtunnel", 100, "a@pve!t1")
            task.finish(given)
            self.assertEqual(self.text(task.upid), f"{written}\n")
            self.assertEqual(
                self.tasks.status(task.upid)["exitstatus"], written.removeprefix("TASK ").removeprefix("ERROR: ")
            )

    def test_nothing_behind_the_end(self):
        task = self.tasks.start("qmtunnel", 100, "a@pve!t1")
        task.finish("OK")
        task.line("late")
        task.finish("late")
        self.assertEqual(self.text(task.upid), "TASK OK\n")

    def test_what_a_dead_daemon_left_is_finished(self):
        live = self.tasks.start("qmtunnel", 100, "a@pve!t1")
        dead = Upid(
            type="qmtunnel", node="n1", pid=os.getpid(), pstart=1, starttime=START + 9, id="101", user="a@pve!t1"
        )
        path = self.state / "tasks" / dead.log_path
        path.parent.mkdir(exist_ok=True)
        for before, after in (("started\n", "started\n"), ("started\ntor", "started\ntor\n")):
            path.write_text(before)
            for _ in range(2):
                self.tasks.finish_orphans("it\ndied")
            self.assertEqual(path.read_text(), f"{after}TASK ERROR: it?died\n")
        self.assertEqual(self.tasks.status(str(dead))["exitstatus"], "it?died")
        self.assertEqual(self.text(live.upid), "")

    def test_is_bounded(self):
        tasks = FileTasks(self.state, "n1", self.clock.seconds, most_bytes=100)
        task = tasks.start("qmtunnel", 100, "a@pve!t1")
        for _ in range(30):
            task.line("x" * 9)
        task.finish("bad " * 9999)
        lines = self.text(task.upid).splitlines()
        self.assertEqual(lines[8:10], ["x" * 9, "no more lines: this log is full"])
        self.assertEqual(len(lines), 11)
        self.assertLess(len(lines[-1]), 2100)
        self.assertEqual(tasks.status(task.upid)["status"], "stopped")

    def test_two_in_one_second(self):
        first, second = self.tasks.start("qmtunnel", 100, "a@pve!t1"), self.tasks.start("qmtunnel", 100, "a@pve!t1")
        self.assertNotEqual(first.upid, second.upid)
        self.assertEqual(self.tasks.running(), [first.upid, second.upid])
        first.finish("OK")
        self.assertEqual(self.tasks.running(), [second.upid])
        second.finish("OK")

    def test_recorded_logs(self):
        """What Proxmox's worker printed comes out as it was recorded."""
        logs = [row["task_log"] for row in map(json.loads, GOLDEN.read_text().splitlines()) if row["kind"] == "end"]
        self.assertGreater(len(logs), 10)
        for text in logs:
            task = self.tasks.start("qmtunnel", 100, "mig@pve!t1")
            *lines, ending = text.removesuffix("\n").split("\n")
            for index, line in enumerate(lines):
                if line:
                    task.line(line + "\n" if lines[index + 1 : index + 2] == [""] else line)
            task.finish(ending.removeprefix("TASK ").removeprefix("ERROR: "))
            self.assertEqual(self.text(task.upid), text)

    def test_no_place(self):
        self.state.write_text("")
        self.assertRaises(BackendFailed, self.tasks.start, "qmtunnel", 100, "a@pve!t1")


class ReadTest(TasksTest):
    def put(self, text, **changes):
        upid = Upid(
            **{
                "type": "qmtunnel",
                "node": "n1",
                "pid": 1,
                "pstart": 1,
                "starttime": 16,
                "id": "7",
                "user": "a@pve!t1",
                **changes,
            }
        )
        path = self.state / "tasks" / upid.log_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(upid)

    def test_running(self):
        task = self.tasks.start("qmtunnel", 100, "mig@pve!t1")
        task.line("TASK OK")
        status = {
            "upid": task.upid, "node": "n1", "pid": os.getpid(), "pstart": process_start(os.getpid()),
            "starttime": START, "type": "qmtunnel", "id": "100", "user": "mig@pve", "tokenid": "t1",
            "status": "running",
        }  # fmt: skip
        self.assertEqual(self.tasks.status(task.upid), status)
        task.finish("WARNINGS: 1")
        self.assertEqual(self.tasks.status(task.upid), {**status, "status": "stopped", "exitstatus": "WARNINGS: 1"})

    def test_user_without_token(self):
        status = self.tasks.status(self.put("TASK OK\n", user="root@pam"))
        self.assertEqual(status["user"], "root@pam")
        self.assertNotIn("tokenid", status)

    def test_other_processes(self):
        child = started_process(self.addCleanup, ["sleep", "600"])
        try:
            upid = self.put("started\n", pid=child.pid, pstart=process_start(child.pid))
            self.assertEqual(self.tasks.status(upid)["status"], "running")
        finally:
            child.kill()
            child.wait(patience_s())
        self.assertEqual(self.tasks.status(upid)["exitstatus"], "unexpected status")

    def test_unexpected(self):
        for text in ("", "started\n", "TASK OK\nmore\n", "TASK FINE\n", "TASK OK extra\n"):
            status = self.tasks.status(self.put(text))
            self.assertEqual((status["status"], status["exitstatus"]), ("stopped", "unexpected status"), text)

    def test_an_earlier_life_of_ours_with_this_pid(self):
        upid = self.put("started\n", pid=os.getpid(), pstart=process_start(os.getpid()))
        self.assertEqual(self.tasks.status(upid)["exitstatus"], "unexpected status")

    def test_log(self):
        upid = self.put("a\n\nb\nTASK OK\n")
        self.assertEqual(self.tasks.log(upid)[:2], [{"n": 1, "t": "a"}, {"n": 2, "t": ""}])
        self.assertEqual(self.tasks.log(upid, 2, 1), [{"n": 3, "t": "b"}])
        self.assertEqual(len(self.tasks.log(upid, 1, 0)), 3)
        self.assertEqual(self.tasks.log(upid, 4), [])
        self.assertEqual(self.tasks.total(upid), 4)
        self.assertEqual(len(self.tasks.log(self.put("x\n" * 99))), 50)

    def test_empty_log(self):
        upid = self.put("")
        self.assertEqual(self.tasks.log(upid), [{"n": 1, "t": "no content"}])
        self.assertEqual(self.tasks.total(upid), 1)

    def test_no_such_task(self):
        upid = str(Upid(type="qmtunnel", node="n1", pid=1, pstart=1, starttime=1, id="7", user="a@pve!t1"))
        for call in (self.tasks.status, self.tasks.log, self.tasks.total):
            self.assertEqual(self.assertRaises(InvalidParameters, call, upid).errors, {"upid": "no such task"})
            self.assertRaises(BadRequest, call, "UPID:../../etc/passwd:")


class RetentionTest(TasksTest):
    def kept(self):
        return sorted(path.name for path in (self.state / "tasks").glob("*/*"))

    def test_oldest_go_first_and_running_ones_never(self):
        tasks = FileTasks(self.state, "n1", self.clock.seconds, most_logs=3)
        oldest = tasks.start("qmtunnel", 100, "a@pve!t1")
        upids = [oldest.upid]
        for _ in range(6):
            self.clock.advance(1)
            task = tasks.start("qmtunnel", 100, "a@pve!t1")
            task.finish("OK")
            upids.append(task.upid)
        self.assertEqual(self.kept(), sorted([upids[0], *upids[-2:]]))
        oldest.finish("OK")

    def finished(self, tasks, vmid, token="a@pve!t1"):
        self.clock.advance(1)
        task = tasks.start("qmtunnel", vmid, token)
        for _ in range(100):
            task.line("x" * 9)
        task.finish("OK")
        return task.upid

    def test_logs_of_one_token_are_bounded(self):
        tasks = FileTasks(self.state, "n1", self.clock.seconds, of_token=2500, in_all=5000)
        other = self.finished(tasks, 99, "b@pve!t1")
        mine = [self.finished(tasks, 100 + number) for number in range(6)]
        last = tasks.start("qmtunnel", 200, "a@pve!t1")
        self.assertEqual(self.kept(), sorted([other, *mine[-2:], last.upid]))
        last.finish("OK")

    def test_all_logs_are_bounded(self):
        tasks = FileTasks(self.state, "n1", self.clock.seconds, of_token=2500, in_all=3500)
        ended = [self.finished(tasks, 100 + number, f"u{number}@pve!t1") for number in range(6)]
        last = tasks.start("qmtunnel", 200, "a@pve!t1")
        self.assertEqual(self.kept(), sorted([*ended[-3:], last.upid]))
        last.finish("OK")

    def test_what_is_no_log_goes_no_worse_than_oldest(self):
        (self.state / "tasks" / "0").mkdir(parents=True)
        (self.state / "tasks" / "0" / "UPID:rubbish").write_text("")
        (self.state / "tasks" / "0" / "other").write_text("")
        FileTasks(self.state, "n1", self.clock.seconds, most_logs=1).start("qmtunnel", 100, "a@pve!t1").finish("OK")
        self.assertEqual([name[:5] for name in self.kept()], ["UPID:", "other"])


class ProcessStartTest(SynchronousTestCase):
    def test_ours_is_before_a_childs(self):
        child = started_process(self.addCleanup, ["sleep", "600"])
        try:
            self.assertGreaterEqual(process_start(child.pid), process_start(os.getpid()))
        finally:
            child.kill()
            child.wait(patience_s())
        self.assertIsNone(process_start(child.pid))
