import struct

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from mtunnel_tx.errors import BackendFailed, TunnelError, WrongState
from mtunnel_tx.pve.maps import parse_map
from mtunnel_tx.source.migration import LAST_WORDS_S
from mtunnel_tx.source.survey import Obstructed
from mtunnel_tx.waiting import pause
from tests.patience import patience_s
from tests.source.case import CONF, FIREWALL, QCOW2, RAW, SourceCase
from tests.source.target import TOKEN, make_reply

LOOKS = [
    ("GET", "/cluster/status", {}),
    ("GET", "/version", {}),
    ("GET", "/nodes/localhost/storage", {}),
    ("GET", "/cluster/resources", {"type": "vm"}),
    ("GET", "/nodes/localhost/storage/tank/content", {"vmid": "300"}),
    ("GET", "/access/permissions", {"path": "/vms/300"}),
]
SENT = CONF.replace("local:100/vm-100-disk-", "tank:300/vm-300-disk-").replace("bridge=vmbr0", "bridge=vmbr9")
PATH = "/run/qemu-server/300.storage"


def disk_import(name, format):
    return {
        "cmd": "disk-import",
        "volname": name,
        "format": format,
        "export_formats": f"{format}+size",
        "storage": "tank",
        "migration_snapshot": 0,
        "with_snapshots": int(format == "qcow2"),
        "allow_rename": 1,
    }


class WholeMigrationTest(SourceCase):
    """Everything that a target sees, in order."""

    async def setUp(self):
        super().setUp()
        self.firewall_file.write_text(FIREWALL)
        self.summary = await self.migrate(bridges=parse_map("vmbr0:vmbr9"))
        await self.target.commander.ended

    def test_http_requests(self):
        post = ("POST", "/nodes/pvetest/qemu/300/mtunnel", {}, {"storages": "tank", "bridges": "vmbr9"})
        *looks, last = self.target.requests
        self.assertCountEqual(looks, [(*look, {}) for look in LOOKS])  # they are asked beside each other
        self.assertEqual(last, post)
        for headers in self.target.headers:
            self.assertEqual(headers.getRawHeaders("authorization"), [TOKEN])

    def test_commands(self):
        bwlimit = {"cmd": "bwlimit", "operation": "migration", "storages": ["tank"], "bwlimit": None}
        ticket = {"cmd": "ticket", "path": PATH}
        query = {"cmd": "query-disk-import"}
        self.assertEqual(
            self.target.commands,
            [
                {"cmd": "version"},
                bwlimit,
                bwlimit,
                disk_import("vm-300-disk-0.raw", "raw"),
                ticket,
                query,
                query,
                disk_import("vm-300-disk-1.qcow2", "qcow2"),
                ticket,
                query,
                query,
                {"cmd": "config", "conf": SENT, "firewall-config": FIREWALL},
                {"cmd": "unlock"},
                {"cmd": "quit", "cleanup": 0},
            ],
        )

    def test_websockets(self):
        commander, (raw, qcow2) = self.target.commander, self.target.streams
        self.assertEqual(
            commander.query,
            "ticket=PVETUNNEL%3A6B035030%3A%3AAB%2B%2F%3D&socket=%2Frun%2Fqemu-server%2F300.mtunnel",
        )
        for connection in (raw, qcow2):
            self.assertEqual(connection.params, {"socket": PATH, "ticket": "PVETUNNEL:6B035031::CD+/="})
        for connection in (commander, raw, qcow2):
            self.assertEqual(connection.authorization, TOKEN)
            self.assertTrue(connection.conforms())
            self.assertEqual(connection.close_code, 1000)

    def test_streams(self):
        raw, qcow2 = self.target.streams
        self.assertEqual(bytes(raw.data), struct.pack("<Q", len(RAW)) + RAW)
        self.assertEqual(bytes(qcow2.data), struct.pack("<Q", len(QCOW2)) + QCOW2)
        self.assertEqual([child[1:] for child in self.storage.children], [
            ("local:100/vm-100-disk-0.raw", "raw+size", False),
            ("local:100/vm-100-disk-1.qcow2", "qcow2+size", True),
        ])  # fmt: skip

    def test_the_source_has_its_copy_which_does_not_start(self):
        self.assert_moved()
        self.assertEqual(self.firewall_file.read_text(), FIREWALL)
        self.assertEqual(self.storage.freed, [])

    def test_those_who_watch(self):
        sizes = [len(RAW) + 8, len(QCOW2) + 8]
        self.assertEqual(self.watcher.begun, [("scsi0", sizes[0]), ("virtio1", sizes[1])])
        self.assertEqual(self.watcher.moved, sum(sizes))
        self.assertEqual(self.watcher.finished, 2)
        self.assertEqual((self.summary.disks, self.summary.size_bytes), (2, sum(sizes)))
        self.assertIn("target: Formatting 'x', fmt=raw size=1048576 preallocation=off", self.watcher.said)


class VariantsTest(SourceCase):
    async def test_no_disks_no_firewall_same_bridge(self):
        self.conf_file.write_text("name: empty\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\n")
        await self.migrate()
        self.assertEqual(self.target.requests[-1][3], {"storages": "", "bridges": "vmbr0"})
        self.assertEqual([command["cmd"] for command in self.target.commands], ["version", "config", "unlock", "quit"])
        self.assertIsNone(self.target.commands[1]["firewall-config"])

    async def test_marked_while_it_runs(self):
        self.target.replies["config"] = Deferred()
        reached = self.target.when("config")
        running = self.migrate()
        await reached
        self.assertEqual(self.guests.read(100).lock, "migrate")
        self.assertNotIn("lock", self.target.named("config")[0]["conf"])
        self.target.replies["config"].callback({})
        await running
        self.assert_moved()

    async def test_somebody_else_locked_it_meanwhile(self):
        self.target.http["GET", "/version"] = self.lock_now
        with self.assertRaises(WrongState) as caught:
            await self.migrate()
        self.assertEqual(caught.exception.text, "the config of VM 100 was changed meanwhile")
        self.assertEqual(self.guests.read(100).lock, "backup")
        self.assertNotIn("POST /nodes/pvetest/qemu/300/mtunnel", self.target.events)

    def lock_now(self, query):
        self.conf_file.write_text("lock: backup\n" + CONF)
        return {"repoid": "x"}

    async def test_a_foreign_lock_stays(self):
        """Whoever replaced our mark keeps its own."""
        self.target.replies["unlock"] = Deferred()
        reached = self.target.when("unlock")
        running = self.migrate()
        await reached
        self.conf_file.write_text("lock: backup\n" + CONF)
        self.target.replies["unlock"].callback({})
        await running
        self.assertEqual(self.guests.read(100).lock, "backup")

    async def test_cloudinit_is_not_renamed(self):
        self.conf_file.write_text("ide2: local:100/vm-100-cloudinit.qcow2,media=cdrom\n")
        self.storage.add("100/vm-100-cloudinit.qcow2", QCOW2)
        await self.migrate()
        command = self.target.named("disk-import")[0]
        self.assertEqual((command["volname"], command["allow_rename"]), ("vm-300-cloudinit.qcow2", 0))

    async def test_the_custom_cpu_model_is_asked_for(self):
        self.conf_file.write_text("cpu: custom-mine\n")
        self.target.http["GET", "/cluster/qemu/custom-cpu-models/mine"] = {"cputype": "custom-mine"}
        await self.migrate()
        self.assertIn("GET /cluster/qemu/custom-cpu-models/mine", self.target.events)

    async def test_the_target_chooses_the_stream(self):
        self.target.replies["disk-import"] = {"socket": PATH, "format": "tar+size"}
        with self.assertRaises(BackendFailed) as caught:
            await self.migrate()
        self.assertIn("was not offered", caught.exception.text)

    async def test_a_foreign_socket_is_refused(self):
        self.target.replies["disk-import"] = {"socket": "/run/qemu-server/301.storage", "format": "raw+size"}
        with self.assertRaises(BackendFailed):
            await self.migrate()
        self.assertEqual(self.target.streams, [])


class FailuresTest(SourceCase):
    """Whatever fails: the target is told to clean up, and the source is as it was."""

    async def fails(self, *texts, **changes):
        with self.assertRaises(TunnelError) as caught:
            await self.migrate(**changes)
        for text in texts:
            self.assertIn(text, caught.exception.text)
        self.assert_unlocked()
        self.assertEqual(self.storage.freed, [])
        return caught.exception

    def assert_cleaned_up(self):
        self.assertEqual(self.target.commands[-1], {"cmd": "quit", "cleanup": 1})
        self.assertEqual(len(self.target.named("quit")), 1)

    async def test_each_command(self):
        for name in ("version", "bwlimit", "disk-import", "ticket", "query-disk-import", "config", "unlock"):
            self.target.commands.clear()
            self.target.fail = {name: "the reason\n"}
            await self.fails(f"target: failed to handle '{name}' command - the reason")
            self.assert_cleaned_up()

    async def test_the_post(self):
        self.target.http["POST", "/nodes/pvetest/qemu/300/mtunnel"] = make_reply(
            400, "Parameter verification failed.", data=None, errors={"vmid": "unable to create - VM 300 is there\n"}
        )
        await self.fails("400 Parameter verification failed. vmid: unable to create - VM 300 is there")
        self.assertEqual(self.target.commands, [])

    async def test_a_missing_privilege(self):
        self.target.http["POST", "/nodes/pvetest/qemu/300/mtunnel"] = make_reply(
            403, "Permission check failed (/, Sys.Incoming)"
        )
        await self.fails("403 Permission check failed (/, Sys.Incoming)")

    async def test_no_websocket(self):
        self.target.refuse_websockets = True
        await self.fails("no websocket")
        self.assertEqual(self.target.commands, [])

    async def test_another_protocol(self):
        for reply in ({"api": 1, "age": 0}, {"api": 5, "age": 2}, {"api": "x", "age": 0}, {"api": True, "age": 0}, {}):
            self.target.replies["version"] = reply
            await self.fails("")
            self.assert_cleaned_up()
            self.target.commands.clear()
        self.target.replies["version"] = {"api": "3", "age": 1}
        await self.migrate()

    async def test_the_export_fails(self):
        """A Close frame would tell the target that this was all."""
        self.storage.mode = "fail"
        await self.fails("scsi0: export failed with exit code 1: dd: error reading 'x': Input/output error")
        stream = self.target.streams[0]
        await stream.ended
        self.assertIsNone(stream.close_code)
        self.assert_cleaned_up()

    async def test_the_target_breaks_the_stream(self):
        self.target.abort_streams_after = 1000
        self.storage.mode = "hang"
        await self.fails("the disk connection to 127.0.0.1 was lost: ", "scsi0: ", "import process failed")
        self.assert_cleaned_up()
        self.assertNotEqual(await self.storage.children[0][0].ended(), 0)

    async def test_the_import_fails_at_its_end(self):
        self.target.replies["query-disk-import"] = {"status": "error", "msg": "import process failed\n"}
        await self.fails("target: import process failed")
        self.assert_cleaned_up()

    async def test_the_reason_scrolled_by(self):
        """The last line has it: what an import says at its end is nothing but that."""
        self.target.lines = ["Formatting 'x', fmt=raw size=1048576\n", "file 'vm-300-disk-0.raw' already exists\n"]
        self.target.imports_fail = True
        await self.fails("target: import process failed - file 'vm-300-disk-0.raw' already exists")
        self.assert_cleaned_up()

    async def test_an_unknown_status(self):
        self.target.replies["query-disk-import"] = {"status": "well"}
        await self.fails("unknown status")
        self.assert_cleaned_up()

    async def test_complete_without_a_volume(self):
        self.target.replies["query-disk-import"] = {"status": "complete"}
        await self.fails("has no 'volid'")
        self.assert_cleaned_up()

    async def test_the_cleanup_fails_too(self):
        self.target.fail = {"config": "no", "quit": "neither"}
        await self.fails("command - no")
        said = "cleanup at the target failed: target: failed to handle 'quit' command - neither"
        self.assertIn(said, self.watcher.warned)

    async def test_interrupted(self):
        for event in ("POST /nodes/pvetest/qemu/300/mtunnel", "version", "disk-import", "payload", "config"):
            self.target.commands.clear()
            self.storage.mode = "hang" if event == "payload" else "well"
            reached = self.target.when(event)
            running = self.migrate()
            await reached
            running.cancel()
            with self.assertRaises(CancelledError):
                await running
            self.assert_unlocked()
            self.assertEqual(self.target.commands[-1], {"cmd": "quit", "cleanup": 1}, event)
            self.assertEqual(len(self.target.named("quit")), 1, event)
            for child, *_ in self.storage.children:
                await child.ended()

    async def test_interrupted_at_the_hand_over(self):
        """Too late: everything that was asked for is done."""
        reached = self.target.when("unlock")
        running = self.migrate()
        await reached
        running.cancel()
        await running
        self.assert_moved()

    async def not_waited_for(self, event):
        """The target is silent, and the connection ends."""
        self.target.silent = event
        reached = self.target.when(event)
        running = self.migrate()
        await reached
        began = reactor.seconds()
        running.cancel()
        self.world_now.impatient.callback(None)
        with self.assertRaises((CancelledError, TunnelError)):
            await running
        self.assertLess(reactor.seconds() - began, patience_s(3), event)

    async def test_target_that_is_not_waited_for(self):
        """Everything here is as it was."""
        for event in ("POST /nodes/pvetest/qemu/300/mtunnel", "version", "disk-import", "config"):
            await self.not_waited_for(event)
            self.assert_unlocked()

    async def test_target_that_is_not_waited_for_at_unlock(self):
        """It may have heard it: nobody knows whose the VM is, so it stays locked until somebody decides."""
        await self.not_waited_for("unlock")
        self.assertEqual((self.guests.read(100).lock, self.journal.standing()), ("migrate", [100]))
        self.assertIn("'mtunnel settle 100 --there'", self.watcher.said[-1])

    async def test_target_that_is_not_waited_for_at_its_last_word(self):
        await self.not_waited_for("quit")
        self.assert_moved()

    async def test_target_of_our_own_that_does_not_hear_the_last_words(self):
        """A moment at most: whoever interrupts twice does not wait."""
        last_words = "POST /nodes/localhost/qemu/300/mtunnellate"
        self.target.http["GET", "/version"] = {"version": "9.2.0", "release": "9.2", "repoid": "mtunnel-tx-1.0"}
        self.target.silent = "config"
        reached, asked = self.target.when("config"), self.target.when(last_words)
        running = self.migrate()
        await reached
        await pause(reactor, 0)
        self.target.silent = last_words
        running.cancel()
        self.world_now.impatient.callback(None)
        await asked
        began = reactor.seconds()
        with self.assertRaises((CancelledError, TunnelError)):
            await running
        self.assertLess(reactor.seconds() - began, patience_s(LAST_WORDS_S + 15))
        self.assertIn("was not waited for: it may hold VM 300", self.watcher.said[-1])
        self.assert_unlocked()

    async def test_interrupted_before_the_tunnel(self):
        reached = self.target.when("GET /version")
        running = self.migrate()
        await reached
        running.cancel()
        with self.assertRaises((CancelledError, Obstructed)):
            await running
        self.assert_unlocked()
        self.assertEqual(self.target.commands, [])
