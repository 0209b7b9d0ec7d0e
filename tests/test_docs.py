"""What the documents say is so: keys and defaults, options, files, links, and what has no effect yet."""

import argparse
import re
import xml.etree.ElementTree
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.cli.main import COMMANDS, make_parser
from mtunnel_tx.cli.manual import COMMON, outdated
from mtunnel_tx.config import KEYS
from mtunnel_tx.config.manual import example_file, manual_table, with_key_table
from mtunnel_tx.pvesm.main import COMMANDS as PVESM_COMMANDS
from mtunnel_tx.tap import Options
from tests.processes import run_program

TREE = Path(__file__).parents[1]
DOCS = sorted((TREE / "docs").glob("*.md"))
PAGES = [TREE / "README.md", TREE / "CONTRIBUTING.md", *DOCS]


def read(name):
    return (TREE / name).read_text("utf-8")


class Keys(SynchronousTestCase):
    def test_the_table_is_true(self):
        page = read("docs/operations.md")
        self.assertEqual(page, with_key_table(page))
        self.assertIn(f"\n{manual_table()}\n", page)

    def test_every_key_has_its_row(self):
        page = read("docs/operations.md")
        for key in KEYS:
            self.assertEqual(page.count(f"| `{key.name}` | {key.shown} | "), 1, key.name)

    def test_the_example_is_true(self):
        self.assertEqual(read("etc/mtunnel.toml"), example_file())

    def test_what_has_no_effect_yet_is_named(self):
        """A key that nobody reads would be a promise that nobody keeps."""
        note = re.search(r"Checked, but without effect in this version: (.*?)\.\n", read("docs/operations.md"), re.S)
        code = "".join(file.read_text() for file in (TREE / "mtunnel_tx").rglob("*.py") if "config" not in file.parts)
        idle = {key.name for key in KEYS if not re.search(self.use_of(key.name), code)}
        self.assertEqual(set(re.findall(r"`([\w.]+)`", note[1] if note else "")) - {"forward.nodes"}, idle)

    def use_of(self, name):
        table, _, field = name.rpartition(".")
        return rf"\b_?{table or 'settings'}\.{field}\b"


class Manual(SynchronousTestCase):
    def page(self, name):
        return read(f"man/{name}").replace("\\-", "-")

    def options(self, parser):
        """Yields: every option of a parser and of the parsers below it."""
        for action in parser._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for below in action.choices.values():
                    yield from self.options(below)

    def test_what_is_written_is_true(self):
        """`tools/write-manual` writes it."""
        self.assertEqual(sorted(outdated(TREE)), [])

    def test_every_option_has_its_place(self):
        for command in COMMANDS:
            parser = make_parser(command)
            below = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
            known = set(self.options(below.choices[command])) - {*COMMON}
            named = set(
                re.findall(r"(?<![\w-])--[a-z][a-z-]*", self.page(f"mtunnel-{command}.1").partition("SYNOPSIS")[2])
            )
            self.assertEqual(named - {*COMMON}, {name for name in known if name.startswith("--")}, command)

    def test_what_every_command_takes(self):
        page = self.page("mtunnel.1")
        for name in (*COMMON, "--version", "--completion", "--json"):
            self.assertIn(name, page)
        for command in COMMANDS:
            self.assertIn(f".BR mtunnel-{command} (1)\n", page)

    def test_the_daemon(self):
        named = set(re.findall(r"(?<![\w-])--[a-z]+", self.page("mtunnel.8")))
        known = {f"--{row[0]}" for row in [*Options.optParameters, *Options.optFlags]}
        self.assertEqual(named, known | {"--help", "--version"})

    def test_pvesm(self):
        page = self.page("mtunnel-pvesm.1")
        for name, command in PVESM_COMMANDS.items():
            part = re.search(rf'^\.BI? "?{name}\b(.*?)(?=^\.TP|^\.SH)', page, re.M | re.S)
            self.assertIsNotNone(part, name)
            named = set(re.findall(r"(?<=\[ )-([a-z-]+)", part[1]))
            self.assertEqual(named, {*command.syntax.values, *command.syntax.switches}, name)

    def test_pages_are_sound(self):
        for page in (TREE / "man").glob("*.?"):
            try:
                done = run_program(["man", "--warnings", "-l", page], capture_output=True, check=False)
            except FileNotFoundError:
                continue
            self.assertEqual(done.stderr, b"", page)


class Pages(SynchronousTestCase):
    def test_links_lead_somewhere(self):
        for page in PAGES:
            for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
                if not target.startswith(("http:", "https:")):
                    file, _, anchor = target.partition("#")
                    other = page.parent / file if file else page
                    self.assertTrue(other.exists(), f"{page.name}: {target}")
                    if anchor:
                        self.assertIn(anchor, self.anchors(other), f"{page.name}: {target}")

    def anchors(self, page):
        titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
        return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}

    def test_the_picture_is_a_picture(self):
        root = xml.etree.ElementTree.parse(TREE / "docs" / "path.svg").getroot()
        self.assertTrue(root.tag.endswith("}svg"))

    def test_exclamation_marks_are_quoted(self):
        """An interactive shell takes what follows for its history."""
        for page in PAGES:
            for command in re.findall(r"^ {4}(?:mtunnel|qm|pveum) .*", page.read_text(), re.M):
                self.assertNotIn("!", re.sub(r"'[^']*'", "", command.partition("  #")[0]), page)

    def test_goals_that_are_named_exist(self):
        goals = set(re.findall(r"^([a-z]+):", read("Makefile"), re.M))
        for page in PAGES:
            self.assertLessEqual(set(re.findall(r"(?<=`|\s)make ([a-z]+)(?=`|  )", page.read_text())), goals, page)

    def test_commands_that_are_named_exist(self):
        # The last two are lines of a task log.
        names = set(COMMANDS) | {"started", "exited"}
        for page in PAGES:
            for name in re.findall(r"(?:`|^ {4})mtunnel ([a-z-]+)", page.read_text(), re.M):
                self.assertIn(name, names, page)
