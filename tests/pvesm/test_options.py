"""Command lines as Proxmox's tools take them."""

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.checks import enum, pattern
from mtunnel_tx.pvesm import main
from mtunnel_tx.pvesm.options import Syntax, UsageError, parse_parameters

SYNTAX = Syntax(
    usage="USAGE",
    arguments=("volume", "file"),
    values=("snapshot", "snapshot-list", "format"),
    switches=("with-snapshots", "allow-rename"),
    checks={"format": enum("a", "b"), "snapshot": pattern("[a-z-]*")},
)


class HelpTests(SynchronousTestCase):
    def help(self, *words):
        said = []
        self.patch(main, "say", said.append)
        self.assertEqual(main._run(words), 0)
        return said[0]

    def test_every_option_of_every_command(self):
        everything = self.help("--help")
        for name, command in main.COMMANDS.items():
            own = self.help(name, "--help")
            self.assertEqual((self.help(name, "-h"), self.help("help", name)), (own, own))
            self.assertIn(own.removeprefix("USAGE: "), everything)
            for option in (*command.syntax.values, *command.syntax.switches):
                self.assertIn(f"\n    -{option} <", own)

    def test_what_one_command_says(self):
        text = "USAGE: pvesm list <storage> [OPTIONS]\n    -vmid <value>\n    -content <value>"
        self.assertEqual(self.help("list", "--help"), text)


class CommandTests(SynchronousTestCase):
    def test_cut_short(self):
        for given, whole in (
            ("imp", "import"),
            ("st", "status"),
            ("al", "alloc"),
            ("list", "list"),
            ("h", "help"),
            *((ambiguous, ambiguous) for ambiguous in ("a", "e", "s", "p", "nosuch", "")),
        ):
            self.assertEqual(main._whole_name(given), whole)

    def test_is_run(self):
        said = []
        self.patch(main, "say", said.append)
        self.assertEqual(main._run(["exp", "--help"]), 0)
        self.assertTrue(said[0].startswith("USAGE: pvesm export "))


class OptionTests(SynchronousTestCase):
    def read(self, line):
        return parse_parameters(SYNTAX, line.split())

    def refused(self, line, text):
        self.assertEqual(self.assertRaises(UsageError, self.read, line).text, f"{text}\nUSAGE")

    def test_any_position_and_spelling(self):
        for line in (
            "v - -format a -with-snapshots 1",
            "-format=a --with-snapshots=1 v -",
            "v --format a - --with-snapshots",
            "--with-snapshots --format=a v -",
            "--with-snapshots=yes v --form a -",
        ):
            with self.subTest(line=line):
                found = self.read(line)
                self.assertEqual((found["volume"], found["file"], found.get("format")), ("v", "-", "a"))
                self.assertTrue(found.switch("with-snapshots"))
                self.assertFalse(found.switch("allow-rename"))

    def test_switch_values(self):
        for word, wanted in (
            ("0", False),
            ("off", False),
            ("No", False),
            ("false", False),
            ("TRUE", True),
            ("on", True),
        ):
            self.assertIs(self.read(f"v f -allow-rename {word}").switch("allow-rename"), wanted)
        self.refused("v f -allow-rename maybe", "400 unable to parse boolean option")

    def test_a_value_may_look_like_an_option(self):
        self.assertEqual(self.read("v f -snapshot -x")["snapshot"], "-x")

    def test_end_of_options(self):
        self.assertEqual(self.read("-format a -- -v -f")["volume"], "-v")

    def test_the_last_one_counts(self):
        self.assertEqual(self.read("v f -format a -format b")["format"], "b")

    def test_in_any_case(self):
        self.assertEqual(self.read("v f -FORMAT a --Snapshot=b")["format"], "a")
        self.assertTrue(self.read("v f -With-Snap 1").switch("with-snapshots"))
        self.refused("v f -BOGUS", "Unknown option: bogus\n400 unable to parse option")

    def test_an_argument_given_as_an_option_too(self):
        self.assertEqual(self.read("v f -volume other --file=x")["volume"], "v")
        self.refused("v -file f", "400 not enough arguments")
        self.refused("v f -f x", "Option f is ambiguous (file, format)\n400 unable to parse option")

    def test_an_empty_value(self):
        self.refused("v f -format=", "Option format requires an argument\n400 unable to parse option")
        self.assertEqual(parse_parameters(SYNTAX, ["v", "f", "-snapshot", ""])["snapshot"], "")
        self.assertTrue(self.read("v f -allow-rename=").switch("allow-rename"))

    def test_booleans_are_read_last(self):
        self.refused("v -allow-rename maybe", "400 not enough arguments")
        self.refused("v f -allow-rename maybe -x", "Unknown option: x\n400 unable to parse option")

    def test_cut_short(self):
        self.assertEqual(self.read("v f -snapshot x")["snapshot"], "x")
        self.refused("v f -snap x", "Option snap is ambiguous (snapshot, snapshot-list)\n400 unable to parse option")

    def test_refusals(self):
        self.refused("v", "400 not enough arguments")
        self.refused("v f x", "400 too many arguments")
        self.refused("v f -bogus -evil=1", "Unknown option: bogus\nUnknown option: evil\n400 unable to parse option")
        self.refused("v f -format", "Option format requires an argument\n400 unable to parse option")
        self.refused(
            "v f -format c",
            "400 Parameter verification failed.\nformat: value 'c' does not have a value in the enumeration 'a, b'",
        )
        self.refused(
            "v f -snapshot A", "400 Parameter verification failed.\nsnapshot: value does not match the regex pattern"
        )
