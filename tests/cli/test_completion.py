"""Completion: the scripts, run by the shells themselves where they are installed."""

import shutil
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mtunnel_tx.cli.completion import make_script
from mtunnel_tx.cli.main import COMMANDS, SHELLS, all_places
from tests.cli.test_main import run
from tests.processes import run_program

BASH = """
compopt() { :; }
source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mtunnel; printf "%s\\n" "${COMPREPLY[@]}"
"""
FISH = 'source $argv[1]; complete -C "$argv[2]"'
ZSH = """
compdef() { : }
_describe() { print -rl -- ${(P)@[-1]} }
_files() { print -r -- FILES }
compadd() { shift; print -rl -- "$@" }
source "$1"; shift; words=("$@"); CURRENT=$#; _mtunnel
"""


class Places(SynchronousTestCase):
    def test_every_command_is_a_place(self):
        places = {place.path: place for place in all_places()}
        self.assertEqual(list(places[""].commands), list(COMMANDS))
        for path in ("history", "vm create", "token add", "acl list"):
            self.assertIn("--json", {name for option in places[path].options for name in option.names}, path)

    def test_it_is_printed(self):
        for shell in SHELLS:
            status, out, err = run("--completion", shell)
            self.assertEqual((status, out, err), (0, make_script(shell, all_places()), ""))
        self.assertEqual(run("--completion", "csh")[0], 2)


class ShellCase:
    """What every shell has to do."""

    def setUp(self):
        if shutil.which(self.shell) is None:
            raise SkipTest(f"{self.shell} is not installed: ITS COMPLETION IS NOT TESTED")
        self.script = Path(self.mktemp()).absolute()
        self.script.write_text(make_script(self.shell, all_places()))

    complete: Callable[..., set[str]]
    """Returns: what the shell offers for the last word, which is not finished."""

    def program(self, *argv):
        folder = self.script.parent
        done = run_program([self.shell, *argv], capture_output=True, text=True, check=False, cwd=folder)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout.splitlines()

    def test_commands(self):
        self.assertEqual(self.complete("hist"), {"history"})
        self.assertEqual(self.complete("token", ""), {"add", "list", "remove"})

    def test_options(self):
        self.assertEqual(self.complete("history", "--s"), {"--since"})
        self.assertEqual(self.complete("migrate", "100", "--online", "--strict"), {"--strict-space"})
        self.assertIn("--json", self.complete("vm", "create", "--js"))

    def test_choices(self):
        self.assertEqual(self.complete("migrate", "--on-timeout", ""), {"abort", "pause", "postcopy"})
        self.assertEqual(self.complete("vm", "autostart", "100", "o"), {"on", "off"})

    def test_an_option_before_the_command(self):
        """Its value is no command, whatever it is called."""
        self.assertEqual(self.complete("--config", "token", "vm", "autos"), {"autostart"})
        self.assertEqual(self.complete("vm", "--config", "disk", "snapshot", "--js"), {"--json"})

    def test_files_only_where_one_is_taken(self):
        self.assertTrue(self.offers_files("vm", "import", ""))
        self.assertTrue(self.offers_files("--config", ""))
        self.assertTrue(self.offers_files("migrate", "100", "--endpoint-file", ""))
        self.assertFalse(self.offers_files("vm", "start", ""))
        self.assertFalse(self.offers_files("history", ""))

    def offers_files(self, *words):
        """Whether a file of the folder is offered; bash and fish look into it themselves."""
        return self.script.name in self.complete(*words)


class BashTests(ShellCase, SynchronousTestCase):
    shell = "bash"

    def complete(self, *words):
        return set(self.program("--norc", "-c", BASH, "x", str(self.script), "mtunnel", *words))


class FishTests(ShellCase, SynchronousTestCase):
    shell = "fish"

    def complete(self, *words):
        line = " ".join(("mtunnel", *words))
        return {text.partition("\t")[0] for text in self.program("--no-config", "-c", FISH, str(self.script), line)}


class ZshTests(ShellCase, SynchronousTestCase):
    shell = "zsh"

    def complete(self, *words):
        """It offers all, and takes those that begin with the word itself."""
        lines = self.program("-f", "-c", ZSH, "x", str(self.script), "mtunnel", *words)
        return {name for line in lines if (name := line.partition(":")[0]).startswith(words[-1])}

    def offers_files(self, *words):
        return "FILES" in self.complete(*words)
