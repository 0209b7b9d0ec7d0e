from uuid import UUID

from twisted.internet.task import Clock

from mtunnel_tx.backends.access import FileAccess, token_file, user_file
from mtunnel_tx.errors import Unauthenticated
from tests.cli.test_acl import USERS, CliTest


class TokenTest(CliTest):
    def add(self, *argv):
        code, out, err = self.run_cli("token", "add", *argv)
        self.assertEqual(code, 0, err)
        return out.removesuffix("\n")

    def access(self, now=1000):
        clock = Clock()
        clock.advance(now)
        return FileAccess(self.pve, clock.seconds)

    def rights(self, line):
        access = self.access()
        return access.rights(access.authenticate(line))


class AddTest(TokenTest):
    def test_from_nothing(self):
        line = self.add("mig@pve!t1", "--role", "Administrator", "--path", "/", "--comment", " the: one ")
        head, _, secret = line.rpartition("=")
        self.assertEqual(head, "PVEAPIToken=mig@pve!t1")
        self.assertEqual(UUID(secret).version, 4)
        self.assertEqual(token_file(self.pve).read_text(), f"mig@pve!t1 {secret}\n")
        self.assertEqual(
            user_file(self.pve).read_text(),
            "user:mig@pve:1:0::::::\ntoken:mig@pve!t1:0:0:the%3A one:\nuser:root@pam:1:0::::::\n\n\n\n\n"
            "acl:1:/:mig@pve:Administrator:\n",
        )
        self.assertTrue(self.rights(line).has("/", "Sys.Incoming"))

    def test_the_secret_is_shown_once(self):
        secret = self.add("mig@pve!t1").rpartition("=")[2]
        self.assertNotIn(secret, "".join(map(str, self.run_cli("token", "list"))))
        self.assertNotIn(secret, user_file(self.pve).read_text())
        self.assertEqual(token_file(self.pve).stat().st_mode & 0o777, 0o600)

    def test_with_separation_both_get_the_role(self):
        line = self.add("mig@pve!t1", "--privsep", "--role", "PVEVMUser", "--path", "/vms")
        self.assertEqual(self.entries(), ["acl:1:/vms:mig@pve,mig@pve!t1:PVEVMUser:"])
        self.assertTrue(self.rights(line).has("/vms/100", "VM.Audit"))
        self.assertFalse(self.rights(line).has("/", "VM.Audit"))

    def test_separated_token_has_no_more_than_its_role(self):
        self.add("mig@pve!all", "--role", "Administrator")
        line = self.add("mig@pve!few", "--privsep", "--role", "PVEVMUser")
        self.assertEqual(len(self.rights(line).privileges("/vms/100")), 10)

    def test_root(self):
        self.assertTrue(self.rights(self.add("root@pam!full", "--role", "PVEVMUser")).has("/", "Sys.Modify"))
        line = self.add("root@pam!few", "--privsep", "--role", "PVEVMUser")
        self.assertEqual(self.entries(), ["acl:1:/:root@pam!few:PVEVMUser:"])
        self.assertFalse(self.rights(line).has("/", "Sys.Modify"))

    def test_without_a_role(self):
        self.fill()
        line = self.add("mig@pve!t2", "--no-privsep")
        self.assertEqual(self.entries(), [])
        self.assertEqual(self.rights(line).privileges("/"), frozenset())

    def test_expiry(self):
        line = self.add("mig@pve!t1", "--expire", "1000")
        self.assertEqual(self.access(1000).authenticate(line), "mig@pve!t1")
        self.assertRaises(Unauthenticated, self.access(1001).authenticate, line)

    def test_refusals_change_nothing(self):
        self.fill()
        for argv, words in (
            (["mig@pve!t1"], "exists already"),
            (["new@pve!t1", "--role", "Nope"], "does not exist"),
        ):
            code, out, err = self.run_cli("token", "add", *argv)
            self.assertEqual((code, out), (1, ""))
            self.assertIn(words, err)
        self.assertEqual(user_file(self.pve).read_text(), USERS)
        self.assertFalse(token_file(self.pve).exists())

    def test_malformed(self):
        for argv in (
            ["mig@pve"],
            ["@g1"],
            ["a;b@pve!t1"],
            ["mig@pve!t1", "--expire", "soon"],
            ["mig@pve!t1", "--expire", "-1"],
        ):
            self.assertEqual(self.run_cli("token", "add", *argv)[0], 2)

    def test_help_says_what_privsep_does(self):
        code, out, _ = self.run_cli("token", "add", "--help")
        self.assertEqual(code, 0)
        self.assertIn("--role is granted to both", out)

    def test_lines_that_would_be_lost(self):
        self.fill(USERS + "what\n")
        code, out, err = self.run_cli("token", "add", "mig@pve!t2")
        self.assertEqual((code, out), (1, ""))
        self.assertIn("line 8", err)


class ListAndRemoveTest(TokenTest):
    def test_list(self):
        self.add("mig@pve!t1", "--expire", "1700000000", "--comment", "a\x1bb")
        self.add("a@pve!t1", "--privsep")
        expected = (
            "TOKEN       EXPIRES     PRIVSEP  COMMENT\n"
            "a@pve!t1    never       yes\n"
            "mig@pve!t1  1700000000  no       a?b\n"
        )
        self.assertEqual(self.run_cli("token", "list"), (0, expected, ""))

    def test_remove(self):
        line = self.add("mig@pve!t1", "--privsep", "--role", "Administrator")
        self.add("mig@pve!t2")
        self.assertEqual(self.run_cli("token", "remove", "mig@pve!t1"), (0, "", ""))
        self.assertRaises(Unauthenticated, self.access().authenticate, line)
        self.assertEqual(self.entries(), ["acl:1:/:mig@pve:Administrator:"])
        self.assertEqual(len(token_file(self.pve).read_text().splitlines()), 1)
        self.assertEqual(self.run_cli("token", "remove", "mig@pve!t1")[0], 1)


class ProxmoxTest(CliTest):
    def test_points_to_pveum(self):
        settings = self.load("proxmox")
        code, out, _ = self.run_cli(
            "token",
            "add",
            "mig@pve!t1",
            "--privsep",
            "--role",
            "R",
            "--expire",
            "5",
            "--comment",
            "a b",
            settings=settings,
        )
        self.assertEqual(code, 1)
        self.assertEqual(
            out.splitlines(),
            [
                "pveum user add mig@pve",
                "pveum user token add mig@pve t1 --privsep 1 --expire 5 --comment 'a b'",
                "pveum acl modify / --users mig@pve --roles R",
                "pveum acl modify / --tokens 'mig@pve!t1' --roles R",
            ],
        )
        for argv, command in (
            (["remove", "mig@pve!t1"], "pveum user token remove mig@pve t1\n"),
            (["list"], "pveum user token list USER@REALM\n"),
        ):
            self.assertEqual(self.run_cli("token", *argv, settings=settings)[:2], (1, command))
        self.assertFalse(self.pve.exists())
