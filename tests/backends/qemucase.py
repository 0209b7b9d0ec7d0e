"""What the tests with real QEMUs share: a host of their own, guests that tick, and an end for every QEMU."""

import json
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.unix import Client
from twisted.trial.unittest import SkipTest, TestCase

from mtunnel_tx.backends.cpumodelsfile import cpu_models_file
from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.host import PROGRAM, HostFacts
from mtunnel_tx.backends.images import ImageFile, find_facts
from mtunnel_tx.backends.process import has_ended, read_record
from mtunnel_tx.backends.qemu import QemuMachines
from mtunnel_tx.backends.qmp import connect_monitor
from mtunnel_tx.pve.guestconf import parse_guest_config
from mtunnel_tx.pve.storagecfg import parse_storage_config
from tests.guest.ticker import read_beats, ticker
from tests.patience import POLL_S, WAIT_S, tries
from tests.processes import run_program

DISK_BYTES = 4 << 20
FACTS = HostFacts(reactor, {"PATH": os.environ.get("PATH", os.defpath)})
"""The answers hold for every test of a process."""


class Volumes:
    """Of ports.Storage, what a hypervisor asks for."""

    def __init__(self, folder):
        self._folder = folder

    async def path(self, volid):
        return str(self._folder / volid.rpartition("/")[2])

    async def size_bytes(self, volid):
        path = await self.path(volid)
        if not Path(path).exists():
            return None
        info = run_program(["qemu-img", "info", "-U", "--output=json", path], capture_output=True)
        return json.loads(info.stdout)["virtual-size"]

    async def refers_elsewhere(self, volid):
        path = await self.path(volid)
        file = ImageFile(path=path, format=path.rpartition(".")[2], base=None, in_guest_folder=False)
        return (await find_facts(reactor, file, {"PATH": os.environ.get("PATH", os.defpath)})).elsewhere

    def config(self):
        text = f"dir: local\n\tpath {self._folder}\n\tcontent images,iso,snippets\n\n"
        text += "dir: isos\n\tpath /isos\n\tcontent iso\n"
        return parse_storage_config(text, self.fail)

    def fail(self, reason):
        raise AssertionError(reason)

    def make(self, name, content=b"", size_bytes=DISK_BYTES):
        """A raw image. Returns: its volume id."""
        self._folder.mkdir(exist_ok=True)
        file = self._folder / name
        file.write_bytes(content)
        os.truncate(file, size_bytes)
        return f"local:100/{name}"

    def path_of(self, name):
        return self._folder / name

    def read(self, name):
        return (self._folder / name).read_bytes()


class QemuCase(TestCase):
    def setUp(self):
        if shutil.which(PROGRAM) is None:
            raise SkipTest(f"{PROGRAM} is not installed: NOTHING ABOUT REAL VIRTUAL MACHINES IS TESTED")
        # The first one added runs last: what was told to close may need a turn of the reactor or two.
        self.addCleanup(self.until, lambda: not open_clients(), "the end of connections")
        # Short: socket paths end at 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="mtq-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.reports = []

    def report(self, line):
        """Where what a start tells goes."""
        self.reports.append(line)

    def host(self, name="host", **more):
        """A daemon's view of a host; the same name is the same host."""
        folder = self.folder / name
        runtime_dir = folder / "run"
        if not folder.exists():
            runtime_dir.mkdir(parents=True, mode=0o700)
            self.addCleanup(self.kill_all, runtime_dir)
        volumes = Volumes(folder / "images")
        threads = ReactorThreads(reactor, reactor.getThreadPool())
        parts = {"threads": threads, "facts": FACTS, "storage": volumes, "runtime_dir": runtime_dir}
        parts["cpu_models"] = cpu_models_file(folder / "pve")
        machines = QemuMachines(reactor, **{**parts, **more})
        self.addCleanup(machines.close)
        return Host(machines, volumes, runtime_dir)

    async def kill_all(self, runtime_dir):
        """Whatever the test did, no QEMU stays."""
        pids = [record.pid for file in runtime_dir.glob("*.pid") if (record := read_record(file)).pid]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            await self.until(lambda pid=pid: not alive(pid), f"the end of {pid}")

    async def until(self, condition, what, quiet_s=WAIT_S):
        """Look again and again until it is so."""
        for _ in tries(what, quiet_s):
            if condition():
                return
            await deferLater(reactor, POLL_S)

    async def fails(self, kind, work):
        """Await work that must fail. Returns: the error."""
        try:
            result = await work
        except kind as error:
            return error
        return self.fail(f"{kind.__name__} expected, not {result!r}")


def open_clients():
    """The UNIX connections that this process made and that are not closed yet."""
    return [reader for reader in reactor.getReaders() if isinstance(reader, Client)]


class Host:
    """A host's hypervisor, its volumes and its runtime directory."""

    def __init__(self, machines, volumes, runtime_dir):
        self.machines = machines
        self.volumes = volumes
        self.runtime_dir = runtime_dir

    def files(self, vmid):
        return sorted(file.name for file in self.runtime_dir.glob(f"{vmid}.*"))

    def pid(self, vmid):
        return read_record(self.runtime_dir / f"{vmid}.pid").pid

    async def ask(self, vmid, command, **arguments):
        """Ask a VM's QEMU, past all that is ours but the monitor."""
        monitor = await connect_monitor(reactor, self.runtime_dir / f"{vmid}.qmp")
        try:
            return await monitor.call(command, arguments)
        finally:
            monitor.close()

    async def serial(self, vmid):
        """Listen to a VM's first serial port."""
        return await listen(self.runtime_dir / f"{vmid}.serial0")


def guest(volid, *lines, memory=32):
    """A config for the ticker on a SCSI disk."""
    text = [f"scsi0: {volid}", "scsihw: virtio-scsi-pci", f"memory: {memory}", "serial0: socket", "vga: serial0"]
    return parse_guest_config("\n".join([*text, "boot: order=scsi0", *lines]) + "\n")


def alive(pid):
    """Whether any thread of it runs: a zombie may have some that still end."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not has_ended(pidfd)
    finally:
        os.close(pidfd)


class Listening(Protocol):
    """Keeps what comes."""

    def __init__(self):
        self.received = bytearray()
        self.ended = Deferred()

    @property
    def beats(self):
        return read_beats(bytes(self.received))

    def dataReceived(self, data):
        self.received += data

    def connectionLost(self, reason):
        self.ended.callback(None)


async def listen(path):
    """Connect to a UNIX socket, which may not listen yet."""
    for _ in tries(f"somebody who listens on {path}"):
        with suppress(ConnectError):
            return await UNIXClientEndpoint(reactor, str(path)).connect(Factory.forProtocol(Listening))
        await deferLater(reactor, POLL_S)
    raise AssertionError("not reached")


__all__ = ["DISK_BYTES", "QemuCase", "alive", "guest", "listen", "ticker"]
