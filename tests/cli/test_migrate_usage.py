"""What `mtunnel migrate` takes on its command line."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.cli.main import make_parser
from mtunnel_tx.cli.migrate import find_endpoint, make_order, run
from mtunnel_tx.cli.settle import whom_to_ask
from mtunnel_tx.cli.sourcehost import is_running
from mtunnel_tx.errors import BadRequest

ENDPOINT = "apitoken=PVEAPIToken=a@pve!b=secret,host=localhost"


def parse(*words):
    return make_parser("migrate").parse_args(["migrate", *words])


class UsageTest(SynchronousTestCase):
    def assert_wrong(self, *words):
        said = io.StringIO()
        with redirect_stderr(said):
            error = self.assertRaises(SystemExit, parse, *words)
        self.assertEqual(error.code, 2)
        return said.getvalue()

    def test_what_is_wrong(self):
        storage = ("--target-storage", "tank")
        self.assertIn("'99' is not a VMID", self.assert_wrong("99", ENDPOINT, *storage))
        self.assertIn("'x' is not a VMID", self.assert_wrong("100", ENDPOINT, *storage, "--target-vmid", "x"))
        self.assertIn("identity map", self.assert_wrong("100", ENDPOINT, "--target-storage", "1"))
        self.assertIn("identity map", self.assert_wrong("100", ENDPOINT, *storage, "--target-bridge", "1"))
        self.assertIn("KiB/s", self.assert_wrong("100", ENDPOINT, *storage, "--bwlimit", "-1"))

    def test_rates(self):
        limits = {"0": 0, "1024": 1024, "10M": 10240, "10m": 10240, "1.5G": 1572864, "64K": 64, "0.5K": 1}
        for text, limit_kib_s in limits.items():
            self.assertEqual(parse("100", "--bwlimit", text).bwlimit, limit_kib_s, text)
        for text in ("10X", "M", "1e3", "-1", "", "1.M"):
            self.assertIn("KiB/s", self.assert_wrong("100", ENDPOINT, f"--bwlimit={text}"))

    def test_storages_are_called_the_same_where_nothing_is_said(self):
        self.assertEqual(parse("100", ENDPOINT).target_storage.target("tank"), "tank")

    def test_keys_to_drop(self):
        args = parse("100", ENDPOINT, "--target-storage", "tank", "--drop", "args,hookscript, args")
        self.assertEqual(make_order(args).drop, ("args", "hookscript"))

    def test_endpoints(self):
        file = Path(self.mktemp())
        file.write_text(ENDPOINT + ",port=1\nmore\n")
        wanted = ("--target-storage", "tank", "100")
        self.assertEqual(find_endpoint(parse(*wanted, ENDPOINT), {}).port, 8006)
        self.assertEqual(find_endpoint(parse(*wanted, "--endpoint-file", str(file)), {}).port, 1)
        self.assertEqual(find_endpoint(parse(*wanted), {"MTUNNEL_ENDPOINT": ENDPOINT + ",port=2"}).port, 2)
        self.assertRaises(BadRequest, find_endpoint, parse(*wanted), {})
        self.assertRaises(BadRequest, find_endpoint, parse(*wanted, ENDPOINT, "--endpoint-file", str(file)), {})
        self.assertRaises(BadRequest, find_endpoint, parse(*wanted, "--endpoint-file", str(file) + "x"), {})

    def test_an_endpoint_behind_an_option(self):
        """Where a newcomer writes it."""
        for words in (
            ("--online", ENDPOINT),
            ("--drop", "args", "--online", ENDPOINT, "--json"),
            (ENDPOINT, "--online"),
        ):
            self.assertEqual(find_endpoint(parse("100", *words), {}).host, "localhost", words)
        args = make_parser("settle").parse_args(["settle", "100", "--json", ENDPOINT])
        self.assertEqual((args.endpoint, args.json), (ENDPOINT, True))
        args = make_parser("watch").parse_args(["watch", "--json", "100"])
        self.assertEqual(args.vmid, 100)
        args = make_parser("vm").parse_args(["vm", "set", "100", "a=1", "--delete", "c", "b=2"])
        self.assertEqual(args.assignments, ["a=1", "b=2"])

    def test_an_old_endpoint_in_the_environment_decides_nothing(self):
        environ = {"MTUNNEL_ENDPOINT": "host=gone"}
        asks = make_parser("settle").parse_args(["settle", "100"])
        self.assertRaises(BadRequest, whom_to_ask, asks, environ)
        for choice in ("--here", "--there"):
            decides = make_parser("settle").parse_args(["settle", "100", choice])
            self.assertIsNone(whom_to_ask(decides, environ))

    def test_what_is_one_too_many(self):
        self.assertIn("unrecognized arguments: more", self.assert_wrong("100", ENDPOINT, "--online", "more"))
        self.assertIn("unrecognized arguments: more", self.assert_wrong("100", "--online", ENDPOINT, "more"))
        self.assertNotIn("secret", self.assert_wrong("100", "more", "--online", ENDPOINT))

    def test_a_bad_endpoint_as_json(self):
        said = io.StringIO()
        with redirect_stdout(said):
            status = run(parse("100", "bogus", "--json"), None)
        self.assertEqual((status, json.loads(said.getvalue())["success"]), (2, False))

    def test_a_bad_endpoint_is_named(self):
        file = Path(self.mktemp())
        file.write_text("host=h\n")
        for words, environ, place in (
            (("bogus",), {}, "ENDPOINT: is no endpoint: "),
            ((), {"MTUNNEL_ENDPOINT": "bogus"}, "$MTUNNEL_ENDPOINT: is no endpoint: "),
            (("--endpoint-file", str(file)), {}, f"{file}: "),
            (("apitoken=a,host=h,port=x",), {}, "ENDPOINT: "),
        ):
            error = self.assertRaises(BadRequest, find_endpoint, parse("100", *words), environ)
            self.assertTrue(error.text.startswith(place), error.text)
            self.assertTrue(error.text.endswith(" ('mtunnel endpoint' at the target prints it)"), error.text)
            self.assertNotIn("\n", error.text)
            self.assertNotIn("format error", error.text)

    def test_a_bad_endpoint_keeps_its_secret(self):
        said = io.StringIO()
        with redirect_stderr(said):
            status = run(parse("100", ENDPOINT + ",port=secret", "--target-storage", "tank"), None)
        self.assertEqual(status, 2)
        self.assertIn("port", said.getvalue())

    def test_a_monitor_that_listens_is_a_running_vm(self):
        folder = Path(self.mktemp())
        folder.mkdir()
        self.assertFalse(is_running(folder, 100))
        (folder / "100.qmp").write_text("")
        self.assertFalse(is_running(folder, 100))
