"""Everything that is wrong in a configuration file is told at once."""

from mtunnel_tx.config import ConfigError
from tests.test_config import Case

EVERYTHING = """
node = "a.b"
workers = -1
colour = "red"
tls = 5

[commands]
pvesm = 7
qmm = "qm"

[limits]
tunnels = 0
stall_s = "long"

[forward]
api = "http://x"

[forward.nodes.other]
host = "h"
port = 0
speed = 1

[forward.nodes."a b"]
host = "h"
fingerprint = "x"
"""


class EveryErrorTests(Case):
    def errors(self, text, host=None):
        error = self.assertRaises(ConfigError, self.load, text, host)
        start = f"{self.file}: "
        lines = error.text.split("\n")
        self.assertTrue(all(line.startswith(start) for line in lines), lines)
        return [line.removeprefix(start) for line in lines]

    def test_all_keys_at_once(self):
        found = {line.partition(": ")[0]: line.partition(": ")[2] for line in self.errors(EVERYTHING)}
        self.assertEqual(
            found,
            {
                "node": "must be a host name without dots",
                "workers": "must be a whole number from 0 to 256",
                "colour": "no such key",
                "tls": "must be a table",
                "commands.pvesm": "must be a program, or a list of a program and its first arguments",
                "commands.qmm": "no such key",
                "limits.tunnels": "must be a whole number from 1 to 4096",
                "limits.stall_s": "must be a number from 0.1 to 86400",
                "forward.api": "must be https://HOST:PORT",
                "forward.nodes.other.port": "must be a whole number from 1 to 65535",
                "forward.nodes.other.fingerprint": "must be given",
                "forward.nodes.other.speed": "no such key",
                "forward.nodes.a b": "must be a host name without dots",
                "forward.nodes.a b.fingerprint": "must be a SHA-256 fingerprint, AA:BB:…",
            },
        )

    def test_what_depends_on_a_wrong_value_is_judged_too(self):
        long = "/" + "x" * 100
        found = self.errors(f'profile = "cluster"\nruntime_dir = "{long}"\nmachine_dir = "{long}"')
        self.assertEqual([line.partition(":")[0] for line in found], ["profile", "runtime_dir", "machine_dir"])

    def test_one_line_each_and_one_error_alone_is_one_line(self):
        self.assertEqual(self.errors("workers = -1"), ["workers: must be a whole number from 0 to 256"])

    def test_tables_that_are_none(self):
        self.assertEqual(
            self.errors("forward = 1\nlimits = 2"), ["forward: must be a table", "limits: must be a table"]
        )
        self.assertEqual(self.errors("[forward]\nnodes = 1"), ["forward.nodes: must be a table"])

    def test_other_spellings(self):
        digits = "ab" * 32
        node = f'[forward.nodes.n2]\nhost = "[2001:db8::1]"\nfingerprint = "{digits}"'
        forward = self.load(f'[forward]\nfingerprint = "{digits}"\n{node}').forward
        self.assertEqual(forward.fingerprint, ":".join(["AB"] * 32))
        self.assertEqual(forward.nodes["n2"].host, "2001:db8::1")
        self.assertEqual(forward.nodes["n2"].fingerprint, forward.fingerprint)
