"""What `mtunnel migrate` takes on its command line."""

import io
from contextlib import redirect_stderr
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.cli.main import make_parser
from mtunnel_tx.cli.migrate import find_endpoint, make_order, run
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

    def test_json_is_for_a_dry_run(self):
        said = io.StringIO()
        with redirect_stderr(said):
            status = run(parse("100", ENDPOINT, "--target-storage", "tank", "--json"), None)
        self.assertEqual((status, said.getvalue()), (2, "mtunnel migrate: --json needs --dry-run\n"))

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
