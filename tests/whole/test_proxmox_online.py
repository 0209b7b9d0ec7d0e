"""A running VM goes to a Proxmox node: `qm` starts it there, and the daemon does the rest through its monitor."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from mtunnel_tx.backends.proxmox import find_qemu
from tests.guest.ticker import read_beats
from tests.patience import wait_for
from tests.processes import started_process
from tests.proxmox.node import ProxmoxNode
from tests.proxmox.online import Monitor, OnlineSource
from tests.proxmox.source import Released
from tests.whole.node import Node
from tests.whole.peer import Tunnel
from tests.whole.test_online import DISK_BYTES, Listener, OnlineCase

START = {
    "cmd": "start",
    "start_params": {"statefile": "unix", "forcemachine": "pc-i440fx-7.1+pve0", "skiplock": 1},
    "migrate_opts": {"migratedfrom": "src", "type": "websocket", "remote_node": "src", "nbd_proto_version": 1},
}


class ProxmoxCase(OnlineCase):
    there: ProxmoxNode

    def make_target(self) -> ProxmoxNode:
        node = ProxmoxNode("there")
        node.start()
        return node

    def kill_machines(self, node: Node) -> None:
        if not isinstance(node, ProxmoxNode):
            super().kill_machines(node)
            return
        for file in node.machines.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)
        wait_for("the end of all QEMUs", lambda: not any(map(self.qemu, node.machines.glob("*.pid"))))
        for file in node.machines.iterdir():
            file.unlink()

    def qemu(self, file: Path) -> int | None:
        found = find_qemu(file)
        if found is None:
            return None
        os.close(found[1])
        return found[0]

    @property
    def pid(self) -> int | None:
        """The target's QEMU."""
        return self.qemu(self.there.machines / "200.pid")

    def status(self, node: Node, vmid: int) -> str:
        if node is not self.there:
            return super().status(node, vmid)
        monitor = Monitor(self.there.machines / f"{vmid}.qmp")
        self.addCleanup(monitor.close)
        status = str(monitor.ask("query-status")["status"])
        monitor.close()
        return status

    def asked(self) -> dict[str, Any]:
        """What `qm` was given."""
        return dict(json.loads((self.there.machines / "200.qm.json").read_text()))

    def assert_undone(self) -> None:
        wait_for("the end of the tunnel", lambda: not self.there.ask(cmd="status")["tunnels"])
        self.assertIsNone(self.pid)
        self.assertIsNone(self.there.guest(200))
        self.assertEqual(self.there.images(200), [])
        self.assertEqual(self.there.left_over()["journals"], [])
        left = [path.name for path in self.there.machines.iterdir() if path.suffix != ".json"]
        self.assertEqual(left, [])


class OwnSourceTests(ProxmoxCase):
    """From `mtunnel migrate`."""

    def test_not_a_beat_is_lost(self) -> None:
        before, after = self.boot(), Listener(self.there.machines / "200.serial0")
        self.addCleanup(setattr, after, "stopped", True)
        self.migrate()
        wait_for("beats at the target", lambda: len(after.beats) >= 5)
        numbers = [number for number, _ in read_beats(before.text + after.text)]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        self.assertEqual(self.status(self.there, 200), "running")
        self.assertNotIn("lock", self.there.guest(200) or "")
        options = self.asked()["options"]
        self.assertEqual(options.pop("--skiplock"), "1")
        self.assertEqual(options.pop("--stateuri"), "unix")
        self.assertEqual(options.pop("--migratedfrom"), "there")
        self.assertRegex(options.pop("--machine"), r"^pc-i440fx-\d+\.\d+$")
        self.assertEqual(set(options), {"--force-cpu"})
        self.assertEqual(self.asked()["input"], "")
        wait_for("the end of the tunnel", lambda: not self.there.ask(cmd="status")["tunnels"])
        self.assertEqual(self.there.left_over()["journals"], [])


class ScriptedSourceTests(ProxmoxCase):
    """From a Proxmox source's own steps, with a SPICE ticket."""

    def test_it_runs_there(self) -> None:
        before, after = self.boot(), Listener(self.there.machines / "200.serial0")
        self.addCleanup(setattr, after, "stopped", True)
        source = OnlineSource(self.here, self.there, Released(), target_vmid=200)
        source.spice_ticket = "0123abcdef"
        source.attach()
        self.addCleanup(source.close)
        source.look_around()
        source.open()
        drive = source.allocate("scsi0", DISK_BYTES, discard="on")
        source.define({"scsi0": drive["volid"]})
        started = source.start_there({"scsi0": drive})
        self.assertEqual(started["spice_port"], 61000)
        self.assertEqual(self.asked()["input"], "spice_ticket: 0123abcdef\n")
        self.assertEqual(self.status(self.there, 200), "inmigrate")
        source.mirror(started)
        source.send_memory(started)
        source.hand_over()
        source.leave()
        wait_for("beats at the target", lambda: len(after.beats) >= 5)
        beats = read_beats(before.text + after.text)  # a line may begin here and end there
        numbers = [number for number, _ in beats]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        self.assertEqual({flag for _, flag in beats}, {"."})
        wait_for("the end of the tunnel", lambda: not self.there.ask(cmd="status")["tunnels"])
        self.assertEqual(self.there.left_over()["journals"], [])

    def test_paused_vm_stays_paused(self) -> None:
        self.boot()
        source = OnlineSource(self.here, self.there, Released(), target_vmid=200)
        source.was_running = False
        source.attach()
        self.addCleanup(source.close)
        source.monitor.ask("stop")
        source.open()
        drive = source.allocate("scsi0", DISK_BYTES)
        source.define({"scsi0": drive["volid"]})
        started = source.start_there({"scsi0": drive})
        self.assertNotIn("spice_port", started)
        source.mirror(started)
        source.send_memory(started)
        source.hand_over()
        source.leave()
        wait_for("the end of the tunnel", lambda: not self.there.ask(cmd="status")["tunnels"])
        self.assertEqual(self.status(self.there, 200), "paused")
        self.assertNotIn("lock", self.there.guest(200) or "")


class FailureTests(ProxmoxCase):
    """What becomes of it where nothing comes, or `qm` fails."""

    def begin(self, *lines: str) -> tuple[Tunnel, dict[str, Any]]:
        tunnel = Tunnel(self.there, 200, storages="local", bridges="")
        disk = tunnel.ask(cmd="disk", storage="local", drive={"interface": "scsi", "index": 0, "size": DISK_BYTES})
        conf = "\n".join(["memory: 32", "scsihw: virtio-scsi-pci", *lines, f"scsi0: {disk['volid']}"])
        self.assertEqual(tunnel.ask(cmd="config", conf=f"{conf}\n"), {"success": True})
        return tunnel, {**START, "migrate_opts": {**START["migrate_opts"], "nbd": {"scsi0": disk}}}

    def test_source_that_dies_before_the_memory(self) -> None:
        tunnel, start = self.begin()
        self.assertTrue(tunnel.ask(**start)["success"])
        self.assertIsNotNone(self.pid)
        tunnel.commands.drop()
        self.assert_undone()

    def test_quit_with_cleanup_after_stop(self) -> None:
        tunnel, start = self.begin()
        self.assertTrue(tunnel.ask(**start)["success"])
        self.assertTrue(tunnel.ask(cmd="nbdstop")["success"])
        self.assertTrue(tunnel.ask(cmd="stop")["success"])
        self.assertIsNone(self.pid)
        self.assertEqual(tunnel.ask(cmd="resume")["msg"], "failed to handle 'resume' command - VM 200 not running\n")
        self.assertTrue(tunnel.ask(cmd="quit", cleanup=1)["success"])
        tunnel.leave()
        self.assert_undone()

    def test_killed_daemon_cleans_up_when_it_comes_back(self) -> None:
        tunnel, start = self.begin()
        self.assertTrue(tunnel.ask(**start)["success"])
        self.there.stop(signal.SIGKILL)
        self.assertIsNotNone(self.pid)
        tunnel.commands.drop()
        self.there.start()
        self.assert_undone()

    def test_a_qemu_that_is_anothers_by_now(self) -> None:
        """Our tunnel's has ended; another node of the cluster moves its own VM of this number here."""
        tunnel, start = self.begin()
        self.assertTrue(tunnel.ask(**start)["success"])
        self.there.stop(signal.SIGKILL)
        tunnel.commands.drop()
        self.kill_machines(self.there)
        (self.there.own / "qemu-server" / "200.conf").unlink()
        words = ["-nodefaults", "-display", "none", "-accel", "tcg", "-S", "-incoming", "defer"]
        folder = self.there.machines
        words += ["-pidfile", str(folder / "200.pid"), "-qmp", f"unix:{folder / '200.qmp'},server=on,wait=off"]
        theirs = started_process(self.addCleanup, ["qemu-system-x86_64", *words])
        wait_for("their QEMU", lambda: self.pid == theirs.pid)
        self.there.start()
        self.assertEqual(self.pid, theirs.pid)
        self.assertEqual(self.status(self.there, 200), "inmigrate")
        self.assertEqual(len(self.there.images(200)), 1)
        self.assertIn("200", str(self.there.ask(cmd="status")["held"]))

    def test_qm_that_fails_says_why(self) -> None:
        tunnel, start = self.begin("vga: serial0")
        message = tunnel.ask(**start)["msg"]
        self.assertRegex(message, "^failed to handle 'start' command - 'qm start' failed with exit code")
        self.assertIsNone(self.pid)
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()
        self.assert_undone()
