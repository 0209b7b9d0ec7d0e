"""A node whose daemon runs in the `proxmox` profile: a Proxmox node's files and programs, below a folder of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mtunnel_tx.tls.certificate import fingerprint, make_certificate
from tests.whole.node import Node

QM = Path(__file__).with_name("qm.py")

CONFIG = """\
profile = "proxmox"
pve_dir = "{{root}}/etc/pve"
lock_dir = "{{root}}/lock/qemu-server"
machine_dir = "{{root}}/qemu-server"

[commands]
pvesm = {pvesm}
qm = [{python}, {qm}, "{{root}}/qemu-server", "{{root}}/lock/qemu-server", "{{root}}/etc/pve"]
"""

STORAGES = """\
dir: local
\tpath {root}/state/storage
\tcontent images,iso
"""


class ProxmoxNode(Node):
    """As after the installation of Proxmox VE: `/etc/pve` with its links, a certificate whose key a group may read."""

    def __init__(self, name: str = "pvetest", storages: str | None = None, extra: str = "") -> None:
        pvesm = [sys.executable, "-P", "-m", "mtunnel_tx.pvesm"]
        config = CONFIG.format(pvesm=json.dumps(pvesm), python=json.dumps(sys.executable), qm=json.dumps(str(QM)))
        super().__init__(name, storages or STORAGES, f"{config}\n{extra}")

    def prepare(self) -> None:
        self.pve = self.root / "etc" / "pve"
        self.locks = self.root / "lock" / "qemu-server"
        self.own = self.pve / "nodes" / self.name
        for folder in (self.own / "qemu-server", self.own / "lxc", self.own / "priv", self.pve / "priv"):
            folder.mkdir(parents=True)
        self.machines = self.root / "qemu-server"
        for folder in (self.pve / "firewall", self.locks, self.machines):
            folder.mkdir(parents=True)
        (self.pve / "local").symlink_to(f"nodes/{self.name}")
        (self.pve / "qemu-server").symlink_to(f"nodes/{self.name}/qemu-server")
        pair = make_certificate(self.name)
        (self.own / "pve-ssl.pem").write_bytes(pair.certificate)
        key = self.own / "pve-ssl.key"
        key.write_bytes(pair.key)
        # The cluster's file system gives every file outside of `priv` this mode.
        key.chmod(0o640)
        super().prepare()

    @property
    def fingerprint(self) -> str:
        return fingerprint((self.own / "pve-ssl.pem").read_bytes())
