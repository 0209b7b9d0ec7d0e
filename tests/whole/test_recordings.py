"""Every recorded session of Proxmox's own worker, replayed against a real daemon (rule: tests/golden/README.md)."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import wait_for
from tests.whole.node import Node
from tests.whole.peer import Tunnel, call

RECORDINGS = Path(__file__).parent.parent / "golden" / "worker-replies.jsonl"
STORAGES = """\
dir: local
\tpath {root}/local
\tcontent images

dir: nodisks
\tpath {root}/nodisks
\tcontent iso

dir: off
\tpath {root}/off
\tcontent images
\tdisable

dir: othernode
\tpath {root}/othernode
\tcontent images
\tnodes someothernode
"""
IMAGE = bytes(range(256)) * 4096
CHILD_LINES = re.compile(
    r"(?m)^(disk-import: .*|ready|Formatting .*|file_size_info: .*|WARN: .*|\d+\+\d+ records .*|)\n"
)
POLLING = re.compile(r"(?m)^received command '(ticket|disk-import|query-disk-import)'\n")
VMID = 100


def sessions() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    rows = [json.loads(line) for line in RECORDINGS.read_text().splitlines()]
    for name, session in groupby(rows, lambda row: row["session"]):
        yield name, list(session)


def schema_lines(reply: dict[str, Any]) -> dict[str, Any]:
    """A reply whose schema errors stand in one order."""
    msg = reply.get("msg")
    if isinstance(msg, str) and "400 Parameter verification failed.\n" in msg:
        head, _, errors = msg.partition("400 Parameter verification failed.\n")
        return {**reply, "msg": [head, sorted(errors.splitlines())]}
    return reply


class Replay:
    """One session, row by row, in order."""

    def __init__(self, case: SynchronousTestCase, node: Node) -> None:
        self.case = case
        self.node = node
        self.tunnel: Tunnel | None = None
        self.sent: tuple[int, str] | None = None
        self.feeding = False

    def post(self, row: dict[str, Any]) -> None:
        request = dict(row["request"])
        node, vmid = request.pop("node"), request.pop("vmid")
        if "error" in row:
            if "already exists" in row["error"]:
                self.node.guest_file(VMID).write_text("name: there\n")
            self.check_refusal(row, call(self.node, "POST", f"/nodes/{node}/qemu/{vmid}/mtunnel", request))
            self.node.guest_file(VMID).unlink(missing_ok=True)
            return
        self.tunnel = Tunnel(self.node, int(vmid), **request)
        self.case.assertEqual(self.tunnel.opened.keys(), row["result"].keys())
        self.case.assertEqual(self.tunnel.opened["socket"], row["result"]["socket"])
        shape = row["result"]["upid"].replace("<PID:PSTART:TIME>", "[0-9A-F]{8}:[0-9A-F]{8,9}:[0-9A-F]{8}")
        self.case.assertRegex(self.tunnel.opened["upid"], f"^{shape}$")

    def check_refusal(self, row: dict[str, Any], answer: Any) -> None:
        errors = row.get("errors")
        self.case.assertEqual(answer.status, 400 if errors else 500)
        self.case.assertEqual(answer.json.get("errors"), errors)
        self.case.assertEqual(answer.json["message"], row["error"].removeprefix("400 ").split("\n")[0] + "\n")

    def cmd(self, row: dict[str, Any]) -> None:
        assert self.tunnel is not None
        step = (row["step"], row["request"])
        if step != self.sent:
            self.tunnel.send(row["request"])
            self.sent = step
        reply = self.tunnel.read()
        while self.feeding and reply.get("status") == "pending" and row["reply"].get("status") != "pending":
            reply = self.tunnel.ask(cmd="query-disk-import")
        self.compare(row, reply)

    def compare(self, row: dict[str, Any], reply: dict[str, Any]) -> None:
        where = f"{row['session']}, step {row['step']}: {row['request']}"
        if row["replay"] == "exact":
            self.case.assertEqual(schema_lines(reply), schema_lines(row["reply"]), where)
        elif row["replay"] == "shape":
            self.case.assertEqual(reply.keys(), row["reply"].keys(), f"{where}\n{reply}")
            for key in ("success", "status"):
                self.case.assertEqual(reply.get(key), row["reply"].get(key), where)

    def sh(self, row: dict[str, Any]) -> None:
        """What the recording looked at or changed with a shell, done by hand."""
        guest, command = self.node.guest_file(VMID), row["cmd"]
        if command.startswith("sed"):
            guest.write_text(re.sub(r"(?m)^lock:.*", "lock: backup", guest.read_text()))
        if command.startswith("rm"):
            guest.unlink()
        expected = row["out"]
        if "cat " in command:
            seen = guest.read_text() + ((self.node.firewall(VMID) or "") if "firewall" in command else "")
            self.case.assertEqual(seen, expected)

    def feed(self, payload: bytes) -> None:
        assert self.tunnel is not None
        stream = self.tunnel.stream("/run/qemu-server/100.storage")
        self.case.assertEqual(stream.answer, 101)
        stream.send(payload)
        stream.send_close()
        stream.drop()
        self.feeding = True

    def end(self, row: dict[str, Any]) -> None:
        assert self.tunnel is not None
        self.tunnel.leave()
        upid = self.tunnel.opened["upid"]
        wait_for("the end of the task", lambda: "TASK " in self.node.task_log(upid))
        wait_for("the end of the tunnel", lambda: not self.node.ask(cmd="status")["tunnels"])
        if row["replay"] == "shape":
            self.case.assertEqual(self.node.guest(VMID), row["config"])
            self.case.assertEqual(self.node.firewall(VMID), row["fw"])
            self.case.assertEqual(self.node.images(VMID), row["images"])
            self.case.assertEqual(self.essence(self.node.task_log(upid)), self.essence(row["task_log"]))
        left = self.node.left_over()
        self.case.assertEqual((left["sockets"], left["journals"], left["children"]), ([], [], []))

    def essence(self, log: str) -> str:
        """A task log without what a child said, and without the questions whose number depends on the time."""
        log = CHILD_LINES.sub("", log)
        return POLLING.sub("", log) if "'disk-import'" in log else log


class RecordingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node("pvetest", STORAGES).start()
        self.addCleanup(self.node.close)

    def run_session(self, name: str, rows: list[dict[str, Any]]) -> None:
        replay = Replay(self, self.node)
        queried = False
        failing = name == "disk-import failing stream"
        rows = self.without_polling(name, rows)
        for row in rows:
            getattr(replay, row["kind"])(row)
            if "query-disk-import" in row.get("request", "") and name.startswith("disk-import") and not queried:
                queried = True
                replay.feed(b"" if failing else struct.pack("<Q", len(IMAGE)) + IMAGE)
        self.tidy()

    def tidy(self) -> None:
        """What a session left on purpose must not meet the next one."""
        self.node.guest_file(VMID).unlink(missing_ok=True)
        (self.node.pve / "firewall" / f"{VMID}.fw").unlink(missing_ok=True)
        shutil.rmtree(self.node.root / "local" / "images" / str(VMID), ignore_errors=True)

    def without_polling(self, name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Where an import is fed, go on at the first row that is not `pending` (as the rule says)."""
        if name == "start ok":
            # Ours waits for the VM's memory, which nobody sends here.
            return [row for row in rows if row.get("request") != '{"cmd":"resume"}']
        if not name.startswith("disk-import"):
            return rows
        kept, fed = [], False
        for row in rows:
            pending = row.get("reply", {}).get("status") == "pending"
            asks = "query-disk-import" in row.get("request", "")
            if fed and (pending or row.get("replay") == "no"):
                continue
            fed = fed or asks
            kept.append(row)
        return kept

    def test_all_sessions(self) -> None:
        names = []
        for name, rows in sessions():
            self.run_session(name, rows)
            names.append(name)
        self.assertGreaterEqual(len(names), 16)
