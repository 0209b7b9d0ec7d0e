"""What commands print with --json is what docs/operations.md says: every key of it, and no other one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.cli.main import COMMANDS
from mtunnel_tx.watch.shape import move_json
from tests.cli.test_watch import MOVE
from tests.whole.node import TOKEN, Node
from tests.whole.peer import hold

DOCS = Path(__file__).parents[2] / "docs"
ELSEWHERE = {"check", "vm", "watch", "demo", "websocket-tunnel"}
"""`check` and `vm` have tables of their own, `watch` prints moves, `demo` takes long; the last one has no --json."""


def rows(page: str, heading: str) -> list[tuple[str, str]]:
    """The first two columns of a table under a heading."""
    part = (DOCS / page).read_text().partition(heading)[2]
    return re.findall(r"^\| ([^|]+) \| ([^\n]+) \|$", part, re.M)


def documented() -> dict[str, set[str]]:
    """Command to keys: what stands in parentheses, or behind a colon or a semicolon, is inside of them."""
    found: dict[str, set[str]] = {}
    for names, text in rows("operations.md", "## Answers for programs"):
        plain = re.sub(r"\([^()]*\)", "", re.sub(r"\[[^]]*\]\([^)]*\)", "", text))
        first = plain.partition(";")[0] if names == "`status`" else plain
        keys = {part.group(1) for part in re.finditer(r"`([a-z_]+)`", first.partition(": objects")[0])}
        found.update(dict.fromkeys(re.findall(r"`([^`]+)`", names), keys))
    return found


class Answers(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node().start()
        self.addCleanup(self.node.close)
        self.shapes = documented()
        self.seen: set[str] = set()

    def say(self, command: str, *words: str, status: int = 0) -> Any:
        done = self.node.run("mtunnel_tx.cli", *command.split(), *words, "--json", check=False)
        self.assertEqual((done.returncode, done.stderr), (status, ""), done.stdout)
        return json.loads(done.stdout)

    def check(self, command: str, *words: str) -> Any:
        answer = self.say(command, *words)
        found = answer[0] if isinstance(answer, list) else answer
        self.assertEqual({*found} | {"success"}, self.shapes[command] | {"success"}, command)
        self.assertIs(found.get("success", True), True)
        self.seen.add(command)
        return answer

    def test_every_one(self) -> None:
        hold(self.node, 300)
        for command in ("status", "history", "page", "token list", "acl list"):
            self.check(command)
        self.check("token add", "mig@pve!t2")
        self.check("token remove", "mig@pve!t2")
        member = ("mig@pve", "--role", "PVEAuditor", "--path", "/vms")
        self.check("acl add", *member)
        self.check("acl remove", *member)
        self.check("endpoint", "--port", "8016", "--token", TOKEN)
        self.check("settle", "300", "--discard")
        self.check("api")
        self.check("init")
        self.check("drain")
        wait = self.node.process
        assert wait is not None
        self.assertEqual(wait.wait(), 0)
        absent = self.say("status", status=1)
        self.assertEqual({*absent}, {"success", "msg", "journals", "departures", "moves"})
        tried = {command.partition(" ")[0] for command in self.seen} | ELSEWHERE | {"migrate"}
        self.assertEqual(tried, {*COMMANDS}, "a command has no test here")

    def test_failures(self) -> None:
        for words in (
            ("settle", "999"),
            ("vm", "start", "999"),
            ("token", "remove", "mig@pve!none"),
            ("vm", "show", "none"),
        ):
            answer = self.say(*words, status=1)
            self.assertEqual(({*answer}, answer["success"]), ({"success", "msg"}, False), words)
        (self.node.pve / "user.cfg").unlink()
        self.node.config.write_text("nonsense = 1\n")
        self.assertEqual({*self.say("history", status=1)}, {"success", "msg"})

    def test_moves(self) -> None:
        page = rows("watching.md", "## The shape")
        names = [name for cell, _ in page for name in re.findall(r"`([a-z_]+)`", cell)]
        said = move_json(MOVE)
        move = names[: names.index("label")]
        self.assertEqual(sorted(move), sorted(said))
        transfer = [name for name in names[names.index("label") :] if name in said["transfers"][0]]
        self.assertEqual(sorted(set(transfer)), sorted(said["transfers"][0]))
