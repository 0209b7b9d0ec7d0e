"""Failed logins: the count, its bounds, and the one line, against our filter for fail2ban."""

import io
import re
import shutil
from pathlib import Path
from tempfile import NamedTemporaryFile
from unittest import SkipTest

from twisted.logger import capturedLogs, textFileLogObserver
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.http.logins import FORGET_S, LINES_IN_ALL, LINES_OF_ADDRESS, MOST_ADDRESSES, WINDOW_S, Logins
from tests.http.apicase import SECRET, ApiCase
from tests.processes import run_program

FILTER = Path(__file__).parents[2] / "etc" / "fail2ban" / "filter.conf"
ADDRESS = r"(?P<address>[0-9a-f.:%a-z]+)"
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}")


def failregex():
    """The expression of our filter, for Python: `<ADDR>` is fail2ban's word for an address."""
    found = re.search(r"^failregex = (.+)$", FILTER.read_text("utf-8"), re.M)
    assert found, "etc/fail2ban/filter.conf has no failregex"
    return found[1]


def log_text(events):
    """What the daemon's log file has, in twistd's own format."""
    file = io.StringIO()
    observe = textFileLogObserver(file)
    for event in events:
        observe(event)
    return file.getvalue()


class LoginsTests(SynchronousTestCase):
    def setUp(self):
        self.now = 0.0
        self.logins = Logins(lambda: self.now)

    def test_counts_by_address(self):
        for address in ("192.0.2.1", "192.0.2.1", "2001:db8::1"):
            self.logins.fail(address)
        self.assertEqual([self.logins.count(a) for a in ("192.0.2.1", "2001:db8::1", "192.0.2.2")], [2, 1, 0])

    def test_forgets(self):
        self.logins.fail("192.0.2.1")
        self.now = FORGET_S - 1
        self.logins.fail("192.0.2.1")
        self.now = 2 * FORGET_S - 2
        self.assertEqual(self.logins.count("192.0.2.1"), 2)
        self.now += 1
        self.assertEqual(self.logins.count("192.0.2.1"), 0)

    def fail(self, count, address="192.0.2.1"):
        """Returns: the counts that lines tell of."""
        with capturedLogs() as events:
            for _ in range(count):
                self.logins.fail(address)
        return [event["count"] for event in events]

    def test_who_does_not_wait_fills_no_log(self):
        self.assertEqual(self.fail(1000), list(range(1, LINES_OF_ADDRESS + 1)))
        self.assertEqual(self.fail(1, "192.0.2.2"), [1])
        self.now = WINDOW_S
        self.assertEqual(self.fail(2), [1000 - LINES_OF_ADDRESS, 1001, 1002])

    def test_nor_does_who_has_many_addresses(self):
        lines = [self.fail(1, f"2001:db8::{number:x}") for number in range(2 * LINES_IN_ALL)]
        self.assertEqual(sum(map(len, lines)), LINES_IN_ALL)

    def test_bounded(self):
        for number in range(MOST_ADDRESSES + 1):
            self.logins.fail(f"2001:db8::{number:x}")
        self.assertEqual((self.logins.count("2001:db8::0"), self.logins.count("2001:db8::1")), (0, 1))


class LineTests(ApiCase):
    """The line that the API really logs."""

    def lines(self, *authorizations):
        with capturedLogs() as events:
            for authorization in authorizations:
                wire = self.wire()
                wire.write(self.raw("GET", "/api2/json/version", token=None, headers=authorization))
        return log_text(events)

    def bad(self, secret="wrong-secret-1234"):
        return [f"Authorization: PVEAPIToken=mig@pve!t1={secret}"]

    def test_the_expression_finds_the_line(self):
        text = self.lines(self.bad(), self.bad())
        found = [re.match(failregex().replace("<ADDR>", ADDRESS), DATE.sub("", line)) for line in text.splitlines()]
        self.assertEqual([match and match["address"] for match in found], ["192.168.1.1"] * 2)
        self.assertIn("number 2", text)

    def test_the_expression_finds_it_in_the_journal(self):
        """There fail2ban puts host, name and pid in front, and takes no date out of the message."""
        expression = failregex().replace("<ADDR>", ADDRESS)
        line = "host1 mtunnel[4711]: 2026-01-02T03:04:05+0000 " + self.lines(self.bad()).partition(" ")[2]
        self.assertEqual(re.match(expression, line.rstrip("\n"))["address"], "192.168.1.1")

    def test_no_secret(self):
        text = self.lines(self.bad(), self.bad(SECRET[:-1]), ["Authorization: Basic bWU6c2VjcmV0"])
        self.assertEqual(text.count("failed login"), 3)
        for secret in ("wrong", SECRET[:8], "mig@pve", "Basic", "bWU6"):
            self.assertNotIn(secret, text)

    def test_who_shows_nothing_has_tried_nothing(self):
        self.assertNotIn("failed login", self.lines([]))

    def test_nor_does_a_good_token_fail(self):
        self.assertNotIn("failed login", self.lines([f"Authorization: PVEAPIToken=mig@pve!t1={SECRET}"]))

    def test_other_lines_are_not_found(self):
        """Text of a peer may look like the line, but never from the start."""
        expression = failregex().replace("<ADDR>", ADDRESS)
        forged = " [mtunnel_tx.tunnel.audit#info] x [mtunnel_tx.logins#warn] failed login from 192.0.2.9, number 1"
        self.assertIsNone(re.match(expression, forged))

    def test_fail2ban_itself(self):
        program = shutil.which("fail2ban-regex")
        if program is None:
            raise SkipTest("fail2ban-regex is not installed (Debian: fail2ban)")
        with NamedTemporaryFile("w", suffix=".log") as file:
            file.write(self.lines(self.bad(), self.bad()))
            file.flush()
            done = run_program(
                [program, "--out", "ip", file.name, FILTER],
                capture_output=True,
                text=True,
                check=False,
            )
        self.assertEqual(done.stdout.split(), ["192.168.1.1"] * 2, done.stderr)
