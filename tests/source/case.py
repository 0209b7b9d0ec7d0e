"""A source with two disks, and a recorded target."""

from pathlib import Path

import treq
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.guests import GuestFiles
from mtunnel_tx.backends.journal import LEAVING, FileJournal
from mtunnel_tx.backends.programs import HostPrograms
from mtunnel_tx.http.client import open_stream, pinned_agent
from mtunnel_tx.pve.maps import parse_map
from mtunnel_tx.source.migration import Migration
from mtunnel_tx.source.order import Order, SourceWorld
from mtunnel_tx.source.target import TargetApi
from mtunnel_tx.stream.pump import Pump
from tests.source.fakes import FolderStorage, Watcher
from tests.source.target import RecordedTarget

CONF = """boot: order=scsi0
memory: 512
name: web
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0
scsi0: local:100/vm-100-disk-0.raw,discard=on,size=1M
virtio1: local:100/vm-100-disk-1.qcow2,size=2M
vmgenid: 11111111-1111-1111-1111-111111111111
"""
WHEN_S = 1_790_856_000.0
MOVED = CONF.replace("name: ", "moved: to 127.0.0.1 as VM 300 on 2026-10-01 12:00 UTC\nname: ")
FIREWALL = "[OPTIONS]\n\nenable: 1\n"
RAW = bytes(range(256)) * 4096
QCOW2 = b"QFI\xfb" + b"\x01\x02\x03" * 69972


class SourceCase(TestCase):
    def setUp(self):
        self.target = RecordedTarget().listen(reactor)
        self.addCleanup(self.target.close)
        self.folder = Path(self.mktemp()).absolute()
        threads = ReactorThreads(reactor, reactor.getThreadPool())
        self.guests = GuestFiles(
            threads,
            reactor,
            pve_dir=self.folder / "pve",
            lock_dir=self.folder / "lock",
            node="here",
        )
        self.conf_file = self.folder / "pve/nodes/here/qemu-server/100.conf"
        self.conf_file.parent.mkdir(parents=True)
        self.conf_file.write_text(CONF)
        self.firewall_file = self.folder / "pve/firewall/100.fw"
        self.firewall_file.parent.mkdir(parents=True)
        self.storage = FolderStorage(reactor, self.folder)
        self.storage.add("100/vm-100-disk-0.raw", RAW)
        self.storage.add("100/vm-100-disk-1.qcow2", QCOW2)
        self.journal = FileJournal(threads, self.folder / "state", LEAVING)
        self.watcher = Watcher()
        self.machines = None
        self.marks_moves = True
        self.running = False

    def world(self):
        endpoint = self.target.endpoint
        return SourceWorld(
            reactor=reactor,
            guests=self.guests,
            storage=self.storage,
            running=lambda vmid: self.running or (self.machines is not None and self.machines.running(vmid)),
            machines=self.machines,
            marks_moves=self.marks_moves,
            runtime_dir=self.folder,
            journal=self.journal,
            programs=HostPrograms(),
            wall_s=lambda: WHEN_S,
            target=TargetApi(treq.client.HTTPClient(pinned_agent(reactor, endpoint)), endpoint, reactor),
            dial=self.dial(endpoint),
            progress=self.watcher,
        )

    def dial(self, endpoint):
        relay = Pump(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(relay.stop()))

        async def dial(path_query, sock, *, ends_with_peer=False):
            return await open_stream(reactor, endpoint, path_query, sock, relay=relay, ends_with_peer=ends_with_peer)

        return dial

    def migration(self, **changes):
        asked = {"vmid": 100, "target_vmid": 300, "storages": parse_map("local:tank"), **changes}
        self.world_now = self.world()
        return Migration(Order(**asked), self.world_now)

    def migrate(self, **changes):
        return Deferred.fromCoroutine(self.migration(**changes).run())

    def assert_unlocked(self):
        """It is here as it was."""
        self.assertEqual((self.conf_file.read_text(), self.journal.standing()), (CONF, []))

    def assert_moved(self):
        """Its copy is here, and does not start."""
        self.assertEqual((self.conf_file.read_text(), self.journal.standing()), (MOVED, []))
