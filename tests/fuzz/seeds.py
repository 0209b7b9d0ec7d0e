"""Inputs to begin with: real ones, so that what is changed in them goes deep."""

from __future__ import annotations

import json
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.fuzz.targets import TICKET, USERS
from tests.processes import run_program

RECORDINGS = Path(__file__).parent.parent / "golden" / "worker-replies.jsonl"
GUEST = """\
#first line
#second%20line
agent: enabled=1
bios: ovmf
boot: order=scsi0;net0
cores: 2
cpu: x86-64-v2-AES,flags=+aes;-pcid
efidisk0: local:100/vm-100-disk-1.raw,efitype=4m,size=528K
ide2: none,media=cdrom
ipconfig0: ip=dhcp,ip6=auto
lock: migrate
machine: pc-q35-9.0+pve0
memory: current=2048
meta: creation-qemu=9.2.0,ctime=1700000000
name: moved.example
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1,mtu=1500
numa0: cpus=0-1,memory=2048
parent: before
scsi0: local:100/vm-100-disk-0.qcow2,discard=on,iothread=1,size=32G,serial=%41
scsihw: virtio-scsi-single
serial0: socket
smbios1: uuid=6a1d0d0e-6d40-4b86-9cf5-0b0ad9a0a1a1,base64=1,sku=QQ==
startup: order=1,up=10
tpmstate0: local:100/vm-100-disk-2.raw,size=4M,version=v2.0
vga: qxl,memory=32
vmgenid: 6a1d0d0e-6d40-4b86-9cf5-0b0ad9a0a1a2

[PENDING]
delete: ide2
memory: 4096

[before]
memory: 512
scsi0: local:100/vm-100-disk-0.qcow2,size=32G
snaptime: 1700000000

[special:cloudinit]
name: moved
"""
STORAGES = """\
dir: local
\tpath /var/lib/vz
\tcontent images,iso
\tprune-backups keep-all=1
\tbwlimit migration=1000,default=500

lvmthin: thin
\tvgname pve
\tthinpool data
\tcontent images
\tnodes a,b
\tdisable
"""
FIREWALL = (
    "[OPTIONS]\n\nenable: 1\n\n[ALIASES]\n\nhome 10.0.0.0/8\n\n[IPSET a]\n\n10.0.0.1\n\n[RULES]\n\nIN ACCEPT -i net0\n"
)
MORE_USERS = "group:g:mig@pve::\nrole:r:VM.Audit:\nacl:1:/vms:@g:r:\npool:p::100:local:\n"
IMAGES = (
    ["qcow2"],
    ["qcow2", "-o", "compat=0.10"],
    ["qcow2", "-b", "/dev/null", "-F", "raw"],
    ["vmdk"],
    ["vmdk", "-o", "subformat=streamOptimized"],
)
MASK = b"\x01\x02\x03\x04"


def seeds() -> Mapping[str, list[bytes]]:
    """By target."""
    lines, configs = [], [GUEST]
    for row in map(json.loads, RECORDINGS.read_text().splitlines()):
        if row["kind"] == "cmd":
            lines.append(row["request"])
            configs += _configs(row["request"])
    return {
        "lines": [line.encode() for line in dict.fromkeys(lines)],
        "frames": list(_frames()),
        "batches": [*_frames(), *_batches()],
        "guest-file": [conf.encode() for conf in dict.fromkeys(configs)],
        "guest-sent": [conf.encode() for conf in dict.fromkeys(configs)],
        "drive": [line.partition(": ")[2].encode() for line in GUEST.splitlines() if re.search(":100/|cdrom", line)],
        "sections": [STORAGES.encode(), FIREWALL.encode(), b"bwlimit: migration=5\nkeyboard: de\n"],
        "users": [USERS.encode(), MORE_USERS.encode(), b"mig@pve!t1 5c\n"],
        "ticket": [TICKET.encode()],
        "image": list(_images()),
        "names": [
            b"local:100/vm-100-disk-0.qcow2",
            b"local:99/base-99-disk-0.raw/100/vm-100-disk-0.qcow2",
            b"UPID:pvetest:00000001:00000002:6B035030:qmtunnel:100:mig@pve!t1:",
            b"apitoken=PVEAPIToken=mig@pve!t1=5c,host=a.example,port=8006,fingerprint=" + b":".join([b"AB"] * 32),
            b"a:b,c:d,e",
            b"node=localhost&vmid=100&storages=local,thin&bridges=vmbr0",
            b"node=localhost&vmid=100&socket=/run/qemu-server/100.mtunnel&ticket=" + TICKET.encode(),
        ],
    }


def _configs(line: str) -> Iterator[str]:
    try:
        request = json.loads(line)
    except ValueError:
        return
    if isinstance(request, dict) and isinstance(request.get("conf"), str):
        yield request["conf"]


def _frames() -> Iterator[bytes]:
    for mask_bit, mask in ((0x80, MASK), (0, b"")):
        yield bytes([0x82, mask_bit | 5]) + mask + b"hello"
        yield (
            bytes([0x02, mask_bit | 126]) + struct.pack(">H", 200) + mask + bytes(200) + bytes([0x80, mask_bit]) + mask
        )
        yield bytes([0x89, mask_bit | 2]) + mask + b"hi" + bytes([0x88, mask_bit | 2]) + mask + b"\x03\xe8"
        yield bytes([0x82, mask_bit | 127]) + struct.pack(">Q", 70_000) + mask + b"and more"


def _batches() -> Iterator[bytes]:
    """Frames in a row, records and pings between them."""
    for mask_bit, mask in ((0x80, MASK), (0x80, bytes(4)), (0, b"")):
        small = bytes([0x82, mask_bit | 126]) + struct.pack(">H", 300) + mask + bytes(range(256)) + bytes(44)
        record = bytes([0x81, mask_bit | 3]) + mask + b"a 5"
        yield small * 5 + record + small + bytes([0x89, mask_bit]) + mask + small * 3 + record * 2 + small[:100]
        yield bytes([0x82, mask_bit | 126]) + struct.pack(">H", 5000) + mask + bytes(5000) + small * 2


def _images() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        for number, options in enumerate(IMAGES):
            file = f"{folder}/{number}"
            run_program(["qemu-img", "create", "-q", "-f", *options, file, "1M"])
            yield Path(file).read_bytes()[: 1 << 16]
