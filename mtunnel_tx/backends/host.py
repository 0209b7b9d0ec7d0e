"""What this host's QEMU can do, found out by running it once, and how much memory the host has."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from mtunnel_tx.backends.child import run
from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.pve.hardware import Hardware

log = Logger()
PROGRAM = "qemu-system-x86_64"
ASK_S = 20.0
PROBE_S = 5.0
KVM = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")
VHOST_NET = Path("/dev/vhost-net")
OVERHEAD_BYTES = 128 << 20
"""The least that QEMU needs beside the guest's memory."""
ADDRESS_SPACE_BYTES = 2 << 30
_MIB = 1 << 20
_MACHINE = re.compile(r"(pc-(?:i440fx|q35)-[0-9.]+)\s")
_CPU = re.compile(r"^(?:x86)? +(\S+)", re.MULTILINE)
_BEFORE_FLAGS = "Recognized CPUID flags:"
_FIRMWARE_FOLDERS = (Path("/usr/share/pve-edk2-firmware"), Path("/usr/share/OVMF"), Path("/usr/share/edk2/x64"))
_FLASHED = {"2m": ("OVMF_CODE.fd",), "4m": ("OVMF_CODE_4M.fd", "OVMF_CODE.4m.fd")}
_FLASHED_SECURE = ("OVMF_CODE_4M.secboot.fd", "OVMF_CODE.secboot.4m.fd")
_LEAVES_BY_TIMER = bytes.fromhex("fa31c08ed8bc007cfb a16c04 f4 3b066c04 74f9 ba0105 b010 ee f4 ebfd")
"""A boot sector: waits for the clock's next tick, then leaves by the exit device with 0x10, which is exit code 33."""
_LEFT_WELL = "exit code 33:"


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuHost:
    """A host's QEMU. `machines`: versioned machine types; `has_kvm`: a guest was run with KVM.

    `cpus`: CPU models; `cpu_flags`: written with dashes; `roms`: boot ROM files; `nesting`: the CPU flag for nested
    virtualisation, `svm` or `vmx`.
    """

    machines: frozenset[str]
    cpus: frozenset[str]
    cpu_flags: frozenset[str]
    has_kvm: bool
    has_vhost_net: bool
    roms: frozenset[str]
    nesting: str

    def runs_on_kvm(self, hardware: Hardware) -> bool:
        """Whether the guest runs with KVM."""
        return hardware.kvm and self.has_kvm


class HostFacts:
    """Asks this host's QEMU once, and keeps the answer for the life of the daemon.

    Args: environ: the children's whole environment.
    """

    def __init__(self, reactor: Any, environ: Mapping[str, str]) -> None:
        self.host: QemuHost | None = None
        self._reactor = reactor
        self._environ = dict(environ)
        self._asking = DeferredLock()

    async def ask(self) -> QemuHost:
        """Raises: BackendFailed: QEMU does not answer; the next call asks again."""
        async with self._asking:
            if self.host is None:
                self.host = await self._ask()
            return self.host

    async def _ask(self) -> QemuHost:
        cpus, _, flags = (await self._run("-cpu", "help")).partition(_BEFORE_FLAGS)
        host = QemuHost(
            machines=frozenset(_MACHINE.findall(await self._run("-machine", "help"))),
            cpus=frozenset(_CPU.findall(cpus)),
            cpu_flags=frozenset(flag.replace(".", "-") for flag in flags.split()),
            has_kvm=await self._try_kvm(),
            has_vhost_net=os.access(VHOST_NET, os.R_OK | os.W_OK),
            roms=_list_roms(await self._run("-L", "help")),
            nesting="svm" if "AuthenticAMD" in CPUINFO.read_text() else "vmx",
        )
        log.info("QEMU has {count} machine types, KVM: {kvm}", count=len(host.machines), kvm=host.has_kvm)
        return host

    async def _run(self, *arguments: str) -> str:
        return await run(self._reactor, [PROGRAM, *arguments], self._environ, ASK_S)

    async def _try_kvm(self) -> bool:
        """Whether KVM runs a guest with Proxmox's plainest CPU up to its first timer interrupt."""
        if not os.access(KVM, os.R_OK | os.W_OK):
            return False
        with TemporaryDirectory(prefix="mtunnel-kvm-") as folder:
            disk = Path(folder, "boot")
            disk.write_bytes(_LEAVES_BY_TIMER.ljust(510, b"\0") + b"\x55\xaa")
            try:
                await run(self._reactor, _probe_arguments(disk), self._environ, PROBE_S)
            except TunnelError as error:
                if _LEFT_WELL in error.text:
                    return True
                log.warn("KVM cannot be used here: {reason}", reason=error.text)
        return False


def _probe_arguments(disk: Path) -> list[str]:
    options = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "16"]
    options += ["-machine", "pc,accel=kvm", "-cpu", "kvm64,enforce", "-device", "isa-debug-exit,iobase=0x501,iosize=1"]
    return [PROGRAM, *options, "-drive", f"file={disk},format=raw,if=ide,readonly=off"]


def _list_roms(output: str) -> frozenset[str]:
    """The boot ROM files in QEMU's data folders."""
    folders = [Path(line.strip()) for line in output.splitlines() if line.startswith("/")]
    return frozenset(file.name for folder in folders if folder.is_dir() for file in folder.glob("*.rom"))


def find_firmware(kind: str, *, secure: bool) -> Path:
    """The UEFI firmware for an EFI disk of a kind (`2m`, `4m`).

    Raises: TunnelError: `bios: …`: this host has none that fits.
    """
    names = _FLASHED_SECURE if secure and kind == "4m" else _FLASHED[kind]
    for file in (folder / name for folder in _FIRMWARE_FOLDERS for name in names):
        if file.is_file():
            return file
    raise TunnelError(f"bios: this host has no OVMF firmware for an EFI disk of type {kind}")


def check_room(memory_mib: int, read: Callable[[str], str] = lambda name: Path("/proc", name).read_text()) -> None:
    """Raises: BackendFailed: this host does not have that much memory, or a limit forbids it."""
    needed = memory_mib * _MIB + OVERHEAD_BYTES
    sizes = {line.split()[0].rstrip(":"): int(line.split()[1]) * 1024 for line in read("meminfo").splitlines()}
    _compare("available memory", needed, sizes["MemAvailable"])
    if read("sys/vm/overcommit_memory").strip() == "2":
        _compare("memory to be committed", needed, sizes["CommitLimit"] - sizes["Committed_AS"])
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        _compare("address space", needed + ADDRESS_SPACE_BYTES, limit)


def _compare(what: str, needed: int, there_is: int) -> None:
    if needed > there_is:
        raise BackendFailed(f"not enough {what}: {needed // _MIB} MiB needed, {there_is // _MIB} MiB there")
