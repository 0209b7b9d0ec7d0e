"""The page over real files for users, with facts that a test decides, and a socket that is a buffer."""

import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.access import FileAccess
from mtunnel_tx.config import Limits
from mtunnel_tx.errors import WrongState
from mtunnel_tx.http.channel import LimitedSite
from mtunnel_tx.http.entrance import Entrance
from mtunnel_tx.http.gate import Gate
from mtunnel_tx.page.facts import Looker, Sources
from mtunnel_tx.page.feed import Feed
from mtunnel_tx.page.rates import Rates
from mtunnel_tx.page.resource import COOKIE, PageActions, PageParts, PageResource
from mtunnel_tx.page.sessions import Sessions
from mtunnel_tx.ports.moves import Carried, Expected, MovePhase, Reached, TransferKind
from mtunnel_tx.watch.history import FinishedMove
from mtunnel_tx.watch.hoststatus import HostStatus, Usage
from mtunnel_tx.watch.move import MoveState, apply
from tests.http.apicase import NODE, NOW, SECRET, TOKENS, USERS, Wire
from tests.threads import FakeThreads

STRONG, WEAK = "mig@pve!t1", "mig@pve!poor"
HERE = IPv4Address("TCP", "127.0.0.1", 40000)
AWAY = IPv4Address("TCP", "192.0.2.7", 40000)
COOKIE_SET = re.compile(rf"{COOKIE}=([\w-]*); Path=/mtunnel/; Max-Age=(\d+); HttpOnly; Secure; SameSite=Strict")


def a_move(vmid=200, token=STRONG, **more):
    """A move that has carried 3 of 10 MiB of its disk."""
    move = MoveState(
        direction="in", vmid=vmid, target_vmid=vmid, source="", target=NODE, address="192.0.2.1", token=token,
        upid=f"UPID:{vmid}:", since_s=NOW - 60, **more,
    )  # fmt: skip
    for event in (
        Reached(phase=MovePhase.DISKS),
        Expected(label="scsi0", kind=TransferKind.DISK, total_bytes=10 << 20),
        Carried(label="scsi0", done_bytes=3 << 20),
    ):
        move = apply(move, event, NOW)
    return move


def a_row(vmid=100, token=STRONG, **more):
    """A move that is over."""
    values = {
        "vmid": vmid, "kind": "qemu", "direction": "in", "token": token, "peer": "192.0.2.1", "upid": "UPID:x:",
        "since_s": NOW - 600, "duration_s": 12.5, "outcome": "kept", "reason": "quit", "problem": None,
        "bytes_in": 1 << 20, "bytes_out": 10,
    }  # fmt: skip
    return FinishedMove(**{**values, **more})


STATUS = HostStatus(
    version="0.1", pid=7, node=NODE, listening=("127.0.0.1:8016",), workers=({"pid": 8, "connections": 3, "busy": 1},),
    relay="native", is_draining=False, limits={"tunnels": Usage(1, 64), "page.streams": Usage(0, 16)},
)  # fmt: skip


class PageWire(Wire):
    """A connection to the page that comes from an address."""

    def __init__(self, site, peer):
        self.transport = StringTransport(peerAddress=peer)
        self.channel = site.buildProtocol(peer)
        self.channel.makeConnection(self.transport)


class FakeApi:
    def render(self, request):
        request.setResponseCode(501)
        request.write(b"the API")
        request.finish()
        return 1


class PageCase(SynchronousTestCase):
    reach = "loopback"

    def setUp(self):
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        (self.root / "priv").mkdir()
        (self.root / "user.cfg").write_text(USERS)
        (self.root / "priv" / "token.cfg").write_text(TOKENS)
        self.clock = Clock()
        self.clock.advance(NOW)
        self.gate = Gate(self.clock)
        self.status, self.rows, self.owners = STATUS, [], {}
        self.looks, self.done, self.failure = 0, [], None
        self.refusals = []
        self.sessions = Sessions(
            FileAccess(self.root, self.clock.seconds), self.clock, node=NODE, most=8, age_s=3600
        )  # fmt: skip
        sources = Sources(look=self.look, find_history=lambda limit: self.rows[:limit], find_owner=self.owner)
        self.looker = Looker(sources, Rates(), self.clock, self.clock.seconds, FakeThreads())
        self.feed = Feed(self.looker, self.sessions.visitor, self.clock, FakeThreads(), most=3, slow_s=10)
        self.page = PageResource(self.parts())
        self.site = LimitedSite(Entrance(FakeApi(), self.page), self.clock, Limits())

    def parts(self):
        return PageParts(
            node=NODE, reach=self.reach, age_s=3600, clock=self.clock, threads=FakeThreads(), gate=self.gate,
            sessions=self.sessions, looker=self.looker, feed=self.feed,
            actions=PageActions(settle=self.settle, drain=lambda: self.done.append("drained")),
            refused=self.refusals.append,
        )  # fmt: skip

    async def look(self):
        self.looks += 1
        return self.status

    def owner(self, vmid):
        return self.owners.get(vmid, "")

    async def settle(self, vmid, discard):
        self.done.append((vmid, discard))
        if self.failure:
            raise WrongState(self.failure)
        held = {other: why for other, why in self.status.held.items() if other != vmid}
        self.status = replace(self.status, held=held)
        return ["local:1/a.raw"]

    def ask(self, method, path, body="", *, cookie="", peer=HERE, headers=()):
        """One request. Returns: the answer."""
        wire = PageWire(self.site, peer)
        wire.write(self.raw(method, path, body, cookie, headers))
        return wire.response()

    def raw(self, method, path, body="", cookie="", headers=()):
        lines = [f"{method} {path} HTTP/1.1", "Host: here:8016", f"Content-Length: {len(body)}", *headers]
        if cookie:
            lines.append(f"Cookie: {COOKIE}={cookie}")
        return "\r\n".join([*lines, "", body]).encode()

    def log_in(self, token=STRONG):
        """Returns: the cookie of a new session."""
        answer = self.ask("POST", "/mtunnel/login", f"token={token}={SECRET}")
        self.assertEqual(answer.line, "HTTP/1.1 303 See Other")
        return COOKIE_SET.fullmatch(answer.headers["set-cookie"])[1]

    def operator(self):
        """Returns: the cookie of a session that a one-time link began."""
        answer = self.ask("GET", f"/mtunnel/enter?key={self.sessions.make_link()}")
        return COOKIE_SET.fullmatch(answer.headers["set-cookie"])[1]

    def shown(self, cookie):
        """The page as text."""
        self.looker.forget()
        answer = self.ask("GET", "/mtunnel/", cookie=cookie)
        self.assertEqual(answer.line, "HTTP/1.1 200 OK")
        return answer.body.decode()

    def form(self, cookie, **fields):
        """What a button of the page sends."""
        csrf = re.search(r'name="csrf" value="([\w-]+)"', self.shown(cookie))[1]
        return "&".join(f"{name}={value}" for name, value in {"csrf": csrf, **fields}.items())
