"""`mtunnel init`: makes what is missing, says so, changes nothing that is there."""

import contextlib
import io
import stat

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mtunnel_tx.backends.access import read_users
from mtunnel_tx.cli.init import load
from mtunnel_tx.config import load_settings
from mtunnel_tx.config.manual import example_file
from mtunnel_tx.pve.storagecfg import parse_storage_config
from tests.cli.test_main import Case, run


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
        self.assertIn(f"twistd -n mtunnel --config {self.config}", out)

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
        self.assertEqual(self.init(), (0, f"ready: twistd -n mtunnel --config {self.config}\n", ""))
        self.assertEqual(self.snapshot(), before)

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
        file = self.folder / "etc" / "mtunnel.toml"
        environment = {"MTUNNEL_CONFIG": str(file), "HOME": str(self.folder)}
        with contextlib.redirect_stdout(io.StringIO()) as out:
            settings = load(None, environment)
        self.assertEqual((settings.file, file.read_text()), (file, example_file()))
        self.assertEqual(out.getvalue(), f"made {file}\n")
        self.assertEqual(load(None, environment), settings)
        file.write_text('node = "other"')
        self.assertEqual(load(None, environment).node, "other")
