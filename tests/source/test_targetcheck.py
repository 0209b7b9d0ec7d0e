"""What an mtunnel-tx as target is asked before a move, and keys that are left out."""

import re
from pathlib import Path

from twisted.internet.defer import Deferred

import mtunnel_tx
from mtunnel_tx.pve.maps import parse_map
from mtunnel_tx.source.survey import Obstructed
from mtunnel_tx.source.targetcheck import LONGEST_BYTES
from mtunnel_tx.wire.checkrequest import CHECK
from tests.source.case import CONF, SourceCase
from tests.source.machines import FakeMachine
from tests.source.target import make_reply

ROOT = Path(mtunnel_tx.__file__).parents[1]


class OwnTargetTest(SourceCase):
    """An mtunnel-tx makes its own checks."""

    def setUp(self):
        super().setUp()
        self.target.http["GET", "/version"] = {"version": "9.2.0", "release": "9.2", "repoid": "mtunnel-tx-1.0"}
        self.path = f"{self.target.guest}/mtunnelcheck"
        self.answer()

    def answer(self, *findings, disks=()):
        rows = [dict(zip(("severity", "about", "name", "text"), finding, strict=True)) for finding in findings]
        self.target.http["POST", self.path] = {"findings": rows, "disks": list(disks)}

    async def obstacles(self, **changes):
        with self.assertRaises(Obstructed) as caught:
            await self.migrate(**changes)
        self.assertEqual((self.target.commander, self.target.streams), (None, []))
        self.assert_unlocked()
        return list(caught.exception.obstacles)

    def asked(self):
        return next(body for method, path, _, body in self.target.requests if path == self.path)

    async def test_it_is_shown_the_vm_as_it_would_come(self):
        self.firewall_file.write_text("[OPTIONS]\n\nenable: 1\n")
        changes = {"bridges": parse_map("vmbr0:vmbr9"), "delete": True, "strict_space": True}
        await Deferred.fromCoroutine(self.migration(**changes).check())
        asked = self.asked()
        self.assertEqual(asked["conf"], CONF.replace("vmbr0", "vmbr9"))
        names = ("firewall-config", "storages", "bridges", "online", "delete", "machine", "strict_space")
        wanted = ("[OPTIONS]\n\nenable: 1\n", "tank", "vmbr9", 0, 1, None, 1)
        self.assertEqual(tuple(asked[name] for name in names), wanted)
        first = asked["disks"][0]
        self.assertEqual(
            CHECK.read({**asked, "node": "localhost", "vmid": 300}).disks[0].how.volname, "vm-300-disk-0.raw"
        )
        self.assertEqual((first["key"], first["size"], first["mirrored"]), ("scsi0", 1048576, 0))
        asked = ["/cluster/status", "/version", "/nodes/localhost/storage", self.path]
        self.assertEqual([path for _, path, *_ in self.target.requests], asked)

    async def test_a_vm_that_runs(self):
        self.machines = FakeMachine()
        self.storage.written["local:100/vm-100-disk-1.qcow2"] = 4096
        await Deferred.fromCoroutine(self.migration(online=True).check())
        asked = self.asked()
        self.assertEqual((asked["online"], asked["machine"]), (1, "pc-i440fx-7.2"))
        self.assertEqual([disk["mirrored"] for disk in asked["disks"]], [1, 1])
        self.assertEqual(asked["disks"][1]["written"], 4096, "what the map has, not the file")

    async def test_all_that_it_finds(self):
        self.answer(
            ("refuse", "key", "args", "only root can set 'args' config"),
            ("refuse", "cpu", "cpu", "this QEMU has no CPU model 'x'"),
            ("warn", "key", "hookscript", "scripts are not run here"),
            ("what?", "net", "net0", "bad\x1b[2J"),
        )
        self.assertEqual(
            await self.obstacles(),
            [
                "target: only root can set 'args' config",
                "target: cpu: this QEMU has no CPU model 'x'",
                "target: net0: bad?[2J",
            ],
        )

    async def test_what_follows_from_what_was_found_here(self):
        self.storage.add("100/vm-100-disk-0.raw", b"")
        self.answer(("refuse", "disk", "scsi0", "volume does not exist"))
        self.assertEqual(
            [text.partition(":")[0] for text in await self.obstacles()], ["scsi0"],
        )  # fmt: skip

    async def test_an_older_one(self):
        del self.target.http["POST", self.path]
        report = await Deferred.fromCoroutine(self.migration().check())
        self.assertIn("an older mtunnel-tx makes no checks before a move", report.unknown)
        self.assertIn("/cluster/resources", [path for _, path, *_ in self.target.requests])

    async def test_a_token_that_may_not_even_ask(self):
        self.target.http["POST", self.path] = make_reply(403, "Permission check failed (/, Sys.Incoming)")
        held = {"/vms/300": {"VM.Allocate": 1}}
        self.target.http["GET", "/access/permissions"] = lambda query: {query["path"]: held.get(query["path"], {})}
        reasons = await self.obstacles()
        self.assertEqual(reasons[0], "target: 403 Permission check failed (/, Sys.Incoming)")
        self.assertIn("target: 403 Permission check failed (/storage/tank, Datastore.AllocateSpace)", reasons)

    async def test_a_long_config(self):
        self.target.http["POST", self.path] = make_reply(413, "Request Entity Too Large")
        report = await Deferred.fromCoroutine(self.migration().check())
        self.assertIn("the config is too long to be checked by the target before a move", report.unknown)

    async def test_one_that_no_target_takes(self):
        self.target.http["POST", self.path] = make_reply(413, "Request Entity Too Large")
        self.conf_file.write_text(f"#{'x' * LONGEST_BYTES}\n{CONF}")
        self.firewall_file.write_text("# \u00e4\n" * LONGEST_BYTES)
        told = [f"target: the {what} of VM 100 is longer than 1048576 bytes" for what in ("config", "firewall config")]
        with self.assertRaises(Obstructed) as caught:
            await self.migrate()
        self.assertEqual(list(caught.exception.obstacles), told)

    async def test_firewall_rules_that_are_no_utf8(self):
        self.firewall_file.write_bytes(b"[RULES]\n\nIN ACCEPT # caf\xe9, caf\xc3\xa9\n")
        await Deferred.fromCoroutine(self.migration().check())
        self.assertEqual(self.asked()["firewall-config"], "[RULES]\n\nIN ACCEPT # caf\u00e9, caf\u00e9\n")

    async def test_a_strange_answer(self):
        self.target.http["POST", self.path] = [5]
        self.assertEqual((await self.obstacles())[0], "target: the target's answer to 'mtunnelcheck' is no object")
        self.target.http["POST", self.path] = {"findings": [5, {}], "disks": [None, {"storage": 5}]}
        await Deferred.fromCoroutine(self.migration().check())

    async def test_the_report(self):
        disk = {"key": "scsi0", "storage": "tank", "format": "raw", "stream": "raw+size", "free": 1 << 30}
        self.answer(("change", "disk", "scsi0", "raw becomes qcow2"), disks=[disk])
        report = await Deferred.fromCoroutine(self.migration(bwlimit_kib_s=1024, drop=("name",)[:0]).check())
        shown = report.as_json()
        self.assertTrue(shown["success"])
        self.assertEqual(
            shown["disks"][0],
            {
                "key": "scsi0", "keys": ["scsi0"], "volume": "local:100/vm-100-disk-0.raw", "size": 1 << 20,
                "allocated": 1 << 20, "mirrored": False, "format": "raw", "target_storage": "tank",
                "target_format": "raw", "stream": "raw+size", "free": 1 << 30, "seconds": 1.0,
            },
        )  # fmt: skip
        self.assertEqual(shown["nets"], [{"key": "net0", "bridge": "vmbr0", "target_bridge": "vmbr0"}])
        self.assertEqual(shown["findings"][0]["side"], "target")
        self.assertEqual(report.table()[1][3:], ("raw", "tank", "raw", "1024.0 MiB", "0:01"))
        self.assertEqual(report.table()[2][4:], ("unknown", "unknown", "unknown", "0:00"))

    async def test_its_keys_are_documented(self):
        disk = {"key": "scsi0", "storage": "tank", "format": "raw", "stream": "raw+size", "free": 5}
        self.answer(("change", "disk", "scsi0", "raw becomes qcow2"), disks=[disk])
        shown = (await Deferred.fromCoroutine(self.migration().check())).as_json()
        page = (ROOT / "docs/operations.md").read_text()
        table = page.partition("<!-- report: ")[2].partition("<!-- end of report -->")[0]
        rows = dict(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*) \|$", table, re.MULTILINE))
        self.assertEqual({key for keys in rows for key in re.findall(r"`(\w+)`", keys)}, set(shown))
        for key, values in (("disks", shown["disks"]), ("nets", shown["nets"]), ("findings", shown["findings"])):
            self.assertLessEqual(set(values[0]), set(re.findall(r"`(\w+)`", rows[f"`{key}`"])), key)
        self.assertLessEqual(set(shown["target"]), set(re.findall(r"`(\w+)`", rows["`target`"])))


class DropTest(SourceCase):
    """Keys that are left out on request."""

    def write(self, *lines):
        self.conf_file.write_text(CONF + "".join(f"{line}\n" for line in lines))

    async def obstacles(self, *keys, **changes):
        with self.assertRaises(Obstructed) as caught:
            await Deferred.fromCoroutine(self.migration(drop=keys, **changes).check())
        return list(caught.exception.obstacles)

    async def test_they_are_not_sent(self):
        self.write("args: -S", "hostpci0: 0000:01:00.0", "hookscript: local:snippets/x.pl")
        self.assertIn("hostpci0: a PCI device of this host cannot move: 0000:01:00.0", await self.obstacles())
        await self.migrate(drop=("args", "hookscript", "hostpci0"))
        (config,) = self.target.named("config")
        self.assertEqual(sorted(config), ["cmd", "conf", "firewall-config"], "a Proxmox knows no more")
        for key in ("args", "hookscript", "hostpci0"):
            self.assertNotIn(f"{key}:", config["conf"])
            self.assertIn(f"{key}: is left out (--drop)", self.watcher.said)

    async def test_ours_is_told(self):
        self.write("args: -S")
        self.target.http["GET", "/version"] = {"version": "9.2.0", "repoid": "mtunnel-tx-1.0"}
        self.target.http["POST", f"{self.target.guest}/mtunnelcheck"] = {"findings": [], "disks": []}
        await self.migrate(drop=("args",))
        self.assertEqual(self.target.named("config")[0]["dropped"], "args")

    async def test_what_cannot_be_dropped(self):
        for key, reason in (
            ("nosuch", "the VM's config has no such key"),
            ("scsi0", "it names a volume, which would be lost; detach it first"),
            ("vmgenid", "by it the VM is known to its guest, and to you"),
            ("memory", "without it the VM would be another machine"),
        ):
            self.assertEqual(await self.obstacles(key), [f"--drop {key}: {reason}"])

    async def test_a_vm_that_runs_keeps_its_hardware(self):
        self.write("args: -S", "affinity: 0", "tags: a")
        self.machines = FakeMachine()
        reasons = await self.obstacles("args", online=True)
        self.assertIn("--drop args: a VM that runs has what it says; shut it down first", reasons)
        self.write("affinity: 0", "tags: a")
        await Deferred.fromCoroutine(self.migration(drop=("affinity", "tags"), online=True).check())

    async def test_who_is_refused_is_told_of_it(self):
        self.write("args: -S")
        self.assertEqual(await self.obstacles(), ["target: only root can set 'args' config; --drop args leaves it out"])
        self.machines = FakeMachine()
        self.assertEqual(await self.obstacles(online=True), ["target: only root can set 'args' config"])
