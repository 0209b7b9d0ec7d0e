"""A target that plays Proxmox's replies: real TLS, real websockets, and a memory for all that it was sent."""

import json
from dataclasses import dataclass, field
from urllib.parse import parse_qs, parse_qsl, urlsplit

from autobahn.twisted.resource import WebSocketResource
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from mtunnel_tx.pve.maps import Endpoint
from mtunnel_tx.pve.storagetypes import PROXMOX_STREAMS
from mtunnel_tx.tls.certificate import fingerprint, make_certificate

SECRET = "11111111-2222-3333-4444-555555555555"
TOKEN = f"PVEAPIToken=mig@pve!t1={SECRET}"
LARGEST_FRAME = 131072


@dataclass
class Frame:
    """A frame as it arrived."""

    opcode: int
    length: int
    fin: bool
    rsv: int
    masked: bool


@dataclass
class Connection:
    """A websocket: its query, the frames, and how it ended."""

    params: dict
    query: str
    authorization: str
    frames: list = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    close_code: int | None = None
    ended: Deferred = field(default_factory=Deferred)

    def conforms(self):
        """Whether a Proxmox target can take it."""
        return all(f.fin and f.masked and not f.rsv and f.length <= LARGEST_FRAME for f in self.frames)


class Wire(WebSocketServerProtocol):
    """Server side of one websocket."""

    def onConnect(self, request):
        self.connection = Connection(
            {name: values[-1] for name, values in request.params.items()},
            self.http_request_uri.partition("?")[2],
            request.headers.get("authorization", ""),
        )
        self.target = self.factory.target
        self.target.opened(self)

    def onMessageFrameBegin(self, length):
        frame = self.current_frame
        self.connection.frames.append(Frame(frame.opcode, length, frame.fin, frame.rsv, frame.mask is not None))
        super().onMessageFrameBegin(length)

    def onMessage(self, payload, _is_binary):
        self.target.received(self, payload)

    def onCloseFrame(self, code, reason):
        if self.target.keeps_open and self.connection is not self.target.commander:
            self.connection.close_code = code
            self.target.closed(self)
        else:
            super().onCloseFrame(code, reason)

    def onClose(self, _was_clean, _code, _reason):
        if hasattr(self, "connection") and not self.connection.ended.called:
            self.connection.close_code = self.remoteCloseCode
            self.target.closed(self)


class Recorder(Resource):
    """Every request ends here."""

    def __init__(self, target):
        super().__init__()
        self.isLeaf = True
        self.target = target
        factory = WebSocketServerFactory()
        factory.protocol = Wire
        factory.target = target
        self.websocket = WebSocketResource(factory)

    def render(self, request):
        path = urlsplit(request.uri.decode()).path.removeprefix("/api2/json")
        if path.endswith("/mtunnelwebsocket"):
            if self.target.refuse_websockets:
                request.setResponseCode(500, b"no websocket today")
                return b""
            return self.websocket.render(request)
        return self.target.answer_http(request, path)


def make_reply(status, phrase, **body):
    return (status, phrase, body)


class RecordedTarget:
    """What a Proxmox target says, and what it was told.

    `http` holds answers by (method, path); `fail` messages by command that is to fail; `silent`: the call or
    command that is not answered; `version` the reply to it.
    """

    def __init__(self, vmid=300, node="pvetest", storages=("tank",)):
        self.vmid, self.node = vmid, node
        self.requests = []  # (method, path, query, form)
        self.headers = []
        self.commands = []
        self.events = []  # names of everything, in order
        self.commander = None
        self.streams = []
        self.fail = {}
        self.keeps_open = False
        self.imports_fail = False
        self.silent = ""
        self.replies = {}
        self.lines = ["Formatting 'x', fmt=raw size=1048576 preallocation=off\n"]
        self.abort_streams_after = None
        self.refuse_websockets = False
        self.waiting_for = {}
        self._import = None
        self._rest = b""
        self.guest = f"/nodes/{node}/qemu/{vmid}"
        self.http = {
            ("GET", "/cluster/status"): [
                {"type": "cluster", "name": "c"},
                {"type": "node", "name": "other", "local": 0, "online": 1},
                {"type": "node", "name": node, "local": 1, "online": 1},
            ],
            ("GET", "/version"): {"version": "9.2.0", "release": "9.2", "repoid": "0a1b2c3d"},
            ("GET", "/cluster/resources"): [{"vmid": 100, "type": "qemu", "node": node, "name": "x"}],
            ("GET", "/nodes/localhost/storage"): [
                {"storage": name, "content": "images,iso", "type": "dir"} for name in storages
            ],
            ("POST", f"{self.guest}/mtunnel"): {
                "upid": "UPID:x:",
                "ticket": "PVETUNNEL:6B035030::AB+/=",
                "socket": f"/run/qemu-server/{vmid}.mtunnel",
            },
        }

    # The listening side

    def listen(self, reactor):
        made = make_certificate("localhost")
        self.pem = made.certificate
        self.fingerprint = fingerprint(made.certificate)
        certificate = ssl.PrivateCertificate.loadPEM(made.certificate + made.key)
        self.port = reactor.listenSSL(0, Site(Recorder(self)), certificate.options(), interface="127.0.0.1")
        self.number = self.port.getHost().port
        return self

    @property
    def endpoint(self):
        return Endpoint(apitoken=TOKEN, host="127.0.0.1", port=self.number, fingerprint=self.fingerprint)

    def close(self):
        return self.port.stopListening()

    def when(self, name):
        """A Deferred for the event of this name."""
        waiter = Deferred()
        self.waiting_for.setdefault(name, []).append(waiter)
        return waiter

    def happened(self, name):
        self.events.append(name)
        for waiter in self.waiting_for.pop(name, []):
            waiter.callback(None)

    # HTTP

    def answer_http(self, request, path):
        query = dict(parse_qsl(urlsplit(request.uri.decode()).query, keep_blank_values=True))
        method = request.method.decode()
        content = request.content.read().decode()
        if request.getHeader("content-type") == "application/json":
            body = json.loads(content)
        else:
            body = {k: v[-1] for k, v in parse_qs(content, keep_blank_values=True).items()}
        self.requests.append((method, path, query, body))
        self.headers.append(request.requestHeaders)
        self.happened(f"{method} {path}")
        if self.silent == f"{method} {path}":
            return NOT_DONE_YET
        answer = self.http.get((method, path))
        if callable(answer):
            answer = answer(query)
        if answer is None:
            answer = make_reply(501, f"Method '{method} {path}' not implemented")
        status, phrase, body = answer if isinstance(answer, tuple) else (200, "OK", {"data": answer})
        request.setResponseCode(status, phrase.encode())
        request.setHeader(b"content-type", b"application/json;charset=UTF-8")
        request.write(json.dumps(body).encode())
        request.finish()
        return NOT_DONE_YET

    # Websockets

    def opened(self, wire):
        if wire.connection.params["socket"].endswith(".mtunnel"):
            self.commander, self.command_wire = wire.connection, wire
        else:
            self.streams.append(wire.connection)
        self.happened(f"websocket {wire.connection.params['socket']}")

    def received(self, wire, payload):
        wire.connection.data += payload
        if wire.connection is self.commander:
            *lines, self._rest = (self._rest + payload).split(b"\n")
            for line in lines:
                self.answer_line(wire, line)
        elif self.abort_streams_after is not None and len(wire.connection.data) >= self.abort_streams_after:
            wire.transport.abortConnection()
        else:
            self.happened("payload")

    def closed(self, wire):
        if wire.connection is not self.commander and self._import is not None:
            self._import.stream_ended(wire.connection.close_code == 1000)
        wire.connection.ended.callback(None)
        self.happened(f"closed {wire.connection.params['socket']}")

    def answer_line(self, wire, line):
        request = json.loads(line)
        self.commands.append(request)
        name = request["cmd"]
        self.happened(name)
        if name == self.silent:
            return
        if name in self.fail:
            reply = {"success": False, "msg": f"failed to handle '{name}' command - {self.fail[name]}"}
        elif name in self.replies:
            reply = self.replies[name]
        else:
            reply = getattr(self, "do_" + name.replace("-", "_"))(request)
        if isinstance(reply, Deferred):
            reply.addCallback(lambda later: self.send(wire, later))
        else:
            self.send(wire, reply)

    def send(self, wire, reply):
        wire.sendMessage(json.dumps({"success": True, **reply}).encode() + b"\n", isBinary=True)

    # Commands

    def do_version(self, request):
        return {"api": 2, "age": 0}

    def do_bwlimit(self, request):
        return {"bwlimit": request["bwlimit"]}

    def do_disk_import(self, request):
        self._import = Import(f"{request['storage']}:{self.vmid}/{request['volname']}", list(self.lines))
        known = [stream for stream in request["export_formats"].split(",") if stream in PROXMOX_STREAMS]
        self._import.fails = self.imports_fail
        return {"socket": f"/run/qemu-server/{self.vmid}.storage", "format": known[0]}

    def do_ticket(self, request):
        return {"ticket": "PVETUNNEL:6B035031::CD+/="}

    def do_query_disk_import(self, request):
        return self._import.query()

    def do_config(self, request):
        return {}

    do_unlock = do_quit = do_stop = do_nbdstop = do_resume = do_fstrim = do_config

    def do_disk(self, request):
        volid = f"{request['storage']}:{self.vmid}/vm-{self.vmid}-disk-{len(self.named('disk')) - 1}"
        return {"volid": volid, "drivestr": f"{volid},size=1M"}

    def do_start(self, request):
        run = f"/run/qemu-server/{self.vmid}"
        exports = {key: {"nbd_uri": f"nbd:unix:{run}_nbd.migrate:exportname=drive-{key}"}
                   for key in request["migrate_opts"]["nbd"]}  # fmt: skip
        memory = {"proto": "unix", "addr": f"{run}.migrate", "unix_sockets": [f"{run}_nbd.migrate"]}
        return {"migrate": memory, "drives": exports}

    def named(self, name):
        return [command for command in self.commands if command["cmd"] == name]


class Import:
    """An import: nothing to tell until its stream has ended; then some lines, then its end."""

    def __init__(self, volid, lines):
        self.volid, self.lines = volid, lines
        self.ended = None
        self.waiting = None
        self.fails = False

    def query(self):
        if self.ended is None:
            self.waiting = Deferred()
            return self.waiting
        if self.lines:
            return {"status": "pending", "msg": self.lines.pop(0)}
        if self.ended:
            return {"status": "complete", "volid": self.volid}
        return {"status": "error", "msg": "import process failed\n"}

    def stream_ended(self, orderly):
        if self.ended is None:
            self.ended = orderly and not self.fails
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.callback(self.query())
