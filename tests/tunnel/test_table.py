"""Every command as data: what it takes, what it needs, and that both hold."""

from __future__ import annotations

from mtunnel_tx.tunnel.qemu.table import QEMU_COMMANDS as COMMANDS
from tests.tunnel.case import CONFIG, DISK, IMPORT, TunnelCase
from tests.wire.violations import incomplete, violations

START = {
    "cmd": "start",
    "start_params": {"statefile": "unix"},
    "migrate_opts": {"type": "websocket", "migratedfrom": "a", "remote_node": "b"},
}
GOOD = {
    "bwlimit": {"cmd": "bwlimit", "storages": ["local"]},
    "config": CONFIG,
    "disk": DISK,
    "disk-import": IMPORT,
    "start": START,
    "progress": {"cmd": "progress", "phase": "disks", "transfers": []},
    "ticket": {"cmd": "ticket", "path": "/run/qemu-server/100.mtunnel"},
}
POWERLESS = "user:mig@pve:1:0:::::\ntoken:mig@pve!t1:0:0::\n"
ALLOCATE = ["Datastore.AllocateSpace on /storage/{storage}"]
NEEDS = {
    "bwlimit": ["Datastore.Allocate on /storage", "Datastore.Allocate on /storage/{storage}", "Sys.Modify on /"],
    "config": [
        "VM.Config.CPU on /vms/{vmid}",
        "VM.Config.Memory on /vms/{vmid}",
        "VM.Config.HWType on /vms/{vmid}",
        "VM.Config.Options on /vms/{vmid}",
        "VM.PowerMgmt on /vms/{vmid}",
        "VM.Config.Disk on /vms/{vmid}",
        "VM.Config.Network on /vms/{vmid}",
        "VM.Config.Cloudinit|VM.Config.Network on /vms/{vmid}",
        "VM.Config.Cloudinit on /vms/{vmid}",
        "VM.Config.CDROM on /vms/{vmid}",
        "Sys.Console on /",
        "SDN.Use on /sdn/zones/localnetwork/{bridge}",
        "Mapping.Use on /mapping/usb/{id}",
        "Mapping.Use on /mapping/pci/{id}",
        "Mapping.Use on /mapping/dir/{id}",
        "Datastore.AllocateSpace on /storage/{storage}",
        "Sys.Modify on /",
        "Mapping.Use on /mapping/cpu/{id}",
        "Mapping.Use on /mapping/hwrng",
        "Datastore.Allocate on /storage/{storage}",
        "Datastore.AllocateSpace|Datastore.Audit on /storage/{storage}",
        "VM.Config.Network on /vms/{vmid}",
    ],
    "disk": ALLOCATE,
    "disk-import": ALLOCATE,
}


class SchemaTests(TunnelCase):
    def test_every_parameter_is_described(self) -> None:
        for command in COMMANDS.values():
            self.assertEqual(list(incomplete(command.schema.json_schema())), [], command.name)
            self.assertTrue(command.summary)

    def test_each_line_of_each_schema_holds(self) -> None:
        self.connect()
        count = 0
        for name, command in COMMANDS.items():
            good = {"cmd": name, **GOOD.get(name, {})}
            for violation in violations(command.schema.json_schema()):
                reason = f"{violation.name}: {violation.words}\n"
                expected = f"failed to handle '{name}' command - 400 Parameter verification failed.\n{reason}"
                self.assertEqual(self.msg(**violation.applied(good)), expected)
                count += 1
        self.assertGreater(count, 80)

    def test_what_has_no_schema_takes_anything(self) -> None:
        loose = {name for name, command in COMMANDS.items() if command.schema.ignores_others}
        self.assertEqual(loose, {"version", "resume", "nbdstop", "fstrim", "stop", "unlock"})

    def test_older_spellings_are_listed(self) -> None:
        schema = COMMANDS["disk-import"].schema.json_schema()
        self.assertIn("export-formats", schema["properties"])
        either = [{"required": ["export_formats"]}, {"required": ["export-formats"]}]
        self.assertEqual(schema["allOf"], [{"anyOf": either}])


class NeedTests(TunnelCase):
    def test_the_list(self) -> None:
        found = {
            name: [f"{'|'.join(need.privileges)} on {need.path}" for need in command.needs]
            for name, command in COMMANDS.items()
            if command.needs
        }
        self.assertEqual(found, NEEDS)

    def test_every_need_says_when(self) -> None:
        self.assertTrue(all(need.when for command in COMMANDS.values() for need in command.needs))

    def test_a_token_without_rights_is_refused_where_there_are_needs(self) -> None:
        self.connect()
        self.fake.access.users = POWERLESS
        refused = set()
        for name in COMMANDS:
            if name not in ("unlock", "quit"):
                reply = self.ask(**{"cmd": name, **GOOD.get(name, {})})
                if "Permission check failed" in reply.get("msg", ""):
                    refused.add(name)
        self.assertEqual(refused, {"config", "disk", "disk-import"})

    def test_and_accepted_with_them(self) -> None:
        self.connect()
        roles = "role:r:Datastore.AllocateSpace:\nacl:1:/storage/local:mig@pve:r:\n"
        self.fake.access.users = POWERLESS + roles
        self.assertTrue(self.ask(**DISK)["success"])
        self.assertTrue(self.ask(**IMPORT)["success"])
