"""What docs/operations.md says of the service, done by hand on a system that systemd has booted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest

from mtunnel_tx.backends.process import read_record
from mtunnel_tx.tls.certificate import fingerprint, make_certificate
from tests.guest.ticker import read_beats
from tests.patience import patience_s, wait_for
from tests.processes import run_program, started_process
from tests.whole.node import Node
from tests.whole.test_online import Listener, OnlineCase

ETC = Path(__file__).resolve().parents[2] / "etc"
CONFIG = Path("/etc/mtunnel/mtunnel.toml")
STATE = Path("/var/lib/mtunnel")
RUNTIME = Path("/run/mtunnel")
SERVICE = "mtunnel.service"
SOCKET = "mtunnel.socket"
PACKAGED = Path("/usr/lib/systemd/system")
BOOTED = Path("/run/systemd/system")
WORKERS = 'workers = 2\nuser = "mtunnel"\n'
HELD = 'listen = ["systemd:domain=INET6:name=mtunnel"]\n'


def run(*argv: str) -> str:
    done = run_program(argv, check=False, capture_output=True, text=True, quiet_s=120)
    if done.returncode != 0:
        raise AssertionError(f"{argv} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}\n{journal()}")
    return done.stdout


def journal(*more: str) -> str:
    argv = ("journalctl", "--no-pager", "--lines=60", *(more or ("--unit", SERVICE)))
    return run_program(argv, check=False, capture_output=True, text=True, errors="replace").stdout


def install_units(*units: str) -> None:
    """As docs/operations.md has it; nothing where the package has brought them."""
    if not (PACKAGED / SERVICE).exists():
        for unit in units:
            shutil.copy(ETC / unit, "/etc/systemd/system")
        run("install", "-D", "-m", "644", str(ETC / "mtunnel.sysusers"), "/etc/sysusers.d/mtunnel.conf")
        run("systemd-sysusers")
        run("systemctl", "daemon-reload")


def shown(name: str, unit: str = SERVICE) -> str:
    return run("systemctl", "show", "--value", "--property", name, unit).strip()


class Service(Node):
    """The service where it is installed; of a test's own node it has the questions only."""

    def __init__(self) -> None:
        self.name = "booted"
        self.root, self.config, self.state, self.runtime = STATE, CONFIG, STATE, RUNTIME
        self.pve, self.storage = STATE / "pve", STATE / "storage"
        self.port = 8016
        self.process = None
        run("mtunnel", "init")
        self.token = run("mtunnel", "token", "add", "mig@pve!t1", "--role", "Administrator")

    @property
    def endpoint(self) -> str:
        return self.run("mtunnel_tx.cli", "endpoint", "--host", "127.0.0.1").stdout.strip()

    def start(self, *_argv: str) -> Service:
        run("systemctl", "enable", "--now", SERVICE)
        return self

    def close(self) -> None:
        run_program(["systemctl", "disable", "--now", SOCKET, SERVICE], check=False, quiet_s=120)
        run_program(["systemctl", "reset-failed"], check=False)
        shutil.rmtree(STATE)
        shutil.rmtree(RUNTIME, ignore_errors=True)


class Booted(OnlineCase):
    settings = ""

    def setUp(self) -> None:
        if not BOOTED.is_dir() or os.geteuid() != 0:
            raise SkipTest("systemd is not PID 1 here: NO SERVICE IS TRIED (make booted boots it)")
        install_units(SERVICE, SOCKET)
        CONFIG.parent.mkdir(exist_ok=True)
        CONFIG.write_text(f'node = "booted"\n{self.settings}')
        super().setUp()

    def make_target(self) -> Node:
        return Service().start()

    @property
    def pid(self) -> int:
        return int(shown("MainPID"))

    def fingerprint_shown(self) -> str:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(socket.create_connection(("::1", 8016), patience_s())) as sock:
            der = sock.getpeercert(binary_form=True)
        assert der is not None
        return fingerprint(ssl.DER_cert_to_PEM_cert(der).encode())

    def entries(self, *match: str) -> list[dict[str, Any]]:
        run("journalctl", "--sync")
        return [json.loads(line) for line in journal("--output=json", *match).splitlines()]


class ServiceTests(Booted):
    def test_life(self) -> None:
        """Started, looked at, reloaded, killed, stopped."""
        self.assertEqual(run("systemctl", "is-active", SERVICE), "active\n")
        wait_for("its status", lambda: shown("StatusText") == "tunnels: 0, waiting for settle: 0")
        files = make_certificate("booted")
        (STATE / "tls/key.pem").write_bytes(files.key)
        (STATE / "tls/certificate.pem").write_bytes(files.certificate)
        before = self.fingerprint_shown()
        run("systemctl", "reload", SERVICE)
        self.assertNotEqual(self.fingerprint_shown(), before)
        self.assertEqual(self.fingerprint_shown(), fingerprint(files.certificate))
        os.kill(self.pid, signal.SIGKILL)
        wait_for("another one", lambda: shown("NRestarts") == "1" and shown("SubState") == "running")
        run("systemctl", "stop", SERVICE)
        self.assertEqual((shown("ActiveState"), shown("Result")), ("inactive", "success"))

    def test_a_vm_outlives_the_daemon(self) -> None:
        """It arrives running; then the daemon is stopped, started, killed, and all the while the VM counts."""
        before = self.boot()
        after = Listener(RUNTIME / "200.serial0")
        self.addCleanup(setattr, after, "stopped", True)
        self.migrate()
        wait_for("beats at the target", lambda: len(after.beats) >= 5)
        self.assertIn(".service", Path(f"/proc/{self.machine()}/cgroup").read_text())
        for act in (("restart", SERVICE), ("kill", "--signal=KILL", SERVICE, "--kill-whom=main"), ("stop", SERVICE)):
            machine, count = self.machine(), len(after.beats)
            run("systemctl", *act)
            wait_for("more beats", lambda count=count: len(after.beats) > count + 5)
            self.assertEqual(self.machine(), machine)
            self.assertIn("running", self.status(self.there, 200))
        run("systemctl", "start", SERVICE)
        self.assertIn("running", self.status(self.there, 200))
        numbers = [number for number, _ in read_beats(before.text + after.text)]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))

    def machine(self) -> int:
        record = read_record(RUNTIME / "200.pid")
        assert record is not None and record.pid is not None
        return record.pid

    def test_who_moved_what(self) -> None:
        """One entry with fields, and no secret anywhere."""
        self.boot()
        self.migrate()
        found = wait_for(
            "the entry", lambda: self.entries("--identifier=mtunnel", f"_PID={self.pid}", "MTUNNEL_VMID=200")
        )
        self.assertEqual(len(found), 1)
        fields = {name: found[0][f"MTUNNEL_{name}"] for name in ("TOKEN", "ADDRESS", "VERDICT", "END")}
        self.assertEqual(fields, {"TOKEN": "mig@pve!t1", "ADDRESS": "127.0.0.1", "VERDICT": "kept", "END": "quit"})
        self.assertGreater(int(found[0]["MTUNNEL_BYTES_IN"]), 1 << 20)
        secret = self.there.endpoint.partition("t1=")[2].partition(",")[0]
        self.assertGreater(len(secret), 30)
        self.assertNotIn(secret, journal("--output=export", "--lines=all"))

    def test_stopped_vm(self) -> None:
        """Importing works under the service's restrictions."""
        folder = self.here.storage / "images/100"
        folder.mkdir(parents=True)
        (folder / "vm-100-disk-0.raw").write_bytes(os.urandom(4 << 20))
        self.here.guest_file(100).write_text("memory: 32\nscsi0: local:100/vm-100-disk-0.raw,size=4M\n")
        arguments = ("migrate", "100", self.there.endpoint, "--target-vmid", "300", "--target-storage", "local")
        self.here.run("mtunnel_tx.cli", *arguments)
        arrived = STATE / "storage/images/300/vm-300-disk-0.raw"
        self.assertEqual(arrived.read_bytes(), (folder / "vm-100-disk-0.raw").read_bytes())

    def test_drain(self) -> None:
        self.there.run("mtunnel_tx.cli", "drain")
        wait_for("its end", lambda: shown("ActiveState") == "inactive")
        self.assertEqual(shown("Result"), "success")


class WorkersTests(ServiceTests):
    settings = WORKERS

    def test_they_run_as_their_user(self) -> None:
        uid = int(run("id", "-u", "mtunnel"))
        workers = self.there.ask(cmd="status")["workers"]
        self.assertEqual(len(workers), 2)
        for worker in workers:
            self.assertEqual(Path(f"/proc/{worker['pid']}").stat().st_uid, uid)


class SocketTests(Booted):
    """systemd holds the port."""

    settings = HELD

    def make_target(self) -> Node:
        service = Service()
        run("systemctl", "enable", "--now", SOCKET)
        return service

    def test_the_first_connection_starts_it(self) -> None:
        self.assertEqual(shown("ActiveState"), "inactive")
        self.fingerprint_shown()
        self.assertEqual(shown("ActiveState"), "active")

    def test_no_connection_is_refused_meanwhile(self) -> None:
        self.fingerprint_shown()
        for _ in range(3):
            restart = started_process(self.addCleanup, ["systemctl", "restart", SERVICE])
            while restart.poll() is None:
                self.fingerprint_shown()
            self.assertEqual(restart.returncode, 0)
