"""`mtunnel init`: makes what is missing, says so, changes nothing that is there."""

import contextlib
import io
import os
import pty
import stat
import sys

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mtunnel_tx.backends.access import read_users
from mtunnel_tx.cli.answers import InitAnswers
from mtunnel_tx.cli.init import SERVICE, configured, find_place, how_to_start
from mtunnel_tx.config import load_settings
from mtunnel_tx.config.manual import example_file
from mtunnel_tx.pve.storagecfg import parse_storage_config
from tests.cli.test_main import Case, run
from tests.patience import wait_for
from tests.processes import started_process


class Init(Case):
    def init(self):
        return run("init", "--config", self.config)

    def snapshot(self):
        return {
            file: (file.stat().st_mtime_ns, file.stat().st_mode, file.is_file() and file.read_bytes())
            for file in self.folder.rglob("*")
        }

    def test_everything_is_made_and_named(self):
        status, out, err = self.init()
        self.assertEqual((status, err), (0, ""))
        state = self.folder / "state"
        named = {line.removeprefix("made ") for line in out.splitlines() if line.startswith("made ")}
        for path in (state, state / "pve/storage.cfg", state / "pve/user.cfg", state / "tls/key.pem"):
            self.assertIn(str(path), named)
        self.assertIn(f"mtunnel-twistd -n mtunnel --config {self.config}", out)

    def test_modes(self):
        self.init()
        state = self.folder / "state"
        for path in (state, self.folder / "run", state / "pve", state / "pve/priv", state / "tls"):
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o700, path)
        self.assertEqual(stat.S_IMODE((state / "tls/key.pem").stat().st_mode), 0o600)

    def test_what_was_made_can_be_used(self):
        self.init()
        settings = load_settings(self.config, {})
        storages = parse_storage_config((settings.pve_dir / "storage.cfg").read_text())
        self.assertEqual(storages["local"].content, frozenset({"images", "iso"}))
        self.assertEqual(storages["local"].path, str(settings.state_dir / "storage"))
        self.assertIn("root@pam", read_users(settings.pve_dir, self.fail).users)
        certificate = x509.load_pem_x509_certificate(settings.tls.certificate.read_bytes())
        key = load_pem_private_key(settings.tls.key.read_bytes(), None)
        self.assertEqual(certificate.public_key(), key.public_key())

    def test_twice(self):
        self.init()
        before = self.snapshot()
        said = f"state: {self.folder}/state\nready: mtunnel-twistd -n mtunnel --config {self.config}\n"
        self.assertEqual(self.init(), (0, said, ""))
        self.assertEqual(self.snapshot(), before)

    def test_the_service_is_named_where_there_is_one(self):
        """Only for the configuration that it reads, and where systemd runs."""
        environ = {"HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        default = find_place(None, environ)
        (self.folder / "units").mkdir()
        folders = (self.folder / "nothing", self.folder / "units")
        self.assertIn("mtunnel-twistd -n", how_to_start(default, folders, self.folder))
        (self.folder / "units" / SERVICE).touch()
        self.assertEqual(how_to_start(default, folders, self.folder), f"systemctl enable --now {SERVICE}")
        self.assertIn("mtunnel-twistd -n", how_to_start(default, folders, self.folder / "nothing"))
        self.assertIn("mtunnel-twistd -n", how_to_start(find_place(self.config, environ), folders, self.folder))

    def test_what_is_there_stays(self):
        (self.folder / "state" / "pve").mkdir(parents=True, mode=0o700)
        (self.folder / "state").chmod(0o700)
        storages = self.folder / "state" / "pve" / "storage.cfg"
        storages.write_text("dir: mine\n\tpath /srv\n")
        self.assertEqual(self.init()[0], 0)
        self.assertEqual(storages.read_text(), "dir: mine\n\tpath /srv\n")

    def test_half_a_certificate_is_refused(self):
        (self.folder / "c.pem").touch()
        self.write(f'tls.certificate = "{self.folder}/c.pem"\ntls.key = "{self.folder}/k.pem"')
        status, _, err = self.init()
        self.assertEqual(status, 1)
        self.assertIn(f"{self.folder}/c.pem is there, but {self.folder}/k.pem is not", err)
        self.assertFalse((self.folder / "k.pem").exists())

    def test_a_certificate_of_ones_own(self):
        for name in ("c.pem", "k.pem"):
            (self.folder / name).write_text("mine")
        self.write(f'tls.certificate = "{self.folder}/c.pem"\ntls.key = "{self.folder}/k.pem"')
        self.assertEqual(self.init()[0], 0)
        self.assertEqual((self.folder / "c.pem").read_text(), "mine")
        self.assertFalse((self.folder / "state" / "tls").exists())

    def test_proxmox_keeps_its_files_to_itself(self):
        self.write(f'profile = "proxmox"\npve_dir = "{self.folder}/pve"')
        self.assertEqual(self.init()[0], 0)
        self.assertFalse((self.folder / "pve").exists())
        self.assertTrue((self.folder / "state").is_dir())

    def test_a_directory_of_others_is_refused(self):
        (self.folder / "state").mkdir()
        (self.folder / "state").chmod(0o777)
        status, _, err = self.init()
        self.assertEqual((status, "others may write" in err), (1, True))

    def test_a_missing_configuration_file_is_written(self):
        """What one names has its state beside it."""
        file = self.folder / "etc" / "mtunnel.toml"
        status, out, err = run("init", "--config", file)
        self.assertEqual((status, err), (0, ""))
        self.assertIn(f"made {file}\n", out)
        self.assertIn(f"state: {self.folder}/etc/state\n", out)
        settings = load_settings(file, {})
        self.assertEqual((settings.state_dir, settings.runtime_dir), (file.parent / "state", file.parent / "run"))
        given = {"state_dir": settings.state_dir, "runtime_dir": settings.runtime_dir}
        self.assertEqual(file.read_text(), example_file(given))
        self.assertEqual(run("init", "--config", file)[1].count("made"), 0)

    def test_from_the_environment(self):
        file = self.folder / "etc" / "mtunnel.toml"
        place = find_place(None, {"MTUNNEL_CONFIG": str(file), "HOME": str(self.folder)})
        with contextlib.redirect_stdout(io.StringIO()):
            settings, _ = configured(place, InitAnswers(node="other"), asks=False)
        self.assertEqual((settings.file, settings.node, settings.state_dir), (file, "other", file.parent / "state"))

    def test_a_folder_whose_name_is_too_long_for_sockets(self):
        file = self.folder / ("long" * 20) / "mtunnel.toml"
        place = find_place(file, {"HOME": str(self.folder), "XDG_RUNTIME_DIR": str(self.folder)})
        with contextlib.redirect_stdout(io.StringIO()):
            settings, _ = configured(place, InitAnswers(), asks=False)
        self.assertEqual(settings.state_dir, file.parent / "state")
        self.assertRegex(settings.runtime_dir.name, "^mtunnel-[0-9a-f]{8}$")

    def test_options(self):
        file = self.folder / "new" / "x.toml"
        words = [
            "--node",
            "one",
            "--port",
            "9000",
            "--state-dir",
            f"{self.folder}/s",
            "--storage",
            f"big={self.folder}/d",
        ]
        words += ["--token", "mig@pve!t1", "--host", "one.example"]
        status, out, err = run("init", "--config", file, *words)
        self.assertEqual((status, err), (0, ""))
        settings = load_settings(file, {})
        self.assertEqual((settings.node, settings.listen), ("one", ("tcp6:9000",)))
        self.assertEqual(settings.state_dir, self.folder / "s")
        storages = parse_storage_config((settings.pve_dir / "storage.cfg").read_text())
        self.assertEqual(storages["big"].path, f"{self.folder}/d")
        endpoint = out.splitlines()[-1]
        self.assertEqual(endpoint, run("endpoint", "--config", file, "--host", "one.example")[1].strip())
        self.assertRegex(endpoint, r"^apitoken=PVEAPIToken=mig@pve!t1=[0-9a-f-]{36},host=one.example,port=9000,fing")
        # Once more, the same token; what contradicts the file is refused by name.
        self.assertEqual(run("init", "--config", file, *words)[1].splitlines()[-1], endpoint)
        status, _, err = run("init", "--config", file, "--port", "9001")
        self.assertEqual(
            (status, err), (1, f"mtunnel init: {file}: listen: is ('tcp6:9000',) already; change it there\n")
        )

    def test_options_that_are_none(self):
        wrong = {"--node": "a.b", "--port": "0", "--state-dir": "x", "--storage": "x", "--token": "root"}
        for words in wrong.items():
            self.assertEqual(run("init", "--config", self.config, *words)[0], 2, words)


class Asked(Case):
    def answer(self, *lines):
        """Run it at a terminal. Returns: its exit status, and what was to be seen."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        self.file = self.folder / "new" / "mtunnel.toml"
        words = [sys.executable, "-m", "mtunnel_tx.cli", "init", "--config", self.file]
        process = started_process(self.addCleanup, words, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        os.write(ours, "".join(f"{line}\n" for line in lines).encode())
        seen = b""
        with contextlib.suppress(OSError):  # how a terminal says that nobody is at its other end
            while data := os.read(ours, 4096):
                seen += data
        wait_for("its end", lambda: process.poll() is not None)
        return process.returncode, seen.decode()

    def test_each_question_has_a_default(self):
        status, seen = self.answer("target", "9000", "", f"big={self.folder}/disks", "", "target.example")
        self.assertEqual(status, 0, seen)
        settings = load_settings(self.file, {})
        self.assertEqual((settings.node, settings.listen), ("target", ("tcp6:9000",)))
        self.assertEqual(settings.state_dir, self.folder / "new" / "state")
        self.assertIn(f"[{self.folder}/new/state]: ", seen)
        self.assertRegex(seen.splitlines()[-1], r"^apitoken=PVEAPIToken=mig@pve!t1=.*,host=target.example,port=9000,")

    def test_an_answer_that_is_none_is_asked_for_again(self):
        status, seen = self.answer("a b", "target", "", "", "", "-")
        self.assertEqual(status, 0, seen)
        self.assertIn("'a b' must be a host name without dots", seen)
        self.assertNotIn("apitoken", seen)
