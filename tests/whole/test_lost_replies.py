"""The connection is lost between each command and its reply: it is done once, and the reply comes over the next one."""

from __future__ import annotations

import re
from typing import Any

from tests.patience import wait_for
from tests.whole.limited import Case
from tests.whole.moving import Move, make_qcow2, moved, nothing, state_of, task_logs
from tests.whole.resuming import ResumableTunnel

START = {"statefile": "unix", "skiplock": 1}
OPTIONS = {"type": "websocket", "migratedfrom": "a", "remote_node": "b", "nbd_proto_version": 1}


class LossyTunnel(ResumableTunnel):
    """Loses its connection after each command. is_late: only once the reply is on its way, which then is lost, too."""

    def __init__(self, node: Any, vmid: int, *, is_late: bool) -> None:
        super().__init__(node, vmid)
        self.is_late = is_late
        self.asked: list[str] = []

    def ask(self, **request: Any) -> dict[str, Any]:
        self.asked.append(request["cmd"])
        before = self.bytes_out() if self.is_late else 0
        self.send(**request)
        if self.is_late:
            wait_for("a reply on its way", lambda: self.bytes_out() > before)
        self.lose()
        wait_for("room for one more connection", self.comes_back)
        return self.read()


class LostReplies(Case):
    limits = {"park_s": 60, "streams_per_tunnel": 8}

    def check_log(self, tunnel: LossyTunnel) -> None:
        """Each command stands in the task log as often as it was asked for: those that change nothing are not told."""
        (log,) = task_logs(self.node, tunnel.vmid)
        told = re.findall("received command '(.*)'", log)
        self.assertEqual(told, [name for name in tunnel.asked if name in told])
        self.assertLessEqual({"config", "quit"} & set(tunnel.asked), set(told))

    def test_a_stopped_vm(self) -> None:
        image = make_qcow2()
        for vmid, is_late in ((300, False), (301, True)):
            move = Move.__new__(Move)
            move.node, move.vmid, move.image, move.volumes = self.node, vmid, image, []
            lossy = LossyTunnel(self.node, vmid, is_late=is_late)
            move.tunnel = lossy  # type: ignore[assignment]
            move.ask(cmd="bwlimit", operation="migration", storages=["local"])
            move.run(*Move.STEPS[:-1])
            move.ask(cmd="fstrim")
            move.quit()
            lossy.end()
            self.assertEqual(state_of(self.node, vmid), moved(vmid, image, "TASK OK"))
            self.check_log(lossy)

    def test_a_vm_with_a_qemu(self) -> None:
        for vmid, is_late in ((300, False), (301, True)):
            lossy = LossyTunnel(self.node, vmid, is_late=is_late)
            drive = {"interface": "scsi", "index": 0, "size": 1 << 20}
            disk = lossy.ask(cmd="disk", storage="local", format="raw", drive=drive)
            lossy.ask(cmd="config", conf=f"memory: 64\nscsi0: {disk['drivestr']}\n")
            options = {**OPTIONS, "nbd": {"scsi0": disk}}
            started = lossy.ask(cmd="start", start_params=START, migrate_opts=options)
            self.assertEqual(started["migrate"]["proto"], "unix", started)
            self.assertIs(lossy.ask(cmd="resume")["success"], False)
            for name in ("nbdstop", "stop"):
                self.assertIs(lossy.ask(cmd=name)["success"], True)
            self.assertIs(lossy.ask(cmd="quit", cleanup=1)["success"], True)
            lossy.end()
            self.assertEqual(state_of(self.node, vmid), nothing("TASK OK"))
            self.check_log(lossy)
