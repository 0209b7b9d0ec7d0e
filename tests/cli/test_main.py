"""The `mtunnel` command itself: where --config may stand, how errors end."""

import argparse
import contextlib
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx import tap
from mtunnel_tx.cli import main as main_module
from mtunnel_tx.cli.loudness import ASKED, LOUDNESS
from mtunnel_tx.cli.main import COMMANDS, find_command, main, make_parser, parse
from tests.processes import run_program
from tests.test_config import shut


def run(*argv):
    """Run `mtunnel ARGV` in this process. Returns: status, output, errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(word) for word in argv])
        except SystemExit as error:
            status = error.code
    return status, out.getvalue(), err.getvalue()


def leaves(parser, *names):
    """Yields: the parsers of a command, or of its actions where it has any."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name in names or action.choices:
                yield from leaves(action.choices[name])
            return
    yield parser


def every_parser(parser, *names):
    """Yields: the parser, and all below it; of its own commands only those that are named."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name in names or action.choices:
                yield from every_parser(action.choices[name])


class Case(SynchronousTestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.config = self.folder / "mtunnel.toml"
        self.write()

    def write(self, more=""):
        self.config.write_text(
            f'node = "here"\nstate_dir = "{self.folder}/state"\nruntime_dir = "{self.folder}/run"\n{more}'
        )


class Frame(Case):
    def test_ctrl_c_while_a_command_is_imported(self):
        def interrupted(_name):
            raise KeyboardInterrupt

        self.patch(main_module, "import_module", interrupted)
        self.patch(sys, "argv", ["mtunnel", "status"])
        self.addCleanup(gc.enable)
        self.assertEqual(main_module.program(), 130)

    def test_config_before_and_after_the_command(self):
        words = ["--config", self.config], ["endpoint"]
        expected = (1, "", "mtunnel endpoint: there is no token yet: see 'mtunnel token add --help'\n")
        self.assertEqual(run(*words[0], *words[1]), expected)
        self.assertEqual(run(*words[1], *words[0]), expected)
        self.assertEqual(run(f"--config={self.config}", "endpoint"), expected)

    def test_config_behind_a_command_of_a_command(self):
        status, out, _ = run("token", "list", "--config", self.config)
        self.assertEqual((status, out), (0, "TOKEN  EXPIRES  PRIVSEP  COMMENT\n"))

    def test_config_from_the_environment(self):
        self.patch(os, "environ", {**os.environ, "MTUNNEL_CONFIG": str(self.config)})
        self.assertEqual(run("endpoint")[0], 1)
        self.assertEqual(run("token", "list")[0], 0)

    def test_a_bad_file(self):
        self.write("limits.stall_s = 0")
        text = f"mtunnel token: {self.config}: limits.stall_s: must be a number from 0.1 to 86400\n"
        self.assertEqual(run("token", "list", "--config", self.config), (1, "", text))

    def test_a_file_without_an_end(self):
        text = "mtunnel token: /dev/zero: is longer than 1048576 bytes, so it is no configuration\n"
        self.assertEqual(run("token", "list", "--config", "/dev/zero"), (1, "", text))

    def test_a_directory_that_may_not_be_searched(self):
        shut(self, self.folder / "state")
        text = f"mtunnel init: {self.folder}/state/pve: cannot be read: Permission denied\n"
        self.assertEqual(run("init", "--config", self.config)[::2], (1, text))

    def test_an_error_that_nobody_expected(self):
        def load(*_):
            raise PermissionError(13, "Permission denied", "/f")

        self.patch(main_module, "load_settings", load)
        self.assertEqual(run("endpoint"), (1, "", "mtunnel endpoint: /f: Permission denied\n"))
        self.patch(tap, "load_settings", load)
        self.assertEqual(str(self.assertRaises(UsageError, tap.Options().postOptions)), "/f: Permission denied")

    def test_no_command(self):
        status, _, err = run()
        self.assertEqual(status, 2)
        self.assertIn("COMMAND", err)

    def test_unknown_command(self):
        status, _, err = run("teleport")
        self.assertEqual(status, 2)
        self.assertIn("invalid choice: 'teleport'", err)

    def test_no_spelling_of_an_endpoint_shows_its_secret(self):
        for text in (
            "apitoken=PVEAPIToken=mig@pve!t1=SECRET,host=h",
            "apitoken=PVEAPIToken mig@pve!t1=SECRET,host=h",
            "apitoken=PVEAPIToken%20mig%40pve%21t1%3DSECRET,host=h",
            "apitoken=mig@pve SECRET,host=h",
            "APITOKEN=SECRET,host=h",
            "PVEAPIToken=SECRET,host=h",
            "PVEAPIToken%3DSECRET,host=h",
            "mig@pve!t1=SECRET,host=h",
            "mig%40pve%21t1%3DSECRET,host=h",
        ):
            for words in (["migrate", text, "100"], ["endpoint", text], ["endpoint", *text.split()], [text]):
                status, out, err = run(*words)
                self.assertEqual((status, out), (2, ""))
                self.assertNotIn("SECRET", err)
                self.assertIn("…,host=h", err)

    def test_what_was_probably_meant(self):
        self.assertIn("; did you mean 'status'?\n", run("statsu")[2])
        status, _, err = run("history", "--sinse", "1d")
        self.assertEqual(status, 2)
        self.assertIn("unrecognized arguments: --sinse; did you mean '--since'?\n", err)
        self.assertIn("--bwlimt; did you mean '--bwlimit'?\n", run("migrate", "--bwlimt", "3")[2])
        self.assertNotIn("did you mean", run("teleport")[2])
        for word in ("delsnapshot", "remove-snapshot"):
            err = run("vm", word, "first", "s1")[2]
            self.assertIn("; a snapshot is removed by 'snapshot VMID NAME --remove'\n", err)
            self.assertNotIn("did you mean", err)
        self.assertIn("did you mean 'start'?", run("vm", "strat", "first")[2])
        for word in ("remove", "delete", "rm"):
            self.assertIn("did you mean 'destroy'?", run("vm", word, "first")[2])

    def test_usage_is_that_of_the_command(self):
        for words, usage in [
            (("history", "--x"), "usage: mtunnel history "),
            (("token", "list", "--x"), "usage: mtunnel token list "),
            (("token", "lits"), "usage: mtunnel token "),
            (("--x",), "usage: mtunnel "),
        ]:
            self.assertTrue(run(*words)[2].startswith(usage), words)
        self.assertIn("did you mean 'list'?", run("token", "lits")[2])

    def test_quiet(self):
        """What was asked for is printed, what was done is not; and what went wrong is."""
        listed = (0, "TOKEN  EXPIRES  PRIVSEP  COMMENT\n", "")
        self.assertEqual(run("token", "list", "--quiet", "--config", self.config), listed)
        status, out, err = run("init", "--yes", "--quiet", "--token", "mig@pve!t0", "--config", self.config)
        self.assertEqual((status, out.count("\n"), err), (0, 1, ""))
        self.assertTrue(out.startswith("apitoken="))
        self.assertEqual(run("token", "remove", "mig@pve!t0", "--quiet", "--config", self.config), (0, "", ""))
        status, out, err = run("token", "add", "mig@pve!t1", "--quiet", "--config", self.config)
        self.assertEqual((status, out.count("\n"), err), (0, 1, ""))
        self.assertEqual(run("token", "remove", "mig@pve!t1", "--quiet", "--config", self.config), (0, "", ""))
        status, out, err = run("--quiet", "endpoint", "--config", self.config)
        self.assertEqual((status, out), (1, ""))
        self.assertIn("there is no token yet", err)
        self.assertEqual(run("history", "--json", "--quiet", "--config", self.config), (0, "[]\n", ""))

    def test_loudness_everywhere(self):
        """Every parser takes both, with one help text; what --quiet leaves to whom names commands that there are."""
        known = set()
        for command in COMMANDS:
            for parser in every_parser(make_parser(command), command):
                for name, text in LOUDNESS.items():
                    self.assertEqual(parser._option_string_actions[f"--{name}"].help, text, parser.prog)
                known.add(parser.get_default("words"))
        self.assertEqual(ASKED - known, set())

    def test_loudness_of_a_command_line(self):
        """Before the command, and behind it."""
        for words in (
            ("--quiet", "--verbose", "drain"),
            ("drain", "--quiet", "--verbose"),
            ("--quiet", "drain", "--verbose"),
        ):
            args = parse(words)
            self.assertEqual((args.quiet, args.verbose, args.words), (True, True, "drain"), words)

    def test_verbose(self):
        """What is done, with the time, and nothing of the libraries; standard output is as ever."""
        argv = [sys.executable, "-m", "mtunnel_tx.cli", "status", "--verbose", "--config", str(self.config)]
        done = run_program(argv, capture_output=True, text=True, check=False)
        first, *others = done.stderr.splitlines()
        self.assertRegex(first, rf"^ +\d+\.\d{{3}} s  configuration: {self.config}$")
        self.assertRegex(done.stderr, r"\n +\d+\.\d{3} s  over after \d+\.\d{3} s\n")
        self.assertEqual((done.returncode, done.stdout, len(others)), (1, "", 2), done.stderr)

    def test_the_reason_is_the_systems(self):
        text = f"mtunnel drain: no daemon answers at '{self.folder}/run/control.sock': No such file or directory\n"
        argv = [sys.executable, "-m", "mtunnel_tx.cli", "drain", "--config", str(self.config)]
        done = run_program(argv, capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stderr), (1, text))

    def test_what_is_no_token(self):
        for text in ("bad", "mig@pve", "mig@pve!", "mig@pve!t,u", "@group"):
            status, _, err = run("token", "add", text)
            self.assertIn(f"'{text}' is not USER@REALM!TOKENID; TOKENID is a letter", err)
            self.assertEqual(status, 2)
        self.assertIn("'x' is not a VMID", run("history", "--vmid", "x")[2])

    def test_json_everywhere(self):
        """Every command that prints something answers as JSON; what speaks JSON lines anyway need not."""
        without = {"websocket-tunnel"}
        for command in sorted(set(COMMANDS) - without):
            for parser in leaves(make_parser(command), command):
                self.assertIn("--json", parser._option_string_actions, parser.prog)

    def test_json(self):
        self.assertEqual(run("init", "--config", self.config, "--yes", "--json")[0], 0)
        token = json.loads(run("token", "add", "mig@pve!t1", "--json", "--config", self.config)[1])
        self.assertEqual((token["success"], token["token"]), (True, "mig@pve!t1"))
        listed = json.loads(run("token", "list", "--json", "--config", self.config)[1])["tokens"]
        self.assertEqual(listed, [{"token": "mig@pve!t1", "expires_s": 0, "privsep": False, "comment": ""}])
        made = json.loads(run("endpoint", "--host", "h", "--port", "1", "--json", "--config", self.config)[1])
        self.assertEqual((made["host"], made["port"], token["secret"] in made["endpoint"]), ("h", 1, True))
        words = ("acl", "add", "mig@pve", "--role", "PVEAdmin", "--path", "/", "--json", "--config", self.config)
        self.assertEqual(json.loads(run(*words)[1]), {"success": True})
        entry = {"path": "/", "member": "mig@pve", "role": "PVEAdmin", "propagates": True}
        self.assertEqual(json.loads(run("acl", "list", "--json", "--config", self.config)[1])["entries"], [entry])
        self.assertIn("operations", json.loads(run("api", "--json")[1]))

    def test_json_of_a_failure(self):
        status, out, err = run("endpoint", "--json", "--config", self.config)
        self.assertEqual((status, err), (1, ""))
        self.assertEqual(json.loads(out)["success"], False)
        self.write('profile = "proxmox"')
        for words in (("token", "list"), ("acl", "list"), ("vm", "list")):
            status, out, err = run(*words, "--json", "--config", self.config)
            self.assertEqual((status, err, json.loads(out)["success"]), (1, "", False), words)
            self.assertIn("run instead:\n", json.loads(out)["msg"])
        self.write()
        self.patch(main_module, "load_settings", lambda *_: Path("/nowhere/x").read_bytes())
        status, out, err = run("endpoint", "--json")
        expected = {"success": False, "msg": "/nowhere/x: No such file or directory"}
        self.assertEqual((status, err, json.loads(out)), (1, "", expected))

    def test_json_of_another_failure(self):
        status, out, _ = run("token", "remove", "mig@pve!t9", "--json", "--config", self.config)
        self.assertEqual((status, json.loads(out)["success"]), (1, False))

    def test_nobody_reads(self):
        """A pipe whose reader has gone: no word of it, whether there is little to say or much."""
        for words in (["api", "--openapi"], ["token", "list"], ["history"]):
            reader, writer = os.pipe()
            os.close(reader)
            argv = [sys.executable, "-m", "mtunnel_tx.cli", *words, "--config", str(self.config)]
            done = run_program(argv, stdout=writer, stderr=subprocess.PIPE, check=False)
            os.close(writer)
            self.assertEqual((done.returncode, done.stderr), (1, b""), words)

    def test_nobody_reads_what_is_not_a_commands(self):
        """Completions, and what `vm` prints from within the reactor; a full disk is named."""
        for words in (["--completion", "bash"], ["vm", "list"], ["status", "--json"]):
            for path, said in ((None, b""), ("/dev/full", b": No space left on device\n")):
                with self.subTest(words=words, path=path):
                    self.assertEqual(self.shut_output(path, *words), (1, said))

    def shut_output(self, path, *words):
        """Returns: exit status, and standard error behind the name. Args: path: None: a pipe that nobody reads."""
        if path is None:
            reader, writer = os.pipe()
            os.close(reader)
        else:
            writer = os.open(path, os.O_WRONLY)
        argv = [sys.executable, "-m", "mtunnel_tx.cli", "--config", str(self.config), *words]
        done = run_program(argv, stdout=writer, stderr=subprocess.PIPE, check=False)
        os.close(writer)
        return done.returncode, done.stderr.removeprefix(b"mtunnel").removeprefix(b" vm").removeprefix(b" status")

    def test_a_locale_that_lacks_characters(self):
        environ = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "40"}
        for words in (["vm", "create", "--help"], ["acl", "add", "--help"]):
            argv = [sys.executable, "-m", "mtunnel_tx.cli", *words]
            done = run_program(argv, capture_output=True, check=False, env=environ)
            self.assertNotIn(b"Traceback", done.stderr, words)
            self.assertTrue((done.stdout + done.stderr).isascii(), words)
            self.assertIn(b"...", done.stdout, words)

    def test_watch_of_somebody_elses_daemon(self):
        """Who may not look does not say that nothing moves."""
        (self.folder / "run").mkdir()
        self.patch(os, "access", lambda path, _mode: path != self.folder / "run")
        text = f"mtunnel watch: {self.folder}/run: Permission denied\n"
        self.assertEqual(run("watch", "100", "--config", self.config), (1, "", text))

    def test_help_is_as_wide_as_the_terminal(self):
        self.patch(os, "environ", {**os.environ, "COLUMNS": "60"})
        for command in ("settle", "migrate"):
            text = run(command, "--help")[1].partition("\n\n")[2].partition("positional")[0]
            self.assertLess(max(map(len, text.splitlines())), 90, text)
            self.assertIn("\n\n", text.strip())

    def test_options_are_not_guessed(self):
        self.assertEqual(run("endpoint", "--conf", self.config)[0], 2)

    def test_version(self):
        status, out, _ = run("--version")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"^mtunnel-tx ")

    def test_names_keep_their_capitals(self):
        self.assertIn(
            "\nMake, import, run, change and remove the VMs of a host without Proxmox.\n", run("vm", "--help")[1]
        )

    def test_find_command(self):
        cases = {
            ("init",): "init",
            ("--config", "x", "init"): "init",
            ("--config=x", "init", "token"): "init",
            ("--help",): None,
            (): None,
            ("--config",): None,
        }
        for argv, command in cases.items():
            self.assertEqual(find_command(argv), command)


class Endpoint(Case):
    def setUp(self):
        super().setUp()
        self.assertEqual(run("init", "--config", self.config)[0], 0)

    def add(self, token):
        return run("token", "add", token, "--config", self.config)[1].strip().rpartition("=")[2]

    def endpoint(self, *args):
        return run("endpoint", "--config", self.config, *args)

    def test_the_only_token(self):
        secret = self.add("mig@pve!t1")
        status, out, err = self.endpoint("--host", "192.0.2.1")
        self.assertEqual((status, err), (0, ""))
        self.assertRegex(
            out,
            rf"^apitoken=PVEAPIToken=mig@pve!t1={secret},host=192\.0\.2\.1,port=8016,"
            r"fingerprint=[0-9A-F]{2}(:[0-9A-F]{2}){31}\n$",
        )

    def test_one_of_several_tokens(self):
        self.add("mig@pve!t1")
        secret = self.add("mig@pve!t2")
        text = "mtunnel endpoint: there are several tokens: choose one with --token: mig@pve!t1, mig@pve!t2\n"
        self.assertEqual(self.endpoint(), (1, "", text))
        self.assertIn(f"PVEAPIToken=mig@pve!t2={secret},", self.endpoint("--token", "mig@pve!t2", "--host", "h")[1])
        status, _, err = self.endpoint("--token", "mig@pve!t3")
        self.assertEqual(status, 1)
        self.assertIn("token 'mig@pve!t3' does not exist", err)

    def test_ports(self):
        self.add("mig@pve!t1")
        for listen, port in (
            ('"unix:/x", "tcp:9001"', 9001),
            ('"tcp6:port=9002:interface=x"', 9002),
            ('"tcp:interface=127.0.0.1:port=8999"', 8999),
            (r'"tcp6:interface=\\:\\::port=8999"', 8999),
            (r"'tcp6:8998:interface=\:\:1'", 8998),
        ):
            self.write(f"listen = [{listen}]")
            self.assertIn(f",port={port},", self.endpoint("--host", "h")[1])
        self.assertIn(",port=7,", self.endpoint("--host", "h", "--port", "7")[1])
        for listen in ("tcp:0", "unix:/x", "systemd:domain=INET6:name=mtunnel"):
            self.write(f'listen = ["{listen}"]')
            self.assertIn("name it with --port", self.endpoint("--host", "h")[2])

    def test_a_broken_certificate(self):
        self.add("mig@pve!t1")
        file = self.folder / "state" / "tls" / "certificate.pem"
        file.write_text("no")
        self.assertIn(f"{file}: is no certificate in PEM", self.endpoint()[2])
        file.unlink()
        self.assertIn(f"{file}: No such file", self.endpoint()[2])
