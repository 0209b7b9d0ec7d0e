"""Every command there is, as the parsers have it: what each of them has to do alike."""

import argparse
import json
import subprocess
import sys

from mtunnel_tx.cli.main import COMMANDS, make_parser
from tests.cli.test_main import Case, every_parser, run
from tests.processes import run_program

ENDPOINT = "apitoken=PVEAPIToken=mig@pve!t1=x,host=127.0.0.1,port=1,fingerprint=" + ":".join(["AB"] * 32)
VALUES = {
    "token": "mig@pve!t9",
    "member": "mig@pve",
    "role": "PVEAuditor",
    "path": "/vms",
    "vmid": "999",
    "guest": "999",
    "endpoint": ENDPOINT,
    "name": "other",
    "disk": "scsi0",
    "size": "1G",
    "source": "/nowhere/disk.raw",
    "file": "/nowhere/disk.raw",
    "changes": "memory=64",
    "state": "on",
    "choice": "on",
}
MORE = {"migrate": ["--dry-run"], "vm destroy": ["--yes"], "vm rollback": ["--yes"], "vm disk remove": ["--yes"]}
WITHOUT_JSON = {"demo", "websocket-tunnel"}
"""The one takes long, and has a test of its own; the other one speaks JSON lines as it is."""


def leaves():
    """Yields: words that lead to a command, and its parser."""
    for command in COMMANDS:
        for parser in every_parser(make_parser(command), command):
            if parser._subparsers is None:
                yield parser.get_default("words"), parser


def sample(parser):
    """A command line that its parser takes, without options that need not be there."""
    words = []
    for action in parser._actions:
        if action.required or not action.option_strings:
            value = VALUES.get(action.dest, "x") if not action.choices else str(next(iter(action.choices)))
            words += [action.option_strings[0], value] if action.option_strings else [value]
    return words


class EveryCommand(Case):
    def setUp(self):
        super().setUp()
        self.assertEqual(run("init", "--config", self.config, "--yes")[0], 0)

    def say(self, *words):
        argv = [sys.executable, "-m", "mtunnel_tx.cli", *words, "--config", str(self.config)]
        return run_program(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    def test_json_is_what_comes(self):
        """With --json all that is printed is one JSON text, whether it goes well or not: here no daemon runs."""
        for words, parser in leaves():
            if words not in WITHOUT_JSON:
                done = self.say(*words.split(), *sample(parser), *MORE.get(words, ()), "--json")
                with self.subTest(words=words):
                    self.assertIn(done.returncode, (0, 1), done.stderr)
                    self.assertEqual(done.stderr, "")
                    found = json.loads(done.stdout)
                    failed = isinstance(found, dict) and not found.get("success", True)
                    self.assertEqual(failed, bool(done.returncode), found)
                    if failed and words != "check":
                        self.assertNotEqual(found["msg"], "")

    def test_what_goes_wrong_begins_with_the_command(self):
        for words in ("page", "drain", "settle 999", "settle 999 --resume", "status", "watch 999", "vm start 999"):
            done = self.say(*words.split())
            with self.subTest(words=words):
                command = words.split()[0]
                self.assertEqual(done.returncode, 1)
                self.assertRegex(done.stderr, rf"^(mtunnel {command}: .+\n)+$")

    def test_a_word_too_many_is_named(self):
        for words, parser in leaves():
            if any(action.nargs == argparse.ZERO_OR_MORE or action.nargs == "+" for action in parser._actions):
                continue
            status, out, err = run(*words.split(), *sample(parser), "nonsense-word")
            self.assertEqual((status, out), (2, ""), words)
            self.assertIn("nonsense-word", err, words)

    def test_help_says_how(self):
        for words, _ in leaves():
            status, out, err = run(*words.split(), "--help")
            self.assertEqual((status, err, out.startswith("usage: mtunnel ")), (0, "", True), words)
