"""A stopped VM with real disks: a sparse raw one, and a qcow2 with an internal snapshot."""

from __future__ import annotations

import os

from tests.processes import run_program
from tests.proxmox.source import Disk
from tests.whole.node import Node

GUEST = """\
boot: order=scsi0
cores: 2
memory: 2048
name: web
ostype: l26
scsi0: local:100/vm-100-disk-0.raw,discard=on,size=16M
scsi1: local:100/vm-100-disk-1.qcow2,size=32M
vmgenid: 11111111-1111-4111-8111-111111111111
"""
MIB = 1 << 20


def make_guest(home: Node) -> list[Disk]:
    """Write VM 100 and its disks on a node's storage `local`."""
    folder = home.storage / "images" / "100"
    folder.mkdir(parents=True)
    raw, qcow2 = folder / "vm-100-disk-0.raw", folder / "vm-100-disk-1.qcow2"
    with raw.open("wb") as file:
        file.truncate(16 * MIB)
        for position in (0, 5, 15):
            file.seek(position * MIB)
            file.write(os.urandom(MIB))
    _run("qemu-img", "create", "-q", "-f", "qcow2", str(qcow2), "32M")
    _run("qemu-io", "-c", "write -q -P 0x61 1M 3M", str(qcow2))
    _run("qemu-img", "snapshot", "-c", "before", str(qcow2))
    _run("qemu-io", "-c", "write -q -P 0x62 2M 3M", str(qcow2))
    home.guest_file(100).write_text(GUEST)
    return [
        Disk(key="scsi0", volid=f"local:100/{raw.name}", file=raw),
        Disk(key="scsi1", volid=f"local:100/{qcow2.name}", file=qcow2),
    ]


def _run(*argv: str) -> None:
    run_program(argv, capture_output=True)
