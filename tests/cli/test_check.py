"""`mtunnel check`: a host where all is well, and each thing that is not, by what it says to type."""

import datetime
import json
import os
import sys

from mtunnel_tx.config import load_settings
from mtunnel_tx.tls.certificate import make_certificate
from tests.cli.test_main import run
from tests.cli.vmcase import CONF, VmCase
from tests.processes import run_program

TOKEN = "mig@pve!t1"


class Check(VmCase):
    def setUp(self):
        super().setUp()
        (self.folder / "state").chmod(0o700)
        for folder in self.pve, self.guests, *self.guests.parents:
            if self.pve in (folder, *folder.parents):
                folder.chmod(0o700)
        self.assertEqual(run("init", "--config", self.config)[0], 0)
        self.assertEqual(run("token", "add", TOKEN, "--role", "Administrator", "--config", self.config)[0], 0)

    def check(self, *words):
        command = [sys.executable, "-m", "mtunnel_tx.cli", "--config", str(self.config), "check", *words]
        done = run_program(command, capture_output=True, text=True, check=False)
        self.assertEqual(done.stderr, "")
        return done.returncode, done.stdout

    def findings(self):
        """What is not well: subject to state and remedy; and the exit status."""
        status, out = self.check("--json")
        answer = json.loads(out)
        self.assertEqual(answer["success"], status == 0)
        self.assertEqual(list(answer["findings"][0]), ["subject", "state", "text", "remedy"])
        return status, {found["subject"]: found for found in answer["findings"] if found["state"] != "ok"}

    def test_all_is_well(self):
        self.add_ticker()
        status, found = self.findings()
        self.assertEqual(status, 0, found)
        self.assertLessEqual(set(found), {"kvm", "cpu models", "port 8016", "firewall", "workers"})
        status, out = self.check()
        self.assertEqual(status, 0)
        self.assertTrue(out.startswith("WHAT"))
        self.assertIn("token mig@pve!t1", out)

    def test_a_configuration_that_cannot_be_read(self):
        self.write("limits.stall_s = 0\n")
        status, out = self.check()
        self.assertEqual(status, 1)
        self.assertIn("limits.stall_s: must be a number from 0.1 to 86400", out)
        self.assertEqual(json.loads(self.check("--json")[1])["success"], False)

    def test_vms(self):
        self.add_ticker(100)
        self.add_ticker(101, CONF + "garbage here\n")
        self.add_ticker(102, CONF + "lock: migrate\n")
        self.add_ticker(103, CONF + "scsi1: disks:100/none.raw\n")
        self.add_ticker(104, CONF + "net0: virtio,bridge=nobridge\n")
        status, found = self.findings()
        self.assertEqual(status, 1)
        self.assertNotIn("VM 100", found)
        self.assertIn("is no setting: garbage here", found["VM 101"]["text"])
        self.assertEqual(found["VM 102"]["state"], "warning")
        self.assertIn("scsi1: there is no volume", found["VM 103"]["text"])
        self.assertEqual(found["bridge nobridge"]["remedy"], "ip link add nobridge type bridge")

    def test_what_is_left_behind(self):
        (self.folder / "state" / "changes").mkdir()
        record = {"version": 1, "vmid": 105, "action": "import", "pid": 1, "owner": "x", "snapshot": "", "claim": ""}
        (self.folder / "state" / "changes" / "105.json").write_text(json.dumps({**record, "volumes": [], "files": []}))
        self.assertEqual(self.findings()[1]["VM 105"]["remedy"], "mtunnel vm unlock 105")

    def test_places_and_access(self):
        (self.pve / "storage.cfg").write_text(
            "dir: gone\n\tpath /nowhere/at/all\n\tcontent iso\n\tmkdir 0\n\ndir: x y\n"
        )
        (self.pve / "priv" / "token.cfg").chmod(0o644)
        late = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=5000)
        files = make_certificate("here", late)
        tls = load_settings(self.config, {}).tls
        tls.certificate.write_bytes(files.certificate)
        tls.key.write_bytes(files.key)
        (self.folder / "state").chmod(0o777)
        status, found = self.findings()
        (self.folder / "state").chmod(0o700)
        self.assertEqual(status, 1)
        for subject in ("storage gone", "storage.cfg", "tokens", "certificate", "state_dir"):
            self.assertEqual(found[subject]["state"], "problem", subject)
            self.assertTrue(found[subject]["remedy"], subject)
        self.assertEqual(found["tokens"]["remedy"], f"chmod 600 {self.pve}/priv/token.cfg")

    def test_tokens_that_cannot_send(self):
        words = ["--config", self.config]
        run("token", "remove", TOKEN, *words)
        self.assertIn("mtunnel token add", self.findings()[1]["tokens"]["remedy"])
        run("token", "add", "a@pve!bb", *words)
        run("token", "add", "a@pve!old", "--expire", "1", *words)
        _, found = self.findings()
        self.assertIn("it lacks Sys.Incoming on /, VM.Allocate on /vms/100", found["token a@pve!bb"]["text"])
        self.assertEqual(found["token a@pve!old"]["text"], "it has expired")

    def test_nothing_is_changed(self):
        self.add_ticker()
        before = {file: (file.lstat().st_mtime_ns, file.lstat().st_mode) for file in self.folder.rglob("*")}
        self.check()
        after = {file: (file.lstat().st_mtime_ns, file.lstat().st_mode) for file in self.folder.rglob("*")}
        changed = {os.fspath(file.relative_to(self.folder)) for file in after if after[file] != before.get(file)}
        self.assertEqual({name for name in changed if not name.startswith("run")}, set())
