"""A tunnel on fakes, ready to be talked to."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.ports.lines import Answerer
from mtunnel_tx.ports.tunnels import Opened
from tests.fakes import TOKEN, FakeHost, FakeTask

IMPORT = {
    "cmd": "disk-import",
    "volname": "vm-100-disk-0.raw",
    "format": "raw",
    "export_formats": "raw+size",
    "storage": "local",
    "migration_snapshot": 0,
    "with_snapshots": 0,
    "allow_rename": 1,
}
DISK = {"cmd": "disk", "storage": "local", "format": "raw", "drive": {"interface": "scsi", "index": 0, "size": 1 << 30}}
CONFIG = {"cmd": "config", "conf": "memory: 512\nname: test\n"}


class TunnelCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.fake = FakeHost(self.mktemp())
        self.registry = self.fake.registry
        self.events = self.fake.events

    def now(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def fails(self, work: Coroutine[Any, Any, Any], kind: type[Exception]) -> Any:
        return self.failureResultOf(Deferred.fromCoroutine(work), kind).value

    def open(self, vmid: int = 100) -> Opened:
        return self.now(self.registry.open(vmid, TOKEN, (), ()))

    def connect(self, vmid: int = 100) -> Answerer:
        self.open(vmid)
        self.line = self.answerer(vmid)
        assert self.line.connected()
        return self.line

    def answerer(self, vmid: int = 100) -> Answerer:
        return next(line for path, (line, _) in self.fake.listening.items() if path.name == f"{vmid}.mtunnel")

    def begin(self, **request: Any) -> Deferred[dict[str, Any]]:
        reply = Deferred.fromCoroutine(self.line.answer(json.dumps(request).encode()))
        return reply.addCallback(json.loads)

    def ask(self, **request: Any) -> dict[str, Any]:
        return self.successResultOf(self.begin(**request))

    def msg(self, **request: Any) -> str:
        reply = self.ask(**request)
        self.assertIs(reply["success"], False)
        return reply["msg"]

    @property
    def task(self) -> FakeTask:
        return self.fake.tasks.started[-1]
