import stat
from pathlib import Path

from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.access import FileAccess, changed_access, read_users, token_file, user_file
from mtunnel_tx.errors import Unauthenticated, WrongState
from mtunnel_tx.pve.users import User

USERS = """\
user:mig@pve:1:0::::::
token:mig@pve!t1:0:0::
token:mig@pve!old:999:0::
token:mig@pve!soon:1001:0::
token:mig@pve!bare:0:0::
user:off@pve:0:0::::::
token:off@pve!t1:0:0::
user:gone@pve:1:999::::::
token:gone@pve!t1:0:0::
token:root@pam!t1:0:0::

acl:1:/:mig@pve:Administrator:
"""
SECRETS = """\
gone@pve!t1 s
ghost@pve!t1 s
mig@pve!old s
mig@pve!soon s
mig@pve!t1 a=b;ä
off@pve!t1 s
root@pam!t1 s
"""


class AccessTest(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp())
        (self.folder / "priv").mkdir(parents=True)
        self.clock = Clock()
        self.clock.advance(1000)
        self.access = FileAccess(self.folder, self.clock.seconds)

    def fill(self, users=USERS, secrets=SECRETS):
        user_file(self.folder).write_text(users)
        token_file(self.folder).write_text(secrets)

    def refusal(self, authorization):
        return self.assertRaises(Unauthenticated, self.access.authenticate, authorization).text


class AuthenticateTest(AccessTest):
    def setUp(self):
        super().setUp()
        self.fill()

    def test_spellings(self):
        for text in (
            "PVEAPIToken=mig@pve!soon=s",
            "PVEAPIToken mig@pve!soon=s",
            "Bearer PVEAPIToken=mig@pve!soon=s",
            "PVEAPIToken=mig@pve!soon=s;more=x",
            "PVEAPIToken=mig%40pve%21soon%3Ds",
        ):
            self.assertEqual(self.access.authenticate(text), "mig@pve!soon")

    def test_secret_is_unescaped_and_token_ends_at_the_last_sign(self):
        token_file(self.folder).write_text("mig@pve!t1 a;ä\n")
        self.assertEqual(self.access.authenticate("PVEAPIToken=mig@pve!t1=a%3b%C3%A4"), "mig@pve!t1")
        self.assertEqual(self.refusal("PVEAPIToken=mig@pve!t1=x=a%3b%C3%A4"), "Authentication failed!")

    def test_no_ticket(self):
        for text in (
            None, "", "Basic abc", "PVEAuthCookie=PVE:x", "PVEAPIToken", "PVEAPIToken=", "PVEAPIToken:mig@pve!soon=s",
            "XPVEAPIToken=mig@pve!soon=s", "pveapitoken=mig@pve!soon=s", "PVEAPIToken=;mig@pve!soon=s",
        ):  # fmt: skip
            self.assertEqual(self.refusal(text), "No ticket", text)

    def test_failed(self):
        for token in (
            "mig@pve!soon=x", "mig@pve!soon=", "mig@pve!soon", "mig@pve!soon=s ", "mig@pve=s", "nobody", "=", "==s",
            "ghost@pve!t1=s", "mig@pve!none=s", "mig@pve!old=s", "off@pve!t1=s", "gone@pve!t1=s", "mig@pve!soon=S",
            "mig@pve!bare=", "mig@pve!bare=00000000-0000-0000-0000-000000000000", "mig@pve!soon=\udcff", "\0",
        ):  # fmt: skip
            self.assertEqual(self.refusal(f"PVEAPIToken={token}"), "Authentication failed!", token)

    def test_time_passes(self):
        header = "PVEAPIToken=mig@pve!soon=s"
        self.clock.advance(1)
        self.access.authenticate(header)
        self.clock.advance(1)
        self.assertEqual(self.refusal(header), "Authentication failed!")
        self.assertRaises(Unauthenticated, self.access.rights, "mig@pve!soon")

    def test_files_change(self):
        header = "PVEAPIToken=mig@pve!soon=s"
        self.access.authenticate(header)
        self.fill(secrets=SECRETS.replace("soon s", "soon n"))
        self.assertEqual(self.refusal(header), "Authentication failed!")
        self.access.authenticate("PVEAPIToken=mig@pve!soon=n")
        self.fill(users=USERS.replace("mig@pve:1", "mig@pve:0"))
        self.assertEqual(self.refusal(header), "Authentication failed!")

    def test_roots_token(self):
        self.assertEqual(self.access.authenticate("PVEAPIToken=root@pam!t1=s"), "root@pam!t1")

    def test_rights(self):
        self.assertTrue(self.access.rights("mig@pve!t1").has("/", "Sys.Incoming"))
        for token in ("mig@pve!none", "off@pve!t1", "gone@pve!t1", "mig@pve!old", "mig@pve", "root@pam"):
            self.assertRaises(Unauthenticated, self.access.rights, token)


class MissingFilesTest(AccessTest):
    def test_nobody(self):
        self.assertEqual(self.refusal("PVEAPIToken=root@pam!t1=s"), "Authentication failed!")

    def test_files_that_cannot_be_read_let_nobody_in(self):
        for file in (token_file(self.folder), user_file(self.folder)):
            self.fill()
            file.unlink()
            file.mkdir()
            with capturedLogs() as events:
                for _ in range(3):
                    self.assertEqual(self.refusal("PVEAPIToken=root@pam!t1=s"), "Authentication failed!")
            reasons = [event["reason"] for event in events if event["log_level"] is LogLevel.error]
            self.assertEqual(reasons, [f"{file}: Is a directory"])
            file.rmdir()
            self.fill()
            self.assertEqual(self.access.authenticate("PVEAPIToken=root@pam!t1=s"), "root@pam!t1")


class ChangeTest(AccessTest):
    def test_modes(self):
        files = (token_file(self.folder), user_file(self.folder))
        for modes in ([0o600, 0o640], [0o640, 0o600]):
            with changed_access(self.folder):
                pass
            self.assertEqual([stat.S_IMODE(file.stat().st_mode) for file in files], modes)
            files[0].chmod(0o640)
            files[1].chmod(0o600)

    def test_from_nothing(self):
        folder = self.folder / "new"
        with changed_access(folder) as access:
            access.users.users["a@pve"] = User()
            access.secrets["a@pve!t1"] = "x"
        self.assertEqual(user_file(folder).read_text().splitlines()[0], "user:a@pve:1:0::::::")
        self.assertEqual(token_file(folder).read_text(), "a@pve!t1 x\n")
        modes = [file.stat().st_mode & 0o777 for file in (user_file(folder), token_file(folder), folder / "priv")]
        self.assertEqual(modes, [0o640, 0o600, 0o700])

    def test_lines_that_would_be_lost(self):
        for users, secrets, place in (
            (USERS + "secret line\n", SECRETS, "user.cfg: line 13"),
            (USERS, SECRETS + "s3cret\n", "token.cfg: line 8"),
        ):
            self.fill(users, secrets)
            with self.assertRaises(WrongState) as caught, changed_access(self.folder):
                self.fail("not reached")
            self.assertIn(place, caught.exception.text)
            self.assertNotIn("s3cret", caught.exception.text)
            self.assertEqual(user_file(self.folder).read_text(), users)

    def test_a_failed_change_writes_nothing(self):
        self.fill()
        before = [file.stat() for file in (user_file(self.folder), token_file(self.folder))]
        with self.assertRaises(WrongState), changed_access(self.folder) as access:
            access.users.users.clear()
            raise WrongState("no")
        self.assertEqual([file.stat() for file in (user_file(self.folder), token_file(self.folder))], before)

    def test_read_users(self):
        self.fill(USERS + "what\n")
        warnings = []
        self.assertIn("mig@pve", read_users(self.folder, warnings.append).users)
        self.assertEqual(len(warnings), 1)
