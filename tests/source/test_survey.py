import os
from dataclasses import replace

from twisted.internet.defer import Deferred

from mtunnel_tx.errors import NotFound
from mtunnel_tx.pve.drive import TPM_STATE_BYTES
from mtunnel_tx.pve.imagefile import ImageFacts
from mtunnel_tx.pve.maps import parse_map
from mtunnel_tx.source.survey import Obstructed
from tests.source.case import CONF, SourceCase
from tests.source.machines import FakeMachine
from tests.source.target import TOKEN, make_reply

KEYS = (("boot", "Disk"), ("cpu", "CPU"), ("memory", "Memory"), ("name", "Options"), ("net0", "Network"),
        ("scsi0", "Disk"), ("virtio1", "Disk"))  # fmt: skip


class SurveyTest(SourceCase):
    def check(self, **changes):
        return Deferred.fromCoroutine(self.migration(**changes).check())

    async def obstacles(self, **changes):
        with self.assertRaises(Obstructed) as caught:
            await self.check(**changes)
        self.assertEqual(caught.exception.text, "; ".join(caught.exception.obstacles))
        self.assert_untouched()
        return list(caught.exception.obstacles)

    def assert_untouched(self):
        self.assertEqual({method for method, *_ in self.target.requests} | {"GET"}, {"GET"})
        self.assertEqual((self.target.commander, self.target.streams), (None, []))
        self.assertNotIn("lock: migrate", self.conf_file.read_text())
        self.assertEqual(self.storage.children, [])

    def write(self, *lines):
        self.conf_file.write_text(CONF + "".join(f"{line}\n" for line in lines))

    def permissions(self, held):
        self.target.http["GET", "/access/permissions"] = lambda query: {query["path"]: held.get(query["path"], {})}

    async def test_nothing_in_the_way(self):
        report = await self.check()
        self.assertEqual(
            [(row.disk.label, row.disk.size_bytes) for row in report.disks], [("scsi0", 1048576), ("virtio1", 209920)]
        )
        there = {"host": "127.0.0.1", "node": "pvetest", "version": "0a1b2c3d", "vmid": 300}
        self.assertEqual((report.target, report.findings), (there, ()))
        self.assert_untouched()

    async def test_it_came_and_is_not_settled(self):
        """Then no journal of its way out can be opened."""
        journal = self.folder / "state/journal/100.jsonl"
        journal.parent.mkdir(parents=True)
        journal.touch()
        self.assertEqual(await self.obstacles(), ["VM 100 waits for 'mtunnel settle 100'"])

    async def test_a_damaged_image(self):
        """The target would see it too, once all of it was there."""
        self.storage.damaged["local:100/vm-100-disk-1.qcow2"] = "image is cut short: it ends at 1 of 2 bytes"
        told = "virtio1: 'local:100/vm-100-disk-1.qcow2' cannot be sent: image is cut short: it ends at 1 of 2 bytes"
        self.assertEqual(await self.obstacles(), [f"{told}; 'qemu-img check' tells more"])

    async def test_both_sides_are_looked_at_at_the_same_time(self):
        asked, measure = Deferred(), self.storage.size_bytes
        path = ("GET", "/nodes/localhost/storage")
        listed = self.target.http[path]

        async def size_bytes(volid):
            if not asked.called:
                await asked
            return await measure(volid)

        def answer(query):
            asked.callback(None)
            return listed(query) if callable(listed) else listed

        self.patch(self.storage, "size_bytes", size_bytes)
        self.target.http[path] = answer
        self.assertEqual((await self.check()).findings, ())

    async def test_permissions_that_are_none(self):
        self.target.http["GET", "/access/permissions"] = lambda query: {query["path"]: 5}
        await self.check()

    async def test_the_state_of_a_tpm_is_looked_at_only(self):
        """swtpm has cut the file to what it uses; it is sent as what it was made as."""
        self.write("tpmstate0: local:100/vm-100-disk-5.raw,version=v2.0")
        path = self.storage._path("local:100/vm-100-disk-5.raw")
        path.write_bytes(b"x" * 1000)
        report = await self.check()
        (disk,) = [disk.disk for disk in report.disks if disk.disk.label == "tpmstate0"]
        self.assertEqual((disk.size_bytes, path.stat().st_size), (TPM_STATE_BYTES, 1000))

    async def test_everything_at_once(self):
        self.running = True
        self.write("lock: backup", "hostpci0: 0000:01:00.0", "ide2: local:iso/x.iso,media=cdrom", "cpu: custom-mine",
                   "tpmstate0: local:100/vm-100-disk-5.raw", "scsi5: local:100/vm-100-disk-9.raw")  # fmt: skip
        self.target.http["GET", "/cluster/resources"] = [{"vmid": 300, "type": "qemu", "node": "far", "name": "x"}]
        self.target.http["GET", "/nodes/localhost/storage"] = [{"storage": "tank", "content": "iso"}]
        self.target.http["GET", "/cluster/qemu/custom-cpu-models/mine"] = make_reply(500, "no such model 'mine'")
        self.permissions({"/": {"Sys.Audit": 1}})
        self.assertEqual(
            await self.obstacles(storages=parse_map("local:tank,other:nowhere")),
            [
                "VM 100 is running: give --online, or shut it down first",
                "VM 100 is locked (backup)",
                "hostpci0: a PCI device of this host cannot move: 0000:01:00.0",
                "ide2: the CD-ROM drive holds 'local:iso/x.iso', a file of this host; eject it first",
                "scsi5: volume 'local:100/vm-100-disk-9.raw' does not exist",
                "tpmstate0: volume 'local:100/vm-100-disk-5.raw' does not exist",
                "target: VM 300 already exists on node 'far'",
                "target: the token may not use storage 'nowhere'",
                "target: storage 'tank' does not support vm images",
                "target: 500 no such model 'mine'",
                "target: 403 Permission check failed (/vms/300, VM.Allocate)",
                "target: 403 Permission check failed (/, Sys.Incoming)",
                "target: 403 Permission check failed (/storage/tank, Datastore.AllocateSpace)",
                *(f"target: {key}: 403 Permission check failed (/vms/300, VM.Config.{what})" for key, what in KEYS),
            ],
        )

    async def test_the_token_may_do_it(self):
        vm = dict.fromkeys(("VM.Allocate", "VM.Config.Disk", "VM.Config.Memory", "VM.Config.Options"), 1)
        held = {"/vms/300": vm, "/": {"Sys.Incoming": 1}, "/storage/tank": {"Datastore.AllocateSpace": 0}}
        held["/sdn/zones/localnetwork/vmbr0"] = {"SDN.Use": 1}
        self.permissions(held)
        denied = "target: net0: 403 Permission check failed (/vms/300, VM.Config.Network)"
        self.assertEqual(await self.obstacles(), [denied])
        vm["VM.Config.Network"] = 1
        await self.check()
        # No byte moves before all of that is known.
        del vm["VM.Config.Memory"]
        with self.assertRaises(Obstructed):
            await self.migrate()
        self.assert_untouched()

    async def test_bridges(self):
        bridges = [{"iface": "vmbr9", "type": "bridge"}]
        self.target.http["GET", "/nodes/pvetest/network"] = lambda query: bridges if query else None
        await self.check(bridges=parse_map("vmbr0:vmbr9"))
        self.assertEqual(await self.obstacles(), ["target: bridge 'vmbr0' is not there, or the token may not use it"])
        await self.migrate()

    async def test_running(self):
        self.running = True
        self.assertEqual(await self.obstacles(online=True), ["VM 100 is running: it cannot be moved while it runs"])

    async def test_snapshots_and_pending_changes(self):
        self.write("", "[PENDING]", "memory: 1024", "", "[old]", "memory: 1")
        self.assertEqual(await self.obstacles(), ["VM 100 has snapshots: old", "VM 100 has pending changes: memory"])

    async def test_maps_that_leave_something_out(self):
        reasons = await self.obstacles(storages=parse_map("other:tank"), bridges=parse_map("vmbr7:vmbr8"))
        self.assertEqual(reasons, [
            "storage 'local': no target for 'local' in the map 'other:tank'",
            "bridge 'vmbr0': no target for 'vmbr0' in the map 'vmbr7:vmbr8'",
        ])  # fmt: skip

    async def test_a_size_that_qemu_cannot_read_as_it_is(self):
        self.storage.add("100/vm-100-disk-0.raw", bytes(1000))
        reason = "'local:100/vm-100-disk-0.raw' has 1000 bytes, no multiple of 512: resize it first"
        self.assertEqual(await self.obstacles(), [f"scsi0: {reason}"])

    def hold(self, **facts):
        """What is stored in the qcow2 beside its disk."""
        self.storage.facts["local:100/vm-100-disk-1.qcow2"] = ImageFacts(format="qcow2", size_bytes=0, **facts)

    async def test_what_a_mirror_cannot_carry(self):
        """A copy of the file has it, so that nothing stands in the way of a VM that is off."""
        self.hold(snapshots=("before", "after"), bitmaps=("b0",))
        await self.check(online=True)
        self.machines = FakeMachine()
        hint = "--drop-snapshots lets them go, and a move of the VM while it is off keeps them"
        start = "image would be lost by a move while it runs"
        self.assertEqual(
            await self.obstacles(online=True),
            [
                f"virtio1: the snapshots in its {start}: before, after; {hint}",
                f"virtio1: the bitmaps in its {start}: b0; {hint}",
            ],
        )
        await self.check(online=True, drop_snapshots=True)

    async def test_what_cannot_move_while_it_runs(self):
        """QEMU itself knows what it cannot send, and says so only after the disks where it is not asked before."""
        self.write("scsi3: local:100/vm-100-disk-3.raw,ro=1")
        self.storage.add("100/vm-100-disk-3.raw", bytes(1024))
        await self.check(online=True)
        self.machines = FakeMachine()
        self.machines.opened["scsi3"] = ("/d/vm-100-disk-3.raw", 1024)
        self.machines.blocked = ["The vmdk format used by node 'drive-virtio1' does not support live migration"]
        self.assertEqual(
            await self.obstacles(online=True),
            [
                "scsi3: it is read-only (ro=1), and cannot be copied while the VM runs: shut it down first",
                f"VM 100 cannot move while it runs: {self.machines.blocked[0]}",
            ],
        )

    async def test_qemu_has_other_memory_than_the_config(self):
        self.machines = FakeMachine()
        self.machines.memory_mib = 1024
        (text,) = await self.obstacles(online=True)
        self.assertRegex(text, "^the VM runs with 1024 MiB of memory, but its config says 512 MiB")

    async def test_memory_that_cannot_be_read(self):
        self.machines = FakeMachine()
        self.conf_file.write_text(CONF.replace("memory: 512", "memory: 16M"))
        (text,) = await self.obstacles(online=True)
        self.assertRegex(text, "^memory: cannot be read: .* - got '16M'$")

    async def test_qemu_has_other_disks_than_the_config(self):
        """A mirror would bring what QEMU has, under the name of what the config has."""
        self.write("scsi3: local:100/vm-100-disk-3.raw")
        self.storage.add("100/vm-100-disk-3.raw", bytes(1024))
        self.machines = FakeMachine()
        self.machines.opened = {
            "scsi0": ("/d/vm-100-disk-9.raw", 1048576),
            "virtio1": ("/d/vm-100-disk-1.qcow2", 209408),
            "sata4": ("/d/vm-100-disk-4.raw", 512),
        }
        self.assertEqual(
            await self.obstacles(online=True),
            [
                "scsi0: the VM runs with another file, '/d/vm-100-disk-9.raw'",
                "scsi3: the VM runs without this disk: it comes with its next start",
                "virtio1: the VM runs with 209408 bytes of it, but 'local:100/vm-100-disk-1.qcow2' has 209920",
                "sata4: the VM runs with this disk, which its config does not name",
            ],
        )

    async def test_a_protected_one_that_is_to_be_deleted(self):
        self.write("protection: 1")
        await self.check()
        self.assertEqual(
            await self.obstacles(delete=True),
            ["VM 100 is protected against removal: leave --delete out, or its `protection`"],
        )

    async def test_a_disk_without_a_size(self):
        self.storage.add("100/vm-100-disk-0.raw", b"")
        self.assertEqual(await self.obstacles(), ["scsi0: volume 'local:100/vm-100-disk-0.raw' has a size of 0 bytes"])

    async def test_an_encrypted_image(self):
        self.hold(encrypted=True)
        self.assertEqual(
            await self.obstacles(),
            ["virtio1: 'local:100/vm-100-disk-1.qcow2' cannot be sent: image is encrypted"],
        )

    async def test_an_image_with_a_backing_file(self):
        self.storage.backing["local:100/vm-100-disk-1.qcow2"] = "backing file '/x'"
        self.assertEqual(
            await self.obstacles(),
            ["virtio1: 'local:100/vm-100-disk-1.qcow2' cannot be sent: backing file '/x'"],
        )

    async def test_no_space(self):
        storages = [{"storage": "tank", "content": "images", "avail": 1 << 20}]
        self.target.http["GET", "/nodes/localhost/storage"] = storages
        (reason,) = await self.obstacles()
        self.assertRegex(reason, r"target: storage 'tank' has no space: \d+K? needed, 1M available")

    def make_thin(self, size_bytes):
        """A raw disk with 4 KiB of data; the other one has 210 KB."""
        self.storage.add("100/vm-100-disk-0.raw", bytes(range(256)) * 16)
        os.truncate(self.storage._path("local:100/vm-100-disk-0.raw"), size_bytes)

    async def test_a_thin_disk_needs_what_is_in_it(self):
        self.make_thin(200 << 30)
        storages = [{"storage": "tank", "content": "images", "avail": 1 << 20}]
        self.target.http["GET", "/nodes/localhost/storage"] = storages
        text = "target: storage 'tank' may become full: the disks can grow to 209715405K, 1M available"
        self.assertEqual((await self.check()).remarks, (text,))
        (reason,) = await self.obstacles(strict_space=True)
        self.assertEqual(reason, "target: storage 'tank' has no space: 209715405K needed, 1M available")

    async def test_no_space_for_what_is_in_a_thin_disk(self):
        self.make_thin(200 << 30)
        storages = [{"storage": "tank", "content": "images", "avail": 1 << 16}]
        self.target.http["GET", "/nodes/localhost/storage"] = storages
        (reason,) = await self.obstacles()
        self.assertRegex(reason, r"target: storage 'tank' has no space: 2\d\dK needed, 64K available")

    async def test_a_storage_type_that_takes_no_such_stream(self):
        storages = [{"storage": "tank", "content": "images", "type": "zfspool"}]
        self.target.http["GET", "/nodes/localhost/storage"] = storages
        first, second = await self.obstacles()
        reason = "storage type zfspool does not take {}, which is all that storage type dir can send"
        start = "target: {} cannot go to storage 'tank': "
        self.assertEqual(first, (start + reason).format("scsi0", "raw as raw+size"))
        self.assertEqual(second, (start + reason).format("virtio1", "raw as raw+size"))

    async def test_no_such_vm(self):
        self.conf_file.unlink()
        with self.assertRaises(NotFound):
            await self.check()

    async def test_no_local_node(self):
        self.target.http["GET", "/cluster/status"] = [{"type": "node", "name": "far", "local": 0}, None, 5]
        self.assertEqual(await self.obstacles(), ["target: its cluster status names no local node"])

    async def test_a_refused_read_is_one_obstacle_among_others(self):
        self.running = True
        self.target.http["GET", "/cluster/status"] = make_reply(403, "Permission check failed (/, Sys.Audit)")
        self.assertEqual(
            await self.obstacles(),
            [
                "VM 100 is running: give --online, or shut it down first",
                "target: 403 Permission check failed (/, Sys.Audit)",
            ],
        )

    async def test_a_wrong_token_ends_the_questions(self):
        self.target.http["GET", "/cluster/status"] = make_reply(401, "Authentication failed!")
        self.assertEqual(await self.obstacles(), ["target: 401 Authentication failed!"])
        self.assertEqual(len(self.target.requests), 1)
        self.assertEqual(len(self.target.requests), 1)

    async def test_another_certificate(self):
        self.target.fingerprint = ":".join(["AA"] * 32)
        (reason,) = await self.obstacles()
        self.assertIn(": TLS: ", reason)
        self.assertEqual(self.target.requests, [])

    async def test_nobody_there(self):
        await self.target.close()
        (reason,) = await self.obstacles()
        self.assertIn(": Connection refused", reason)

    async def test_a_strange_answer(self):
        for answer in ((200, "OK", []), (200, "OK", {"x": 1}), (200, "OK", "x")):
            self.target.http["GET", "/cluster/status"] = answer
            self.assertEqual(await self.obstacles(), ["target: the target's answer is no JSON object with 'data'"])

    async def test_what_a_peer_says_is_clean(self):
        self.target.http["GET", "/cluster/resources"] = [{"vmid": 300, "node": "a\x1b[2Jb"}]
        self.assertEqual(await self.obstacles(), ["target: VM 300 already exists on node 'a?[2Jb'"])

    async def test_the_secret_is_never_shown(self):
        endpoint = self.target.endpoint
        self.assertNotIn(TOKEN, repr(endpoint) + repr(self.world()) + repr(replace(endpoint, port=1)))
