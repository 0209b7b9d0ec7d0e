import argparse
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.access import user_file
from mtunnel_tx.cli import acl, token
from mtunnel_tx.config import load_settings

USERS = """\
user:mig@pve:1:0::::::
token:mig@pve!t1:0:1::

group:g1:mig@pve::

role:Receiver:Sys.Incoming:

"""


class CliTest(SynchronousTestCase):
    """Runs the commands as `mtunnel` does, on a state directory of its own."""

    def setUp(self):
        self.base = Path(self.mktemp()).absolute()
        self.base.mkdir()
        self.pve = self.base / "state" / "pve"
        self.settings = self.load("standalone")

    def load(self, profile):
        file = self.base / f"{profile}.toml"
        file.write_text(
            f'profile = "{profile}"\nnode = "n1"\nstate_dir = "{self.base}/state"\nruntime_dir = "/run/mtunnel-test"\n'
        )
        return load_settings(file, {})

    def fill(self, text=USERS):
        self.pve.mkdir(parents=True)
        user_file(self.pve).write_text(text)

    def run_cli(self, *argv, settings=None):
        """Returns: exit code, standard output, standard error."""
        parser = argparse.ArgumentParser(prog="mtunnel")
        subparsers = parser.add_subparsers(required=True)
        for command in (token, acl):
            command.configure(subparsers)
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                args = parser.parse_args(argv)
            except SystemExit as stop:
                return stop.code, out.getvalue(), err.getvalue()
            return args.run(args, settings or self.settings), out.getvalue(), err.getvalue()

    def entries(self):
        return [line for line in user_file(self.pve).read_text().splitlines() if line.startswith("acl:")]


class AclTest(CliTest):
    def setUp(self):
        super().setUp()
        self.fill()

    def test_add_and_remove(self):
        for member in ("mig@pve", "mig@pve!t1", "@g1"):
            self.assertEqual(
                self.run_cli("acl", "add", member, "--role", "Receiver", "--path", "/vms//100/"), (0, "", "")
            )
        self.run_cli("acl", "add", "mig@pve", "--role", "PVEVMAdmin", "--path", "/", "--no-propagate")
        entries = ["acl:0:/:mig@pve:PVEVMAdmin:", "acl:1:/vms/100:@g1,mig@pve,mig@pve!t1:Receiver:"]
        self.assertEqual(self.entries(), entries)
        self.assertEqual(self.run_cli("acl", "remove", "@g1", "--role", "Receiver", "--path", "/vms/100"), (0, "", ""))
        self.assertEqual(self.run_cli("acl", "remove", "mig@pve", "--role", "PVEVMAdmin", "--path", "/"), (0, "", ""))
        self.assertEqual(self.entries(), ["acl:1:/vms/100:mig@pve,mig@pve!t1:Receiver:"])

    def test_the_rest_stays(self):
        self.run_cli("acl", "add", "@g1", "--role", "Receiver", "--path", "/")
        self.assertEqual(
            user_file(self.pve).read_text(),
            USERS.replace("\n\ngroup", "\nuser:root@pam:1:0::::::\n\ngroup").replace("::\n\nrole", "::\n\n\nrole")
            + "acl:1:/:@g1:Receiver:\n",
        )

    def test_refusals(self):
        for member, role, path, words in (
            ("mig@pve", "Nope", "/", "role 'Nope' does not exist"),
            ("who@pve", "Receiver", "/", "'who@pve' does not exist"),
            ("mig@pve!t2", "Receiver", "/", "'mig@pve!t2' does not exist"),
            ("@g2", "Receiver", "/", "'@g2' does not exist"),
            ("root@pam", "Receiver", "/", "may do everything"),
        ):
            code, out, err = self.run_cli("acl", "add", member, "--role", role, "--path", path)
            self.assertEqual((code, out), (1, ""))
            self.assertIn(words, err)
        self.assertEqual(self.entries(), [])
        self.assertEqual(self.run_cli("acl", "remove", "@g1", "--role", "Receiver", "--path", "/")[0], 1)

    def test_malformed(self):
        for member, path in (
            ("mig", "/"),
            ("a,b@pve", "/"),
            ("a\x7f@pve", "/"),
            ("mig@pve", "vms"),
            ("mig@pve", "/a b"),
        ):
            self.assertEqual(self.run_cli("acl", "add", member, "--role", "Receiver", "--path", path)[0], 2)

    def test_a_file_that_would_lose_lines_is_left_alone(self):
        user_file(self.pve).write_text(USERS + "# my note\n")
        code, _, err = self.run_cli("acl", "add", "@g1", "--role", "Receiver", "--path", "/")
        self.assertEqual(code, 1)
        self.assertIn("user.cfg: line 8: ", err)
        self.assertEqual(user_file(self.pve).read_text(), USERS + "# my note\n")

    def test_list(self):
        self.run_cli("acl", "add", "mig@pve!t1", "--role", "Receiver", "--path", "/vms")
        self.run_cli("acl", "add", "@g1", "--role", "Receiver", "--path", "/", "--no-propagate")
        self.assertEqual(
            self.run_cli("acl", "list"),
            (
                0,
                "PATH  MEMBER      ROLE      PROPAGATES\n"
                "/     @g1         Receiver  no\n"
                "/vms  mig@pve!t1  Receiver  yes\n",
                "",
            ),
        )

    def test_list_shows_what_it_skips(self):
        user_file(self.pve).write_text("rubbish\n")
        code, out, err = self.run_cli("acl", "list")
        self.assertEqual((code, out), (0, "PATH  MEMBER  ROLE  PROPAGATES\n"))
        self.assertIn("line 1", err)


class ProxmoxTest(CliTest):
    def test_points_to_pveum(self):
        settings = self.load("proxmox")
        entry = ["mig@pve!t1", "--role", "Receiver", "--path", "/vms"]
        for argv, command in (
            (["add", *entry], "pveum acl modify /vms --tokens 'mig@pve!t1' --roles Receiver"),
            (["add", "@g1", *entry[1:]], "pveum acl modify /vms --groups g1 --roles Receiver"),
            (
                ["add", "a@pve", *entry[1:], "--no-propagate"],
                "pveum acl modify /vms --users a@pve --roles Receiver --propagate 0",
            ),
            (["remove", *entry], "pveum acl delete /vms --tokens 'mig@pve!t1' --roles Receiver"),
            (["list"], "pveum acl list"),
        ):
            code, out, err = self.run_cli("acl", *argv, settings=settings)
            self.assertEqual((code, out), (1, command + "\n"))
            self.assertIn("run instead", err)
        self.assertFalse(self.pve.exists())
