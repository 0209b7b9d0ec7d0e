"""`mtunnel vm snapshot, rollback, snapshots`: in the images and in the config, also after a kill in the middle."""

from mtunnel_tx.guests.changing import new_change
from mtunnel_tx.guests.snapshots import read_snapshot_name
from mtunnel_tx.guests.snapshotsteps import ROLL_BACK, rolled_back
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
        await self.act("rollback", "100", "before", "--yes")
        self.assertEqual((self.words(), self.conf().options["memory"]), (["first", "first"], "32"))
        self.assertEqual((self.conf().options["parent"], self.conf().lock), ("before", None))
        await self.act("rollback", "100", "after", "--yes")
        self.assertEqual((self.words(), self.conf().options["memory"]), (["second", "second"], "64"))
        await self.act("snapshot", "100", "before", "--remove", "--yes")
        self.assertEqual(await self.names(), [("after", "")])
        self.assertEqual((self.tags(0), self.tags(1)), (["after"], ["after"]))
        await self.act("snapshot", "100", "after", "--remove", "--yes")
        self.assertEqual((self.tags(0), await self.names(), "parent" in self.conf().options), ([], [], False))
        self.assertEqual(self.words(), ["second", "second"])
        self.assert_nothing_stands()

    async def test_a_disk_that_came_later_stays_unused(self):
        await self.act("snapshot", "100", "before")
        await self.act("disk", "add", "100", "--size", "1M")
        await self.act("rollback", "100", "before", "--yes")
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

    async def test_times_that_no_calendar_has(self):
        """A config may have come from elsewhere."""
        with (self.guests / "100.conf").open("a") as file:
            file.write(f"\n[far]\nsnaptime: {'9' * 18}\n\n[long]\nsnaptime: {'9' * 5000}\n")
        entries = (await self.act("snapshots", "100"))["snapshots"]
        self.assertEqual([(one["name"], one["taken_s"]) for one in entries], [("long", 0), ("far", int("9" * 18))])

    async def test_a_copy_that_was_moved(self):
        """The VM lives elsewhere: its copy keeps the mark, or it would run twice."""
        await self.act("snapshot", "100", "before")
        file = self.guests / "100.conf"
        text = f"moved: to pve2 as VM 200 on 2026-10-01 12:00 UTC\n{file.read_text()}"
        file.write_text(text)
        for words in (("snapshot", "100", "after"), ("rollback", "100", "before", "--yes")):
            self.assertIn("'mtunnel vm forget-move 100' makes this copy the VM", await self.refusal(*words))
            self.assertEqual(file.read_text(), text)
        self.assertEqual((self.tags(0), self.words()), (["before"], ["first", "first"]))
        self.assert_nothing_stands()

    async def test_what_is_no_part_of_the_past_stays(self):
        """Whose it is, also where the mark came after a rollback began; and that nobody may remove it."""
        moved = "to pve2 as VM 200 on 2026-10-01 12:00 UTC"
        await self.act("snapshot", "100", "before")
        conf = self.conf()
        conf.options |= {"moved": moved, "protection": "1"}
        change = new_change(self.host, 100, ROLL_BACK, snapshot="before")
        back = rolled_back(self.host, conf, change).options
        self.assertEqual((back["moved"], back["protection"]), (moved, "1"))
        conf.sections["before"].options |= {"moved": moved, "protection": "1"}
        del conf.options["moved"], conf.options["protection"]
        self.assertEqual({"moved", "protection"} & rolled_back(self.host, conf, change).options.keys(), set())

    async def test_a_raw_disk(self):
        self.add_ticker(101)
        reason = "scsi0: 'disks:101/vm-101-disk-0.raw' cannot have snapshots, only a qcow2 image can"
        self.assertEqual(await self.refusal("snapshot", "101", "before"), reason)
        self.assertEqual(self.conf(101).sections, {})

    async def test_one_disk_that_fails(self):
        self.mark_corrupt()
        self.assertIn("qemu-img snapshot", await self.refusal("snapshot", "100", "before"))
        self.assertEqual((self.tags(0), self.conf().sections, self.conf().lock), ([], {}, None))

    def mark_corrupt(self):
        """The second disk can be looked at, and not be written."""
        image = bytearray(self.disk(1).read_bytes())
        image[79] |= 2
        self.disk(1).write_bytes(image)

    async def test_a_disk_that_cannot_be_read(self):
        self.disk(1).write_bytes(b"garbage")
        self.assertIn("qemu-img info", await self.refusal("snapshot", "100", "before"))
        self.assertEqual((self.tags(0), self.conf().sections, self.conf().lock), ([], {}, None))

    def take_foreign(self, *numbers):
        """Snapshots in images of which the config knows nothing."""
        for number in numbers:
            run_program(["qemu-img", "snapshot", "-c", "before", self.disk(number)])

    async def test_an_image_has_one_of_the_name(self):
        self.take_foreign(1)
        text = (self.guests / "100.conf").read_text()
        reason = f"'{self.disk(1)}' has a snapshot 'before' already, which the config of VM 100 does not know"
        self.assertIn(reason, await self.refusal("snapshot", "100", "before"))
        self.assertEqual((self.tags(0), self.tags(1)), ([], ["before"]))
        self.assertEqual((self.guests / "100.conf").read_text(), text)
        self.assert_nothing_stands()

    async def test_a_refused_one_leaves_the_foreign_one(self):
        """Also where another disk could not have taken it."""
        self.take_foreign(0)
        self.mark_corrupt()
        self.assertIn("has a snapshot 'before' already", await self.refusal("snapshot", "100", "before"))
        self.assertEqual((self.tags(0), self.conf().sections, self.conf().lock), (["before"], {}, None))

    async def test_a_name_that_an_image_has_twice(self):
        """It would be the older one, whosever that is."""
        await self.act("snapshot", "100", "before")
        self.put("second")
        self.take_foreign(1)
        text = (self.guests / "100.conf").read_text()
        for words in (("rollback", "100", "before", "--yes"), ("snapshot", "100", "before", "--remove", "--yes")):
            self.assertIn(f"'{self.disk(1)}' has 2 snapshots 'before'", await self.refusal(*words))
            self.assertEqual((self.guests / "100.conf").read_text(), text)
        self.assertEqual((self.tags(0), self.tags(1)), (["before"], ["before", "before"]))
        self.assertEqual(self.words(), ["second", "second"])
        self.assert_nothing_stands()

    async def test_a_lock_of_somebody_else(self):
        """What is refused for a lock is not carried out as if that were its own."""
        await self.act("snapshot", "100", "before")
        self.put("second")
        file = self.guests / "100.conf"
        text = file.read_text()
        cases = [
            ("rollback", "", ["rollback", "100", "before", "--yes"]),
            ("snapshot", "snapstate: prepare\n", ["snapshot", "100", "before"]),
        ]
        for lock, state, words in cases:
            locked = f"lock: {lock}\n{text}".replace("[before]\n", f"[before]\n{state}")
            file.write_text(locked)
            self.assertIn(f"locked ({lock})", await self.refusal(*words))
            self.assertEqual(file.read_text(), locked)
        self.assertEqual((self.tags(0), self.words()), (["before"], ["second", "second"]))
        self.assert_nothing_stands()

    async def test_a_destruction_by_somebody_else(self):
        file = self.guests / "100.conf"
        file.write_text("lock: destroyed\n" + file.read_text())
        self.assertIn("destroyed", await self.refusal("destroy", "100", "--yes"))
        self.assertEqual((file.exists(), self.disk(0).exists()), (True, True))
        self.assert_nothing_stands()

    async def test_a_disk_that_lacks_the_snapshot(self):
        """Nothing is rolled back where not everything can be."""
        await self.act("snapshot", "100", "before")
        self.put("second")
        run_program(["qemu-img", "snapshot", "-d", "before", self.disk(1)])
        self.assertIn("has no snapshot 'before'", await self.refusal("rollback", "100", "before", "--yes"))
        self.assertEqual((self.words(), self.conf().lock), (["second", "second"], None))

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
        self.kill_in("rollback", "100", "before", "--yes")
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
        self.kill_in("snapshot", "100", "before", "--remove", "--yes")
        self.assertEqual((self.tags(0), self.tags(1), self.conf().lock), ([], ["before"], "snapshot-delete"))
        self.clean_up("snapshot --remove")
        self.assertEqual((self.tags(1), self.conf().sections), ([], {}))
