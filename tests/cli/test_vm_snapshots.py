"""`mtunnel vm snapshot, rollback, snapshots`: in the images and in the config, also after a kill in the middle."""

from mtunnel_tx.guests.snapshots import read_snapshot_name
from tests.cli.slowness import Slowness
from tests.cli.vmcase import ActCase, VmCase
from tests.processes import run_program


class SnapshotHost:
    """A mixin: a VM with two qcow2 disks, whose first sector says in which state they are."""

    def make_guest(self):
        lines = ["name: web", "memory: 32", "scsi0: disks:100/a-0.qcow2", "virtio1: disks:100/a-1.qcow2"]
        (self.guests / "100.conf").write_text(
            "\n".join([*lines, "ide2: none,media=cdrom"]).replace("a-", "vm-100-disk-")
        )
        (self.images / "100").mkdir()
        for number in (0, 1):
            words = ["qemu-img", "create", "-q", "-f", "qcow2", self.disk(number), "8M"]
            run_program(words)
        self.put("first")

    def disk(self, number):
        return self.images / "100" / f"vm-100-disk-{number}.qcow2"

    def put(self, word):
        """Write into both disks."""
        source = self.folder / "sector"
        source.write_bytes(word.encode().ljust(512, b"\0"))
        for number in (0, 1):
            run_program(["qemu-img", "dd", "-f", "raw", "-O", "raw", f"if={source}", f"of={self.folder}/dd"])
            write = f"write -s {source} 0 512"
            run_program(["qemu-io", "-f", "qcow2", "-c", write, self.disk(number)], capture_output=True)

    def words(self):
        """What is in both disks."""
        flat = self.folder / "flat"
        found = []
        for number in (0, 1):
            run_program(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.disk(number), flat])
            found.append(flat.read_bytes()[:512].rstrip(b"\0").decode())
        return found

    def tags(self, number):
        """The snapshots in a disk."""
        listed = run_program(["qemu-img", "snapshot", "-l", self.disk(number)], capture_output=True, text=True).stdout
        return [line.split()[1] for line in listed.splitlines()[2:]]


class Snapshots(SnapshotHost, ActCase):
    def setUp(self):
        super().setUp()
        self.make_guest()

    async def names(self):
        return [(entry["name"], entry["parent"]) for entry in (await self.act("snapshots", "100"))["snapshots"]]

    async def test_there_and_back(self):
        await self.act("snapshot", "100", "before", "--description", "as it was")
        section = self.conf().snapshots["before"]
        self.assertEqual((section.options["memory"], section.description), ("32", "as it was\n"))
        self.assertNotIn("snapstate", section.options)
        self.assertEqual((self.conf().options["parent"], self.conf().lock), ("before", None))
        self.put("second")
        await self.act("set", "100", "memory=64")
        await self.act("snapshot", "web", "after")
        self.put("third")
        self.assertEqual(await self.names(), [("before", ""), ("after", "before")])
        await self.act("rollback", "100", "before")
        self.assertEqual((self.words(), self.conf().options["memory"]), (["first", "first"], "32"))
        self.assertEqual((self.conf().options["parent"], self.conf().lock), ("before", None))
        await self.act("rollback", "100", "after")
        self.assertEqual((self.words(), self.conf().options["memory"]), (["second", "second"], "64"))
        await self.act("snapshot", "100", "before", "--remove")
        self.assertEqual(await self.names(), [("after", "")])
        self.assertEqual((self.tags(0), self.tags(1)), (["after"], ["after"]))
        await self.act("snapshot", "100", "after", "--remove")
        self.assertEqual((self.tags(0), await self.names(), "parent" in self.conf().options), ([], [], False))
        self.assertEqual(self.words(), ["second", "second"])
        self.assert_nothing_stands()

    async def test_a_disk_that_came_later_stays_unused(self):
        await self.act("snapshot", "100", "before")
        await self.act("disk", "add", "100", "--size", "1M")
        await self.act("rollback", "100", "before")
        options = self.conf().options
        self.assertEqual((options["unused0"], "scsi1" in options), ("disks:100/vm-100-disk-2.qcow2", False))

    async def test_what_is_refused_changes_nothing(self):
        await self.act("snapshot", "100", "before")
        text = (self.guests / "100.conf").read_text()
        cases = {
            ("snapshot", "100", "before"): "VM 100 has a snapshot 'before' already",
            ("snapshot", "100", "none", "--remove"): "VM 100 has no snapshot 'none'",
            ("rollback", "100", "none"): "VM 100 has no snapshot 'none'",
        }
        for words, reason in cases.items():
            self.assertEqual(await self.refusal(*words), reason)
            self.assertEqual((self.guests / "100.conf").read_text(), text)
        self.assertEqual((self.tags(0), self.tags(1)), (["before"], ["before"]))
        self.assert_nothing_stands()

    async def test_a_raw_disk(self):
        self.add_ticker(101)
        reason = "scsi0: 'disks:101/vm-101-disk-0.raw' cannot have snapshots, only a qcow2 image can"
        self.assertEqual(await self.refusal("snapshot", "101", "before"), reason)
        self.assertEqual(self.conf(101).sections, {})

    async def test_one_disk_that_fails(self):
        self.disk(1).write_bytes(b"garbage")
        self.assertIn("qemu-img snapshot", await self.refusal("snapshot", "100", "before"))
        self.assertEqual((self.tags(0), self.conf().sections, self.conf().lock), ([], {}, None))

    async def test_a_disk_that_lacks_the_snapshot(self):
        """Nothing is rolled back where not everything can be."""
        await self.act("snapshot", "100", "before")
        self.put("second")
        run_program(["qemu-img", "snapshot", "-d", "before", self.disk(1)])
        self.assertIn("has no snapshot 'before'", await self.refusal("rollback", "100", "before"))
        self.assertEqual(self.words(), ["second", "second"])

    def test_names(self):
        for name in ("1st", "a b", "current", "x" * 41):
            self.assertRaises(ValueError, read_snapshot_name, name)


class Killed(SnapshotHost, Slowness, VmCase):
    """In the middle: one disk is done, the other is not."""

    def setUp(self):
        super().setUp()
        self.make_guest()

    def clean_up(self, action):
        note = f"'vm {action}' was interrupted; clean up after it: mtunnel vm unlock 100"
        self.assertEqual(self.said("list")["guests"][0]["note"], note)
        self.assertIn("cleaning up", self.said("unlock", "100")["notes"][0])
        self.assert_nothing_stands()
        self.assertIsNone(self.conf().lock)

    def test_while_one_is_taken(self):
        self.slow("/usr/bin/qemu-img", "*' -c '*disk-0*")
        self.kill_in("snapshot", "100", "before")
        self.assertEqual((self.tags(0), self.tags(1), self.conf().lock), (["before"], [], "snapshot"))
        self.clean_up("snapshot")
        self.assertEqual((self.tags(0), self.tags(1), self.conf().sections), ([], [], {}))

    def test_while_it_is_rolled_back(self):
        self.said("snapshot", "100", "before")
        self.put("second")
        self.slow("/usr/bin/qemu-img", "*' -a '*disk-0*")
        self.kill_in("rollback", "100", "before")
        self.assertEqual((self.words(), self.conf().lock), (["first", "second"], "rollback"))
        self.assertEqual(self.refused_start(), "VM 100 is locked (rollback)")
        self.clean_up("rollback")
        self.assertEqual(self.words(), ["first", "first"])

    def refused_start(self):
        """What whoever knows nothing of changes is told: the mark in the config."""
        return f"VM 100 is locked ({self.conf().lock})"

    def test_while_it_is_removed(self):
        self.said("snapshot", "100", "before")
        self.slow("/usr/bin/qemu-img", "*' -d '*disk-0*")
        self.kill_in("snapshot", "100", "before", "--remove")
        self.assertEqual((self.tags(0), self.tags(1), self.conf().lock), ([], ["before"], "snapshot-delete"))
        self.clean_up("snapshot --remove")
        self.assertEqual((self.tags(1), self.conf().sections), ([], {}))
