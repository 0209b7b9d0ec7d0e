"""The order of the checks, and the commands about the tunnel and the machine."""

from __future__ import annotations

import json

from mtunnel_tx.tunnel.qemu.table import QEMU_COMMANDS
from tests.fakes import TOKEN
from tests.tunnel.case import CONFIG, DISK, TunnelCase


class OrderTests(TunnelCase):
    def setUp(self) -> None:
        super().setUp()
        self.connect()

    def raw(self, line: bytes) -> dict[str, object]:
        from twisted.internet.defer import Deferred

        return json.loads(self.successResultOf(Deferred.fromCoroutine(self.line.answer(line))))

    def test_all_fifteen(self) -> None:
        """Fourteen of Proxmox's, and `progress`."""
        self.assertEqual(len(QEMU_COMMANDS), 15)

    def test_no_json_no_command(self) -> None:
        self.assertTrue(str(self.raw(b"garbage")["msg"]).startswith("failed to parse command - "))
        self.assertEqual(self.raw(b"{}"), {"success": False, "msg": "'cmd' missing"})
        self.assertEqual(self.raw(b"[1]")["success"], False)
        self.assertEqual(self.ask(cmd="version"), {"success": True, "api": 2, "age": 0})

    def test_unknown_before_schema_and_lock(self) -> None:
        self.fake.guests.configs.clear()
        self.assertEqual(self.msg(cmd="nosuch"), "unknown command 'nosuch' given")

    def test_schema_before_lock(self) -> None:
        self.fake.guests.configs.clear()
        text = "failed to handle 'ticket' command - 400 Parameter verification failed.\n"
        self.assertEqual(self.msg(cmd="ticket"), text + "path: property is missing and it is not optional\n")

    def test_exit_mode_before_all_but_parsing(self) -> None:
        self.ask(cmd="quit", cleanup=1)
        for name in ("version", "nosuch"):
            self.assertEqual(self.msg(cmd=name), f"tunnel is in exit-mode, processing '{name}' cmd not possible")
        self.assertIn("failed to parse", str(self.raw(b"x")["msg"]))

    def test_received_lines_in_the_task_log(self) -> None:
        self.msg(cmd="nosuch")
        self.msg(cmd="ticket")
        self.ask(cmd="version")
        self.assertEqual(self.task.lines[1:], ["received command 'ticket'", "received command 'version'"])

    def test_a_bug_is_logged_and_not_told(self) -> None:
        def broken() -> None:
            raise ZeroDivisionError("secret detail")

        self.fake.storage.config = broken  # type: ignore[assignment,method-assign]
        text = "failed to handle 'bwlimit' command - internal error\n"
        self.assertEqual(self.msg(cmd="bwlimit", storages=["local"], operation="migration"), text)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class SessionTests(TunnelCase):
    def setUp(self) -> None:
        super().setUp()
        self.connect()

    def test_bwlimit(self) -> None:
        ask = {"cmd": "bwlimit", "operation": "migration", "storages": ["local"]}
        self.assertEqual(self.ask(**ask, bwlimit=None), {"success": True, "bwlimit": None})
        self.assertEqual(self.ask(**ask, bwlimit=1024), {"success": True, "bwlimit": 1024})
        self.assertIn("storage '5' does not exist", self.msg(cmd="bwlimit", storages=[5]))

    def test_ticket_for_known_sockets_only(self) -> None:
        for path in ("/run/qemu-server/100.mtunnel", "/run/qemu-server/100.storage", "5", "", "/etc/passwd"):
            text = f"Not allowed to generate ticket for unknown socket '{path}'\n"
            self.assertEqual(self.msg(cmd="ticket", path=path), f"failed to handle 'ticket' command - {text}")

    def test_unlock_once(self) -> None:
        self.assertEqual(self.ask(cmd="unlock"), {"success": True})
        text = "failed to handle 'unlock' command - no lock found trying to remove any lock\n"
        self.assertEqual(self.msg(cmd="unlock"), text)
        self.assertEqual(self.fake.guests.configs[100].options, {})

    def test_after_unlock_no_mark_is_compared(self) -> None:
        self.ask(cmd="unlock")
        self.fake.guests.set(100, "lock: backup\n")
        self.assertTrue(self.ask(cmd="version")["success"])

    def test_a_user_who_was_disabled_can_send_no_command(self) -> None:
        volid = self.ask(**DISK)["volid"]
        users = self.fake.access.users
        for change in (
            users.replace("user:mig@pve:1:", "user:mig@pve:0:"),
            users.replace("token:mig@pve!t1:0:0::\n", ""),
            "",
        ):
            self.fake.access.users = change
            for name in QEMU_COMMANDS:
                text = f"failed to handle '{name}' command - token 'mig@pve!t1' is no longer valid\n"
                self.assertEqual(self.msg(cmd=name, cleanup=1), text)
        self.assertIn(volid, self.fake.storage.sizes)
        self.fake.access.users = users
        self.assertTrue(self.ask(cmd="version")["success"])

    def test_its_tunnel_ends_by_the_rule(self) -> None:
        self.ask(**DISK)
        self.fake.access.users = ""
        self.msg(cmd="quit")
        self.line.disconnected()
        self.assertEqual((self.fake.storage.sizes, self.fake.guests.configs), ({}, {}))
        self.assertEqual(self.task.status, "mtunnel exited unexpectedly")


class MachineTests(TunnelCase):
    def setUp(self) -> None:
        super().setUp()
        self.connect()

    def test_a_vm_that_is_off(self) -> None:
        for cmd in ("resume", "nbdstop"):
            self.assertEqual(self.msg(cmd=cmd), f"failed to handle '{cmd}' command - VM 100 not running\n")
        self.assertEqual(self.ask(cmd="stop"), {"success": True})
        self.assertEqual(self.ask(cmd="fstrim"), {"success": True})
        self.assertIn("QEMU Guest Agent is not running - VM 100 not running", self.task.lines)

    def _start(self, **nbd: object) -> str:
        options = {"type": "websocket", "migratedfrom": "a", "remote_node": "b", "nbd": nbd}
        return self.msg(cmd="start", start_params={"statefile": "unix"}, migrate_opts=options).split(" - ", 1)[1]

    def test_start_wants_a_config_first(self) -> None:
        self.assertEqual(self._start(), "VM 100 has no config yet\n")

    def test_exports_are_checked(self) -> None:
        disk = self.ask(**DISK)
        volid, drivestr = disk["volid"], disk["drivestr"]
        self.assertEqual(self._start(scsi0=disk), "VM 100 has no config yet\n")
        for drive, text in (
            ({}, "No volid set for NBD volume 'scsi0'\n"),
            ({"volid": volid}, f"No drivestr set for NBD volume 'scsi0:{volid}'\n"),
            ({"volid": "local:100/x.raw", "drivestr": "x"}, "Unknown NBD volume 'scsi0:local:100/x.raw'\n"),
            ({**disk, "evil": 1}, f"Unknown NBD volume key for 'scsi0:{volid}': 'evil'\n"),
            ({**disk, "drivestr": "wrong"}, f"NBD mismatch for 'scsi0': 'wrong' vs' {drivestr}\n"),
        ):
            self.assertEqual(self._start(scsi0=drive), text)


class OwnerTests(TunnelCase):
    def test_tunnels_do_not_see_each_other(self) -> None:
        self.connect(101)
        other = self.line
        self.connect(100)
        self.ask(**DISK)
        self.ask(**CONFIG)
        self.line = other
        self.assertIn("unknown socket", self.msg(cmd="ticket", path="/run/qemu-server/100.storage"))
        self.assertEqual(self.fake.guests.configs[101].lock, "create")
        self.assertEqual(self.registry.live()[0].token, TOKEN)
