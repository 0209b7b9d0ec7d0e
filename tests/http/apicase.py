"""The API over real files for users and tasks, a stand-in for the tunnels, and a socket that is a buffer."""

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.access import FileAccess
from mtunnel_tx.backends.tasks import FileTasks
from mtunnel_tx.config import Limits
from mtunnel_tx.errors import NotFound, Unauthenticated
from mtunnel_tx.http.api import make_site
from mtunnel_tx.http.operation import Parts
from mtunnel_tx.http.resumptions import ResumeLimits, Resumptions
from mtunnel_tx.ports.guests import GuestEntry
from mtunnel_tx.ports.storage import Volume
from mtunnel_tx.ports.tunnels import LateAnswer, Opened
from mtunnel_tx.pve.storagecfg import parse_storage_config
from mtunnel_tx.wire.socketkinds import COMMANDS, SocketKind

NOW = 1_800_000_000.0
FINGERPRINT = ":".join(["AB"] * 32)
NODE = "pvetest"
SECRET = "11111111-2222-3333-4444-555555555555"
USERS = """\
user:mig@pve:1:0::::::
token:mig@pve!t1:0:0::
token:mig@pve!poor:0:1::
token:mig@pve!none:0:1::
token:mig@pve!old:1000:0::
user:off@pve:0:0::::::
token:off@pve!t1:0:0::
user:late@pve:1:1000::::::
token:late@pve!t1:0:0::

role:Incoming:Sys.Incoming:
role:Only:VM.Allocate:

acl:1:/:mig@pve:Administrator,PVEAdmin:
acl:1:/vms:mig@pve!poor:Only:
acl:1:/vms/101:mig@pve!poor:PVEVMUser:
acl:1:/storage/iso:mig@pve!poor:PVEDatastoreUser:
"""
TOKENS = "".join(
    f"{name} {SECRET}\n"
    for name in ("late@pve!t1", "mig@pve!none", "mig@pve!old", "mig@pve!poor", "mig@pve!t1", "off@pve!t1")
)
STORAGES = """\
dir: local
	path /srv/local
	content images,iso

dir: iso
	path /srv/iso
	content iso
	shared 1

dir: elsewhere
	path /srv/elsewhere
	nodes other

dir: off
	path /srv/off
	disable 1
"""


@dataclass
class FakeRoute:
    vmid: int
    token: str
    file: Path = Path("/nowhere")
    upid: str = "UPID:x:"
    kind: SocketKind = COMMANDS
    said: list = field(default_factory=list)

    def parked(self, reason, waited_s):
        self.said.append(reason)

    def resumed(self, waited_s):
        self.said.append(waited_s)


@dataclass
class FakeTunnels:
    """One VM, 300, whose socket is known and whose ticket is `good`."""

    failure: Exception | None = None
    opened: list = field(default_factory=list)

    async def open(self, vmid, token, storages, bridges, address=""):
        self.opened.append((vmid, token, tuple(storages), tuple(bridges)))
        if self.failure:
            raise self.failure
        return Opened(upid="UPID:x:", ticket="PVETUNNEL:x", socket=f"/run/qemu-server/{vmid}.mtunnel")

    async def check(self, call, token):
        self.checked = (call, token)
        finding = {"about": "key", "name": "args", "text": "only root", "severity": "refuse"}
        disk = {"key": "scsi0", "storage": "local", "format": "raw", "stream": None, "free": None}
        return {"findings": [finding], "disks": [disk]}

    def route(self, vmid, path, token, ticket):
        if vmid != 300:
            raise NotFound(f"Configuration file 'nodes/{NODE}/qemu-server/{vmid}.conf' does not exist")
        if ticket != "good":
            raise Unauthenticated("permission denied - invalid PVETUNNEL ticket")
        return FakeRoute(vmid, token)

    async def abandon(self, vmid, token, upid):
        raise NotFound(f"VM {vmid} has no such tunnel of yours")

    async def come_late(self, vmid, token, upid, decision=None):
        if (vmid, upid) != (300, "UPID:x:"):
            raise NotFound(f"VM {vmid} has no such tunnel of yours")
        if decision is None:
            return LateAnswer(verdict="held", machine="paused", is_whole=True)
        return LateAnswer(verdict=f"{decision.value} by {token}")

    async def digest(self, vmid, token, volid, *, content=False):
        if volid != "local:300/vm-300-disk-0.raw":
            raise NotFound(f"volume '{volid}' is not of a live tunnel of yours")
        return ("cd" if content else "ab") * 32

    def live(self):
        return []


class FakeGuests:
    node = NODE

    def entries(self):
        return [
            GuestEntry(vmid=100, node=NODE, kind="qemu", name="web"),
            GuestEntry(vmid=101, node=NODE, kind="qemu", name=""),
            GuestEntry(vmid=102, node="other", kind="lxc", name="box"),
        ]


class FakeStorage:
    converts = False

    def config(self):
        return parse_storage_config(STORAGES)

    async def available_bytes(self, storage):
        return 1 << 30 if storage == "local" else None

    async def volumes(self, storage, vmid=None):
        found = [
            Volume(volid=f"{storage}:100/vm-100-disk-0.raw", format="raw", content="images", size_bytes=512, vmid=100),
            Volume(volid=f"{storage}:iso/a.iso", format="iso", content="iso", size_bytes=2048, vmid=None),
        ]
        return [volume for volume in found if vmid in (None, volume.vmid)]


class FakeHypervisor:
    def running(self, vmid):
        return vmid == 100


@dataclass
class Response:
    """One parsed answer."""

    line: str
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def data(self):
        return self.json["data"]


class Wire:
    """A connection: what is written, and the answers taken apart."""

    def __init__(self, site):
        self.transport = StringTransport()
        self.channel = site.buildProtocol(None)
        self.channel.makeConnection(self.transport)

    def write(self, data):
        self.channel.dataReceived(data)

    def hang_up(self):
        self.channel.connectionLost(Failure(ConnectionDone()))

    def silent(self):
        return self.transport.value() == b""

    def response(self):
        """The next answer, taken away from the buffer."""
        head, _, rest = self.transport.value().partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (item.split(": ", 1) for item in fields)}
        length = int(headers.get("content-length", 0))
        self.transport.clear()
        self.transport.write(rest[length:])
        return Response(line, headers, rest[:length])


class ApiCase(SynchronousTestCase):
    """A site with one token that may do everything, `t1`, and one that may do little, `poor`."""

    limits = Limits()

    def setUp(self):
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = Path(directory.name)
        (self.root / "priv").mkdir()
        (self.root / "user.cfg").write_text(USERS)
        (self.root / "priv" / "token.cfg").write_text(TOKENS)
        self.clock = Clock()
        self.clock.advance(NOW)
        self.tunnels = FakeTunnels()
        self.tasks = FileTasks(self.root, NODE, self.clock.seconds)
        self.upgraded = []
        self.upgrade_failure = None
        self.resumptions = Resumptions(
            self.clock, bytes(32), os.urandom, ResumeLimits(park_s=60, parked_bytes=1000, windows_bytes=1 << 40)
        )
        self.site = make_site(self.parts(), self.clock, self.limits)

    def parts(self):
        return Parts(
            access=FileAccess(self.root, self.clock.seconds),
            child_turn=lambda token, vmid: nullcontext(),
            tunnels=self.tunnels,
            guests=FakeGuests(),
            storage=FakeStorage(),
            hypervisor=FakeHypervisor(),
            tasks=self.tasks,
            bridges=lambda: ["vmbr0"],
            nodes=lambda: ["other", NODE],
            fingerprint=lambda: FINGERPRINT,
            upgrader=self.upgrade,
            resumptions=self.resumptions,
            cpu_model=lambda name: {"reported-model": "kvm64"} if name == "known" else None,
        )

    async def upgrade(self, request, handshake, route):
        if self.upgrade_failure:
            raise self.upgrade_failure
        self.upgraded.append((request, handshake, route))

    def wire(self):
        return Wire(self.site)

    def ask(self, method, path, *, headers=(), body=None, token="t1", wire=None):
        """Send one request below the API's base; returns the connection's next answer."""
        wire = wire or self.wire()
        wire.write(self.raw(method, "/api2/json" + path, headers=headers, body=body, token=token))
        return wire.response()

    def raw(self, method, path, *, headers=(), body=None, token="t1"):
        lines = [f"{method} {path} HTTP/1.1", "Host: here", *headers]
        if token:
            lines.append(f"Authorization: PVEAPIToken=mig@pve!{token}={SECRET}")
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + (body or b"")

    def post(self, vmid="300", body=b"", *, node="localhost", **more):
        return self.ask("POST", f"/nodes/{node}/qemu/{vmid}/mtunnel", body=body, **more)

    def assert_error(self, response, status_line, message=None, errors=None):
        """A JSON error: its status line, and its body."""
        self.assertEqual(response.line, f"HTTP/1.1 {status_line}")
        expected = {"data": None, "message": message or status_line.partition(" ")[2] + "\n"}
        self.assertEqual(response.json, {**expected, "errors": errors} if errors else expected)

    def assert_parameters(self, response, **errors):
        """A 400 with these reasons."""
        self.assert_error(response, "400 Parameter verification failed.", errors=errors)
