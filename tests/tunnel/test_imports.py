from __future__ import annotations

from typing import Any

from mtunnel_tx.pve.guestconf import parse_guest_config
from mtunnel_tx.pve.storagetypes import STREAM_FORMATS
from mtunnel_tx.tunnel.disks import choose_stream
from tests.fakes import TOKEN, FakeStream
from tests.fakestorage import FakeChild
from tests.tunnel.case import DISK, IMPORT, TunnelCase

VOLID = "local:100/vm-100-disk-0.raw"
CLOUDINIT = "local:100/vm-100-cloudinit.raw"


class ImportTests(TunnelCase):
    def setUp(self) -> None:
        super().setUp()
        self.connect()

    @property
    def child(self) -> FakeChild:
        assert self.fake.storage.child is not None
        return self.fake.storage.child

    def query(self) -> dict[str, Any]:
        return self.ask(cmd="query-disk-import")

    def begin_import(self, **changes: Any) -> dict[str, Any]:
        return self.ask(**{**IMPORT, **changes})

    def test_a_whole_import(self) -> None:
        reply = self.begin_import()
        expected = {"success": True, "socket": "/run/qemu-server/100.storage", "format": "raw+size"}
        self.assertEqual(reply, expected)
        self.child.lines.append("Formatting '/x'\n")
        self.assertEqual(self.query(), {"success": True, "status": "pending", "msg": "Formatting '/x'\n"})
        self.child.lines.append(f"successfully imported '{VOLID}'\n")
        self.fake.storage.sizes[VOLID] = 1
        self.child.exit(0)
        self.assertFalse(self.child.let_go)
        self.assertEqual(self.query(), {"success": True, "status": "complete", "volid": VOLID})
        self.assertTrue(self.child.let_go)
        text = "failed to handle 'query-disk-import' command - no disk import running\n"
        self.assertEqual(self.msg(cmd="query-disk-import"), text)
        self.assertIn("unknown socket", self._ticket_error())
        self.assertIn(f"sync {VOLID}", self.events)
        self.assertIn("disk-import: Formatting '/x'\n", self.task.lines)
        self.assertIn("ready\n", self.task.lines)

    def test_a_name_with_an_apostrophe(self) -> None:
        volid = "local:100/vm-100-o'clock.raw"
        self.begin_import()
        self.child.lines.append(f"successfully imported '{volid}'\n")
        self.fake.storage.sizes[volid] = 1
        self.child.exit(0)
        self.assertEqual(self.query(), {"success": True, "status": "complete", "volid": volid})

    def _ticket_error(self) -> str:
        return self.msg(cmd="ticket", path="/run/qemu-server/100.storage")

    def test_query_waits_five_seconds(self) -> None:
        self.begin_import()
        waiting = self.begin(cmd="query-disk-import")
        self.fake.clock.advance(4.9)
        self.assertNoResult(waiting)
        self.fake.clock.advance(0.2)
        self.assertEqual(self.successResultOf(waiting), {"success": True, "status": "pending", "msg": ""})

    def test_one_at_a_time_until_its_end_was_told(self) -> None:
        self.begin_import()
        text = "failed to handle 'disk-import' command - disk import already running as PID '4711'\n"
        self.assertEqual(self.msg(**IMPORT), text)
        self.child.exit(1)
        self.assertEqual(self.msg(**IMPORT), text)
        self.assertEqual(self.query(), {"success": True, "status": "error", "msg": "import process failed\n"})
        self.assertTrue(self.begin_import()["success"])

    def test_the_last_word_has_the_reason(self) -> None:
        self.begin_import()
        self.child.lines += ["Formatting 'x', fmt=raw\n", "write: No space left on device\n", "1+0 records in\n"]
        self.child.exit(1)
        replies = [self.query() for _ in range(4)]
        self.assertEqual([reply["status"] for reply in replies], [*["pending"] * 3, "error"])
        self.assertEqual(replies[-1]["msg"], "import process failed - write: No space left on device\n")

    def test_lines_of_a_failed_import_come_first(self) -> None:
        self.begin_import()
        self.child.lines.append("import: no size found in export header, aborting.\n")
        self.child.exit(255)
        self.assertEqual(self.query()["msg"], "import: no size found in export header, aborting.\n")
        self.assertEqual(self.query()["status"], "error")

    def test_what_a_failed_child_left_is_freed(self) -> None:
        self.begin_import()
        self.fake.storage.sizes[VOLID] = 1
        self.child.exit(-9)
        self.assertEqual(self.query()["status"], "error")
        self.assertEqual(self.fake.storage.sizes, {})

    def test_a_child_that_fails_after_success_has_failed(self) -> None:
        self.begin_import()
        self.child.lines.append(f"successfully imported '{VOLID}'\n")
        self.fake.storage.sizes[VOLID] = 1
        self.child.exit(1)
        self.assertEqual(self.query()["status"], "error")
        self.assertEqual(self.fake.storage.sizes, {})

    def test_first_line_that_is_not_ready_is_the_error(self) -> None:
        child = FakeChild(self.fake.clock, "storage 'x' is offline\n")
        self.fake.storage.next_children.append(child)
        text = "failed to handle 'disk-import' command - storage 'x' is offline\n"
        self.assertEqual(self.msg(**IMPORT), text)
        self.assertTrue(child.killed)
        self.assertIn("no disk import running", self.msg(cmd="query-disk-import"))

    def test_never_ready(self) -> None:
        self.fake.storage.next_children.append(FakeChild(self.fake.clock))
        waiting = self.begin(**IMPORT)
        self.fake.clock.advance(5)
        self.assertIn("did not become ready", self.successResultOf(waiting)["msg"])

    def test_a_volume_that_names_other_files_is_freed(self) -> None:
        self.begin_import()
        self.fake.storage.references[VOLID] = "image has a backing file"
        self.child.lines.append(f"successfully imported '{VOLID}'\n")
        self.fake.storage.sizes[VOLID] = 1
        self.child.exit(0)
        text = "failed to handle 'query-disk-import' command - image has a backing file\n"
        self.assertEqual(self.msg(cmd="query-disk-import"), text)
        self.assertEqual(self.fake.storage.sizes, {})

    def test_a_child_that_names_another_vms_volume_is_not_believed(self) -> None:
        self.begin_import()
        self.child.lines.append("successfully imported 'local:101/vm-101-disk-0.raw'\n")
        self.child.exit(0)
        self.assertIn("does not belong to VM 100", self.msg(cmd="query-disk-import"))

    def test_an_aborted_stream_kills_the_child_first(self) -> None:
        self.begin_import()
        ticket = self.ask(cmd="ticket", path="/run/qemu-server/100.storage")["ticket"]
        route = self.registry.route(100, "/run/qemu-server/100.storage", TOKEN, ticket)
        route.opened(FakeStream())
        self.now(route.closed(orderly=False))
        self.assertTrue(self.child.killed)
        self.assertEqual(self.query()["status"], "error")

    def test_an_orderly_stream_leaves_the_child_alone(self) -> None:
        self.begin_import()
        ticket = self.ask(cmd="ticket", path="/run/qemu-server/100.storage")["ticket"]
        route = self.registry.route(100, "/run/qemu-server/100.storage", TOKEN, ticket)
        route.opened(FakeStream())
        self.now(route.closed(orderly=True))
        self.assertFalse(self.child.killed)

    def test_names(self) -> None:
        for volname, text in (
            ("a/b", "unable to parse volume filename 'a/b'"),
            ("", "unable to parse volume filename ''"),
            (".raw", "unable to parse volume filename '.raw'"),
            ("foo bar", "unable to parse directory volume name '100/foo bar.raw'"),
            ("vm-101-disk-0.raw", "volume 'local:100/vm-101-disk-0.raw' does not belong to VM 100"),
        ):
            reply = self.msg(**{**IMPORT, "volname": volname})
            self.assertEqual(reply, f"failed to handle 'disk-import' command - {text}\n")

    def test_arguments_of_the_child(self) -> None:
        changes = {"with_snapshots": 1, "format": "qcow2", "export_formats": "raw+size,qcow2+size", "snapshot": "s1"}
        self.begin_import(**changes, volname="vm-100-disk-0.qcow2", migration_snapshot=1, allow_rename=0)
        request = self.fake.storage.requests[-1]
        self.assertEqual(request.volid, "local:100/vm-100-disk-0.qcow2")
        self.assertEqual((request.stream_format, request.snapshot, request.delete_snapshot), ("qcow2+size", "s1", "s1"))
        self.assertEqual((request.with_snapshots, request.allow_rename), (True, False))

    def test_bare_name_on_a_block_storage(self) -> None:
        self.begin_import(storage="thin", volname="vm-100-disk-0")
        self.assertEqual(self.fake.storage.requests[-1].volid, "thin:vm-100-disk-0")

    def test_formats(self) -> None:
        text = "failed to handle 'disk-import' command - unsupported format 'qcow2' for storage type lvmthin\n"
        self.assertEqual(self.msg(**{**IMPORT, "storage": "thin", "format": "qcow2"}), text)
        text = "failed to handle 'disk-import' command - no matching import/export format found for storage 'local'\n"
        self.assertEqual(self.msg(**{**IMPORT, "export_formats": "zfs;btrfs"}), text)

    def begin_cloudinit(self, **changes: Any) -> list[str]:
        """Begin the import of a cloud-init drive. Returns: what happened at the storage."""
        self.fake.storage.events.clear()
        self.begin_import(volname="vm-100-cloudinit.raw", **{"allow_rename": 0, **changes})
        return [event for event in self.fake.storage.events if not event.startswith("journal")]

    def test_a_cloudinit_drive_that_no_guest_has_makes_room(self) -> None:
        self.fake.storage.sizes[CLOUDINIT] = 4 << 20
        self.assertEqual(self.begin_cloudinit(), [f"free {CLOUDINIT}", f"import {CLOUDINIT}"])
        self.assertIn(
            f"freeing volume '{CLOUDINIT}', a cloud-init drive that no guest has", self.fake.tasks.started[-1].lines
        )

    def test_one_that_a_guest_has_does_not(self) -> None:
        self.fake.storage.sizes[CLOUDINIT] = 4 << 20
        self.fake.guests.configs[101] = parse_guest_config(f"ide2: {CLOUDINIT},media=cdrom\n")
        self.assertEqual(self.begin_cloudinit(), [f"import {CLOUDINIT}"])

    def test_nothing_there_and_other_disks(self) -> None:
        self.assertEqual(self.begin_cloudinit(), [f"import {CLOUDINIT}"])

    def test_a_disk_is_never_removed(self) -> None:
        self.fake.storage.sizes[VOLID] = 4 << 20
        self.fake.storage.events.clear()
        self.begin_import(allow_rename=0)
        self.assertNotIn(f"free {VOLID}", self.fake.storage.events)

    def test_a_sparse_stream_only_where_pvesm_knows_it(self) -> None:
        request = {**IMPORT, "export_formats": "raw+sparse,raw+size"}
        self.fake.storage.stream_formats = frozenset(STREAM_FORMATS)
        self.begin_import(**request)
        self.assertEqual(self.fake.storage.requests[-1].stream_format, "raw+sparse")

    def test_proxmox_knows_no_sparse_stream(self) -> None:
        self.begin_import(**{**IMPORT, "export_formats": "raw+sparse,raw+size"})
        self.assertEqual(self.fake.storage.requests[-1].stream_format, "raw+size")

    def test_a_conversion_is_asked_for_and_possible(self) -> None:
        """A source that does not ask sees what Proxmox says."""
        request = {**IMPORT, "format": "qcow2", "volname": "vm-100-disk-0"}
        refusal = "no matching import/export format found for storage 'local'"
        self.assertIn(refusal, self.msg(**request, convert=1))
        self.fake.storage.converts = True
        self.assertIn(refusal, self.msg(**request))
        self.assertEqual(self.begin_import(**request, convert=1)["format"], "raw+size")
        made = self.fake.storage.requests[-1]
        self.assertEqual((made.volid, made.convert), ("local:100/vm-100-disk-0.qcow2", True))

    def test_stream_choice(self) -> None:
        entries = self.fake.storage.config()
        offered = ("qcow2+size", "raw+size", "vmdk+size")
        self.assertEqual(choose_stream(entries["local"], "qcow2", offered, with_snapshots=True), "qcow2+size")
        self.assertEqual(choose_stream(entries["local"], "vmdk", offered, with_snapshots=True), "vmdk+size")
        self.assertEqual(choose_stream(entries["local"], "raw", offered, with_snapshots=False), "raw+size")
        self.assertEqual(choose_stream(entries["thin"], "raw", offered, with_snapshots=False), "raw+size")


class DiskTests(TunnelCase):
    def setUp(self) -> None:
        super().setUp()
        self.connect()

    def test_reply_is_volume_and_drive_string(self) -> None:
        drive = {"interface": "scsi", "index": 0, "size": 1 << 30, "discard": "on", "file": "x", "format": "qcow2"}
        reply = self.ask(cmd="disk", storage="local", format="qcow2", drive=drive)
        volid = "local:100/vm-100-disk-0.qcow2"
        drivestr = f"{volid},discard=on,format=qcow2,size=1G"
        self.assertEqual(reply, {"success": True, "volid": volid, "drivestr": drivestr})

    def test_default_format_where_the_asked_one_is_not_possible(self) -> None:
        self.assertIn(".raw", self.ask(cmd="disk", storage="local", format="cloop", drive={"size": 4096})["volid"])

    def test_sizes(self) -> None:
        for size in (0, -1, 1 << 63, "lots"):
            self.assertIn("unable to allocate a disk of", self.msg(cmd="disk", storage="local", drive={"size": size}))
        self.assertIn("without a size", self.msg(cmd="disk", storage="local", drive={}))
        self.assertEqual(self.fake.storage.sizes, {})

    def test_a_failed_allocation_leaves_nothing(self) -> None:
        from mtunnel_tx.errors import BackendFailed

        self.fake.storage.alloc_error = BackendFailed("disk full")
        self.assertEqual(self.msg(**DISK), "failed to handle 'disk' command - disk full\n")
        self.assertEqual(self.fake.journal.records[100][-1], {"do": "made_nothing", "storage": "local"})
