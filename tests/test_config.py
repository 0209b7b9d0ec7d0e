"""mtunnel.toml: defaults, bounds, and errors that name file, key and reason."""

import dataclasses
import errno
import os
import stat
import sys
import tempfile
import tomllib
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.config import (
    KEYS,
    LONGEST_RUNTIME_DIR,
    LONGEST_SOCKET_PATH,
    ClusterNode,
    ConfigError,
    Host,
    Limits,
    Tls,
    default_file,
    find_tls,
    load_settings,
    make_private_directory,
    this_host,
)
from mtunnel_tx.config.manual import example_file

FINGERPRINT = ":".join(["AB"] * 32)


def shut(case, folder):
    """As if we might not search `folder`; from root nothing can be closed."""
    stat_file = Path.stat

    def stat(path, **options):
        if folder in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat_file(path, **options)

    case.patch(Path, "stat", stat)


class Case(SynchronousTestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.file = self.folder / "mtunnel.toml"

    def host(self, uid=0, users=(), **environ):
        return Host(uid=uid, node="node1", environ=environ, temp_dir=self.folder, is_user=users.__contains__)

    def load(self, text, host=None):
        self.file.write_text(text)
        return load_settings(self.file, {}, host or self.host())

    def assert_refused(self, text, reason):
        """Every error is `FILE: KEY: reason`."""
        error = self.assertRaises(ConfigError, self.load, text)
        self.assertEqual(error.text, f"{self.file}: {reason}")


class Defaults(Case):
    def test_root(self):
        found = self.load("")
        self.assertEqual(found.file, self.file)
        self.assertEqual((found.node, found.profile, found.workers, found.user), ("node1", "standalone", 0, "mtunnel"))
        self.assertEqual(found.listen, ("tcp6:8016",))
        self.assertEqual(
            [found.state_dir, found.runtime_dir, found.pve_dir, found.lock_dir],
            [Path(p) for p in ("/var/lib/mtunnel", "/run/mtunnel", "/var/lib/mtunnel/pve", "/run/mtunnel/lock")],
        )
        self.assertEqual(found.tls.certificate, Path("/var/lib/mtunnel/tls/certificate.pem"))
        self.assertEqual(found.tls.key, Path("/var/lib/mtunnel/tls/key.pem"))
        self.assertEqual(found.commands.pvesm, (sys.executable, "-P", "-m", "mtunnel_tx.pvesm"))
        self.assertEqual((found.forward.api, dict(found.forward.nodes)), (None, {}))
        self.assertEqual(found.limits, Limits())

    def test_user_with_xdg_directories(self):
        host = self.host(1000, XDG_CONFIG_HOME="/c", XDG_STATE_HOME="/s", XDG_RUNTIME_DIR="/r", HOME="/h")
        found = self.load("", host)
        self.assertEqual((found.state_dir, found.runtime_dir), (Path("/s/mtunnel"), Path("/r/mtunnel")))
        self.assertEqual(default_file(host), Path("/c/mtunnel/mtunnel.toml"))

    def test_user_without_xdg_directories(self):
        host = self.host(1000, HOME="/h", XDG_STATE_HOME="relative")
        found = self.load("", host)
        self.assertEqual(found.state_dir, Path("/h/.local/state/mtunnel"))
        self.assertEqual(found.runtime_dir, self.folder / "mtunnel-1000")
        self.assertEqual(default_file(host), Path("/h/.config/mtunnel/mtunnel.toml"))

    def test_proxmox(self):
        found = self.load('profile = "proxmox"')
        self.assertEqual((found.pve_dir, found.lock_dir), (Path("/etc/pve"), Path("/var/lock/qemu-server")))
        self.assertEqual((found.commands.pvesm, found.commands.qm), (("pvesm",), ("qm",)))
        self.assertEqual(found.tls.certificate, Path("/etc/pve/nodes/node1/pve-ssl.pem"))
        self.assertEqual(found.tls.key, Path("/etc/pve/nodes/node1/pve-ssl.key"))

    def test_proxmox_with_a_certificate_of_its_own(self):
        node = self.folder / "nodes" / "node1"
        node.mkdir(parents=True)
        text = f'profile = "proxmox"\npve_dir = "{self.folder}"'
        (node / "pveproxy-ssl.pem").touch()
        self.assertEqual(self.load(text).tls.certificate, node / "pve-ssl.pem")
        (node / "pveproxy-ssl.key").touch()
        self.assertEqual(self.load(text).tls.certificate, node / "pveproxy-ssl.pem")
        self.assertEqual(self.load(text).tls.key, node / "pveproxy-ssl.key")

    def test_the_certificate_is_looked_for_again(self):
        node = self.folder / "nodes" / "node1"
        node.mkdir(parents=True)
        text = f'profile = "proxmox"\npve_dir = "{self.folder}"\n'
        by_default, named = self.load(text), self.load(text + f'tls.certificate = "{node}/pve-ssl.pem"')
        for name in ("pveproxy-ssl.pem", "pveproxy-ssl.key"):
            (node / name).touch()
        self.assertEqual(find_tls(by_default), Tls(node / "pveproxy-ssl.pem", node / "pveproxy-ssl.key"))
        self.assertEqual(find_tls(named).certificate, node / "pve-ssl.pem")
        (node / "pveproxy-ssl.pem").unlink()
        self.assertEqual(find_tls(by_default), Tls(node / "pve-ssl.pem", node / "pve-ssl.key"))

    def test_what_depends_on_a_directory_follows_it(self):
        found = self.load('state_dir = "/srv/m"\nruntime_dir = "/run/x"')
        self.assertEqual((found.pve_dir, found.lock_dir), (Path("/srv/m/pve"), Path("/run/x/lock")))
        self.assertEqual(found.tls.key, Path("/srv/m/tls/key.pem"))

    def test_every_field_has_a_key(self):
        fields = set()
        for field in dataclasses.fields(found := self.load("")):
            value = getattr(found, field.name)
            inner = dataclasses.fields(value) if dataclasses.is_dataclass(value) else []
            fields |= {f"{field.name}.{each.name}" for each in inner} or {field.name}
        self.assertEqual(fields - {"file", "forward.nodes", "tls.named"}, {key.name for key in KEYS})

    def test_this_host(self):
        host = this_host({"A": "b"})
        self.assertEqual((host.uid, host.environ), (os.geteuid(), {"A": "b"}))
        self.assertNotIn(".", host.node)


class Values(Case):
    def test_all_keys(self):
        found = self.load(f"""
            profile = "proxmox"
            node = "pve-7"
            listen = ["tcp:8016:interface=192.0.2.1", "unix:/run/m.sock", "systemd:domain=INET6:index=0"]
            workers = 4
            user = "_m"
            pve_dir = "/p"
            state_dir = "/s"
            runtime_dir = "/r"
            lock_dir = "/l"
            [tls]
            certificate = "/c.pem"
            key = "/k.pem"
            [commands]
            pvesm = "/usr/sbin/pvesm"
            qm = ["sudo", "qm"]
            [forward]
            api = "https://127.0.0.1:8006"
            [forward.nodes.other]
            host = "192.0.2.7"
            fingerprint = "{FINGERPRINT.lower()}"
            [forward.nodes.third]
            host = "2001:db8::1"
            port = 9000
            fingerprint = "{FINGERPRINT}"
            [limits]
            stall_s = 0.5
            tunnels = 3
        """)
        self.assertEqual(found.listen[1], "unix:/run/m.sock")
        self.assertEqual((found.commands.pvesm, found.commands.qm), (("/usr/sbin/pvesm",), ("sudo", "qm")))
        self.assertEqual(found.forward.api, "https://127.0.0.1:8006")
        self.assertEqual(
            dict(found.forward.nodes),
            {
                "other": ClusterNode(host="192.0.2.7", port=8016, fingerprint=FINGERPRINT),
                "third": ClusterNode(host="2001:db8::1", port=9000, fingerprint=FINGERPRINT),
            },
        )
        self.assertEqual((found.limits.stall_s, found.limits.tunnels), (0.5, 3))
        self.assertEqual((found.tls.key, found.lock_dir, found.workers), (Path("/k.pem"), Path("/l"), 4))

    def test_settings_are_frozen(self):
        found = self.load("")
        self.assertRaises(dataclasses.FrozenInstanceError, setattr, found, "node", "x")

    def test_refusals(self):
        cases = {
            'profil = "standalone"': "profil: no such key",
            "[limits]\nstal_s = 3": "limits.stal_s: no such key",
            "[forward]\nnode = 3": "forward.node: no such key",
            "[limit]\nstall_s = 3": "limit: no such key",
            "limits = 3": "limits: must be a table",
            "[forward]\nnodes = []": "forward.nodes: must be a table",
            'profile = "pve"': "profile: must be one of standalone, proxmox",
            'node = "a.b"': "node: must be a host name without dots",
            "node = 3": "node: must be a host name without dots",
            "listen = []": 'listen: must be a list of 1 to 16 endpoints, e.g. ["tcp6:8016"]',
            'listen = "tcp:1"': 'listen: must be a list of 1 to 16 endpoints, e.g. ["tcp6:8016"]',
            'listen = ["ssl:443"]': 'listen: must be a server endpoint without TLS of its own, e.g. "tcp6:8016"',
            'listen = ["8016"]': 'listen: must be a server endpoint without TLS of its own, e.g. "tcp6:8016"',
            'listen = ["tcp:abc"]': "listen: 'tcp:abc': its port must be a whole number from 0 to 65535",
            'listen = ["tcp6:port=99999"]': "listen: 'tcp6:port=99999': its port must be a whole number from 0 to "
            "65535",
            'listen = ["tcp:1:x=1"]': "listen: 'tcp:1:x=1': 'x' must be one of port, interface, backlog",
            'listen = ["foo:1"]': "listen: 'foo:1': must be one of tcp:…, tcp6:…, unix:…, systemd:…",
            'listen = ["systemd:domain=INET6"]': "listen: 'systemd:domain=INET6': its index, a number, or its name "
            "must be given",
            'listen = ["systemd:name=x"]': "listen: 'systemd:name=x': its domain must be one of INET, INET6, UNIX",
            "workers = -1": "workers: must be a whole number from 0 to 256",
            "workers = true": "workers: must be a whole number from 0 to 256",
            "workers = 1.0": "workers: must be a whole number from 0 to 256",
            'user = "a b"': "user: must be a user name",
            'state_dir = "var"': "state_dir: must be an absolute path",
            'pve_dir = "/a\\u0000b"': "pve_dir: must be an absolute path",
            "[tls]\nkey = 1": "tls.key: must be an absolute path",
            "[commands]\nqm = []": "commands.qm: must be a program, or a list of a program and its first arguments",
            '[commands]\nqm = "q\\u0000m"': "commands.qm: must be without NUL",
            '[commands]\npvesm = [""]': "commands.pvesm: must be a program, or a list of a program and its first "
            "arguments",
            '[forward]\napi = "http://a"': "forward.api: must be https://HOST:PORT",
            "[forward.nodes]\na = 1": "forward.nodes.a: must be a table",
            f'[forward.nodes."a b!"]\nhost = "h"\nfingerprint = "{FINGERPRINT}"': "forward.nodes.a b!: must be a host "
            "name without dots",
            f'[forward.nodes.a]\nfingerprint = "{FINGERPRINT}"': "forward.nodes.a.host: must be given",
            '[forward.nodes.a]\nhost = "h"': "forward.nodes.a.fingerprint: must be given",
            '[forward.nodes.a]\nhost = "h"\nfingerprint = "AB"': "forward.nodes.a.fingerprint: must be a SHA-256 "
            "fingerprint, AA:BB:…",
            f'[forward.nodes.a]\nhost = "h"\nfingerprint = "{FINGERPRINT}"\nx = 1': "forward.nodes.a.x: no such key",
            "[limits]\nstall_s = nan": "limits.stall_s: must be a number from 0.1 to 86400",
            "[limits]\nstall_s = 0": "limits.stall_s: must be a number from 0.1 to 86400",
            "[limits]\nstall_s = inf": "limits.stall_s: must be a number from 0.1 to 86400",
            "[limits]\nframe_bytes = 131071": "limits.frame_bytes: must be a whole number from 131072 to 1073741824",
        }
        for text, reason in cases.items():
            self.assert_refused(text, reason)

    def test_addresses_of_the_api(self):
        for url in ("https://[::1]:8006", "https://[2001:db8::1]", "https://pve.example", "https://192.0.2.1:1"):
            self.assertEqual(self.load(f'[forward]\napi = "{url}"').forward.api, url)
        reasons = {
            "https://[::1": "",
            "https://[::1]x:1": "",
            "https://:8006": "",
            "https://[zz]:1": ": 'zz' does not appear to be an IPv4 or IPv6 address",
            "https://h:abc": ": Port could not be cast to integer value as 'abc'",
            "https://h:99999": ": Port out of range 0-65535",
            "https://h:0": ": PORT must be a whole number from 1 to 65535",
            "https://h\\\\x:1": ": HOST must be a host name or an address",
        }
        for url, reason in reasons.items():
            self.assert_refused(f'[forward]\napi = "{url}"', f"forward.api: must be https://HOST:PORT{reason}")

    def test_every_number_has_bounds(self):
        for key in KEYS:
            if key.name.startswith("limits.") or key.name == "workers":
                for value in (-1, 1 << 60, "1", None, True, float("nan"), [1]):
                    self.assertRaises(ValueError, key.check, value)
                self.assertEqual(key.check(key.default({}, self.host())), key.default({}, self.host()))

    @given(st.dictionaries(st.sampled_from([key.name for key in KEYS]), st.integers() | st.text() | st.booleans()))
    @settings(deadline=None, max_examples=100)
    def test_wrong_values_never_end_otherwise(self, values):
        for key in KEYS:
            if key.name in values:
                try:
                    key.check(values[key.name])
                except ValueError as error:
                    self.assertIn("must be", str(error))


class Files(Case):
    def test_not_toml(self):
        self.file.write_text("listen = ")
        error = self.assertRaises(ConfigError, load_settings, self.file, {}, self.host())
        self.assertTrue(error.text.startswith(f"{self.file}: is not valid TOML: "), error.text)

    def test_nested_too_deeply(self):
        self.assert_refused("listen = " + "[" * 50000, "is not valid TOML: nested too deeply")

    def test_not_utf8(self):
        self.file.write_bytes(b'node = "\xff"')
        self.assertRaises(ConfigError, load_settings, self.file, {}, self.host())

    def test_a_file_that_was_named_must_be_there(self):
        error = self.assertRaises(ConfigError, load_settings, self.file, {}, self.host())
        self.assertEqual(error.text, f"{self.file}: cannot be read: No such file or directory")

    def test_the_environment_names_a_file(self):
        self.file.write_text('node = "other"')
        host = self.host(MTUNNEL_CONFIG=str(self.file))
        self.assertEqual(load_settings(None, {}, host).node, "other")

    def test_the_argument_wins_over_the_environment(self):
        self.file.write_text('node = "other"')
        host = self.host(MTUNNEL_CONFIG="/nowhere")
        self.assertEqual(load_settings(self.file, {}, host).node, "other")

    def test_the_default_file_is_read_where_it_exists(self):
        host = self.host(1000, XDG_CONFIG_HOME=str(self.folder), HOME="/h")
        self.assertIsNone(load_settings(None, {}, host).file)
        (self.folder / "mtunnel").mkdir()
        (self.folder / "mtunnel" / "mtunnel.toml").write_text('node = "mine"')
        self.assertEqual(load_settings(None, {}, host).node, "mine")

    def test_what_may_not_be_searched_is_no_absence(self):
        shut(self, self.folder / "closed")
        host = self.host(1000, XDG_CONFIG_HOME=str(self.folder / "closed"), HOME="/h")
        file = self.folder / "closed" / "mtunnel" / "mtunnel.toml"
        error = self.assertRaises(ConfigError, load_settings, None, {}, host)
        self.assertEqual(error.text, f"{file}: cannot be read: Permission denied")
        error = self.assertRaises(ConfigError, self.load, f'profile = "proxmox"\npve_dir = "{self.folder}/closed/pve"')
        self.assertIn("pveproxy-ssl.pem: cannot be read: Permission denied", error.text)
        self.assertRaises(ConfigError, make_private_directory, self.folder / "closed" / "state")

    def test_a_host_name_that_cannot_be_a_node(self):
        host = dataclasses.replace(self.host(1000, HOME="/h"), node="my_host")
        error = self.assertRaises(ConfigError, load_settings, None, {}, host)
        self.assertEqual(error.text, "configuration: node: must be a host name without dots")


class Directories(Case):
    def test_the_longest_socket_path_fits(self):
        longest = "/" + "r" * (LONGEST_RUNTIME_DIR - 1)
        found = self.load(f'runtime_dir = "{longest}"')
        self.assertEqual(len(str(found.runtime_dir / "999999999_nbd.migrate")), LONGEST_SOCKET_PATH)

    def test_one_byte_more_is_refused(self):
        too_long = "/" + "ü" * (LONGEST_RUNTIME_DIR // 2) + "r"
        error = self.assertRaises(ConfigError, self.load, f'runtime_dir = "{too_long}"')
        self.assertIn("runtime_dir: must have at most 85 bytes for the sockets in it, has 86: /ü", error.text)
        error = self.assertRaises(ConfigError, self.load, f'machine_dir = "{too_long}"')
        self.assertIn("machine_dir: must have at most 85 bytes", error.text)

    def test_a_private_directory_is_made_once(self):
        path = self.folder / "a" / "b"
        self.assertTrue(make_private_directory(path))
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o700)
        self.assertFalse(make_private_directory(path))

    def test_somebody_elses_directory_is_refused(self):
        for mode in (0o770, 0o702):
            path = self.folder / oct(mode)
            path.mkdir()
            path.chmod(mode)
            self.assertRaises(ConfigError, make_private_directory, path)

    def test_a_link_is_refused(self):
        (self.folder / "real").mkdir(mode=0o700)
        (self.folder / "link").symlink_to("real")
        self.assertRaises(ConfigError, make_private_directory, self.folder / "link")

    def test_a_prepared_runtime_directory_is_refused(self):
        """In the temporary folder somebody else may have been there first."""
        host = self.host(1000, HOME="/h")
        (self.folder / "mtunnel-1000").mkdir()
        (self.folder / "mtunnel-1000").chmod(0o777)
        self.assertRaises(ConfigError, load_settings, None, {}, host)

    def test_a_file_is_no_directory(self):
        self.file.touch()
        self.assertRaises(ConfigError, make_private_directory, self.file)
        self.assertRaises(ConfigError, make_private_directory, self.file / "below")


class Example(Case):
    def test_it_changes_nothing(self):
        self.assertEqual(self.load(example_file()), self.load(""))

    def test_what_it_shows_are_the_defaults(self):
        lines = example_file().split("# Daemons of other nodes")[0].splitlines()
        text = "\n".join(line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in lines)
        shown = self.load(text.replace('"NODE"', '"node1"'))
        default = self.load("", self.host(users=("mtunnel",)))
        self.assertEqual(
            shown,
            dataclasses.replace(
                default,
                commands=dataclasses.replace(default.commands, pvesm=("mtunnel-pvesm",)),
                forward=dataclasses.replace(
                    default.forward, api="https://127.0.0.1:8006", fingerprint=":".join(["AA"] * 32)
                ),
                notify=dataclasses.replace(
                    default.notify, command=("/usr/local/bin/tell-me",), urls=("https://example.org/hook",)
                ),
            ),
        )
        given = tomllib.loads(text)
        for key in KEYS:
            table, _, name = key.name.rpartition(".")
            self.assertIn(name, given[table] if table else given)
