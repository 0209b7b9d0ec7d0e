"""The steps of `qm remote-migrate --online`: a running VM of a node, its monitor, and our helper as a child process."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from tests.patience import patience_s, wait_for
from tests.proxmox.source import Failed, Source


class Monitor:
    """A VM's monitor, blocking."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(patience_s())
        self._sock.connect(str(path))
        self._lines = self._sock.makefile("rb")
        self._lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        self._sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise Failed(answer["error"]["desc"])
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        self._lines.close()
        self._sock.close()


class OnlineSource(Source):
    """One VM that runs at `home`; its disks are mirrored, not exported."""

    spice_ticket: str | None = None
    was_running = True

    def attach(self) -> None:
        self.monitor = Monitor(self.home.runtime / f"{self.vmid}.qmp")

    def allocate(self, key: str, size_bytes: int, storage: str = "local", **options: str) -> dict[str, Any]:
        """`disk`; its whole reply goes into `start`."""
        self.limit(storage)
        interface, index = key.rstrip("0123456789"), int(key.lstrip("abcdefghijklmnopqrstuvwxyz"))
        drive = {**options, "interface": interface, "index": index, "size": size_bytes}
        return self.ask("disk", storage=storage, format="raw", drive=drive)

    def start_there(self, nbd: dict[str, Any]) -> dict[str, Any]:
        """`start`, and a forward for each socket."""
        machine = next(entry["name"] for entry in self.monitor.ask("query-machines") if entry.get("is-default"))
        machine = str(self.monitor.ask("qom-get", path="/machine", property="type") or machine).removesuffix("-machine")
        params = {"statefile": "unix", "forcemachine": f"{machine}+pve0", "forcecpu": None, "skiplock": 1}
        options: dict[str, Any] = {"type": "websocket", "migratedfrom": "home", "remote_node": self.node}
        options |= {"nbd_proto_version": 1, "nbd": nbd, "storagemap": {"default": "local"}, "network": None}
        if self.spice_ticket:
            options["spice_ticket"] = self.spice_ticket
        started = self.ask("start", start_params=params, migrate_opts=options)
        self.sockets = {}
        for name in (started["migrate"]["addr"], *started["migrate"]["unix_sockets"]):
            local = self.home.root / Path(name).name.replace(str(self.target_vmid), str(self.vmid), 1)
            self.forward(name, local)
            self.sockets[name] = local
        return started

    def mirror(self, started: dict[str, Any]) -> None:
        """A mirror of each drive, up to the moment when it is level."""
        for key, drive in started.get("drives", {}).items():
            name, _, export = drive["nbd_uri"].removeprefix("nbd:unix:").partition(":exportname=")
            server = {"type": "unix", "path": str(self.sockets[name])}
            node = f"mirror-{key}"
            self.monitor.ask("blockdev-add", driver="nbd", server=server, export=export, **{"node-name": node})
            job = {"job-id": f"drive-{key}", "copy-mode": "write-blocking", "sync": "full"}
            self.monitor.ask("blockdev-mirror", device=f"drive-{key}", target=node, **job)
        wait_for("level mirrors", lambda: all(job["ready"] for job in self.monitor.ask("query-block-jobs")))

    def send_memory(self, started: dict[str, Any]) -> None:
        self.monitor.ask("migrate", uri=f"unix:{self.sockets[started['migrate']['addr']]}")
        wait_for("the memory", self._is_sent)

    def _is_sent(self) -> bool:
        status = self.monitor.ask("query-migrate")["status"]
        if status in ("failed", "cancelled"):
            raise Failed(f"migration {status}")
        return bool(status == "completed")

    def hand_over(self) -> None:
        """Mirrors end, the VM runs there, the one here is ended, the tunnel is left."""
        for job in self.monitor.ask("query-block-jobs"):
            self.monitor.ask("block-job-cancel", device=job["device"])
        wait_for("the mirrors' end", lambda: not self.monitor.ask("query-block-jobs"))
        self.ask("nbdstop")
        if self.was_running:
            self.ask("resume")
        self.ask("fstrim")
        self.monitor.ask("quit")
        self.finish()

    def close(self) -> None:
        super().close()
        self.monitor.close()
