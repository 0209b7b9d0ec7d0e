"""A small Linux guest from Debian's packages: its kernel, busybox and the guest agent in a RAM disk."""

from __future__ import annotations

import lzma
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.processes import run_program

PACKAGES = Path(__file__).parents[2] / ".trim"
"""Where `make trim` unpacks them."""
MODULES = ("virtio_pci", "virtio_scsi", "sd_mod", "virtio_console", "ext4", "crc32c_generic")
FILL_MIB = 32
_DEPENDS = re.compile(rb"depends=([^\0]*)\0")
_INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt /run /tmp /var/run /dev/virtio-ports
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in {modules}; do insmod /modules/$module.ko; done
until [ -b /dev/sda ] && [ -e /sys/class/virtio-ports/vport?p1/name ]; do sleep 0.1; done
mkdir -p /dev/virtio-ports
ln -s /dev/$(cd /sys/class/virtio-ports; echo vport?p1) /dev/virtio-ports/org.qemu.guest_agent.0
mount -t ext4 -o nodiscard /dev/sda /mnt
dd if=/dev/urandom of=/mnt/fill bs=1M count={fill_mib} 2>/dev/null
sync
rm /mnt/fill
sync
echo "file system is ready" >/dev/ttyS0
exec /bin/qemu-ga -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run -f /run/qemu-ga.pid
"""


def find_kernel() -> Path | None:
    """Debian's cloud kernel, if it was unpacked."""
    return next(iter(sorted(PACKAGES.glob("boot/vmlinuz-*"))), None)


def make_ramdisk() -> bytes:
    """An archive that the kernel unpacks and starts `/init` of."""
    modules = list(_in_order(_find_modules(), MODULES))
    agent = shutil.which("qemu-ga", path="/usr/sbin:/usr/bin")
    assert agent is not None, "qemu-ga is there"
    files = {"bin/busybox": _busybox(), "bin/qemu-ga": Path(agent).read_bytes()}
    files |= {path.lstrip("/"): Path(path).read_bytes() for path in _libraries(agent)}
    files |= {f"modules/{name}.ko": content for name, content in modules}
    names = " ".join(name for name, _ in modules)
    return pack({**files, "init": _INIT.format(modules=names, fill_mib=FILL_MIB).encode()})


def _busybox() -> bytes:
    return next(path for path in PACKAGES.glob("**/bin/busybox")).read_bytes()


def _libraries(program: str) -> list[str]:
    listed = run_program(["ldd", program], capture_output=True, text=True).stdout
    return re.findall(r"(/\S+) \(0x", listed)


def _find_modules() -> dict[str, Path]:
    return {path.name.partition(".ko")[0].replace("-", "_"): path for path in PACKAGES.glob("**/lib/modules/**/*.ko*")}


def _in_order(found: dict[str, Path], wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Each module after those that it needs; what is not there is part of the kernel."""
    seen: set[str] = set()

    def walk(name: str) -> Iterator[tuple[str, bytes]]:
        if name in seen or name not in found:
            return
        seen.add(name)
        content = found[name].read_bytes()
        content = lzma.decompress(content) if found[name].suffix == ".xz" else content
        match = _DEPENDS.search(content)
        for below in match[1].decode("ascii").split(",") if match else ():
            yield from walk(below.replace("-", "_"))
        yield name, content

    for name in wanted:
        yield from walk(name)


def pack(files: dict[str, bytes]) -> bytes:
    """A `newc` archive with all the folders that the files are in."""
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    entries = [(folder, 0o040755, b"") for folder in sorted(folders)]
    entries += [(name, 0o100755, content) for name, content in files.items()]
    packed = b"".join(_entry(number, *entry) for number, entry in enumerate(entries, 1))
    return packed + _entry(0, "TRAILER!!!", 0, b"")


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    label = name.encode() + b"\0"
    numbers = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(label), 0)
    head = b"070701" + "".join(f"{value:08X}" for value in numbers).encode() + label
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
