"""What this host's QEMU can do, found out by running it once, and how much memory the host has."""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from mtunnel_tx.backends.child import run
from mtunnel_tx.backends.kvmtrial import try_cpu
from mtunnel_tx.errors import BackendFailed, refuse
from mtunnel_tx.pve.hardware import Hardware
from mtunnel_tx.pve.memory import GuestMemory

log = Logger()
PROGRAM = "qemu-system-x86_64"
ASK_S = 20.0
KVM = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")
HUGE_PAGES = Path("/sys/kernel/mm/hugepages")
VHOST_NET = Path("/dev/vhost-net")
OVERHEAD_BYTES = 128 << 20
"""The least that QEMU needs beside the guest's memory."""
ADDRESS_SPACE_BYTES = 2 << 30
_MIB = 1 << 20
_PROGRAMS = ("swtpm", "swtpm_setup", "xorriso", "genisoimage")
QXL = "qxl-vga"
"""A device that each QEMU with a SPICE server has, in a module beside it."""
_SPICE_PACKAGE = "qemu-system-modules-spice"
_OLDEST_QEMU = (6, 2)
"""The first one that takes a device as JSON."""
_MACHINE = re.compile(r"(pc-(?:i440fx|q35)-[0-9.]+)\s")
_CPU = re.compile(r"^(?:x86)? +(\S+)", re.MULTILINE)
_DEVICE = re.compile(r'^name "([^"]+)"', re.MULTILINE)
_PHYS_BITS = re.compile(r"^address sizes\s*: ([0-9]+) bits physical", re.MULTILINE)
_BEFORE_FLAGS = "Recognized CPUID flags:"


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuHost:
    """A host's QEMU. `machines`: versioned machine types; `has_kvm`: a guest was run with KVM.

    `cpus`: CPU models; `cpu_flags`: written with dashes; `roms`: boot ROM files; `nesting`: the CPU flag for nested
    virtualisation, `svm` or `vmx`. `devices`: the devices that this QEMU has. `phys_bits`: of an address of
    this host's memory. `programs`: which of _PROGRAMS there are.
    """

    machines: frozenset[str]
    cpus: frozenset[str]
    cpu_flags: frozenset[str]
    has_kvm: bool
    has_vhost_net: bool
    roms: frozenset[str]
    nesting: str
    devices: frozenset[str] = frozenset()
    phys_bits: int = 40
    programs: frozenset[str] = frozenset()

    @property
    def has_spice(self) -> bool:
        """Whether it has a SPICE server."""
        return QXL in self.devices

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
        cpuinfo = CPUINFO.read_text()
        cpus, _, flags = (await self._run("-cpu", "help")).partition(_BEFORE_FLAGS)
        host = QemuHost(
            machines=read_machines(await self._run("-machine", "help")),
            cpus=frozenset(_CPU.findall(cpus)),
            cpu_flags=frozenset(flag.replace(".", "-") for flag in flags.split()),
            has_kvm=await self._try_kvm(),
            has_vhost_net=os.access(VHOST_NET, os.R_OK | os.W_OK),
            roms=_list_roms(await self._run("-L", "help")),
            nesting="svm" if "AuthenticAMD" in cpuinfo else "vmx",
            devices=frozenset(_DEVICE.findall(await self._run("-device", "help"))),
            programs=frozenset(name for name in _PROGRAMS if shutil.which(name, path=self._environ.get("PATH"))),
            phys_bits=int(found[1]) if (found := _PHYS_BITS.search(cpuinfo)) else 40,
        )
        log.info("QEMU has {count} machine types, KVM: {kvm}", count=len(host.machines), kvm=host.has_kvm)
        return host

    async def _run(self, *arguments: str) -> str:
        return await run(self._reactor, [PROGRAM, *arguments], self._environ, ASK_S)

    async def _try_kvm(self) -> bool:
        """Whether KVM runs a guest with Proxmox's plainest CPU up to its first timer interrupt."""
        if not os.access(KVM, os.R_OK | os.W_OK):
            return False
        trial = await try_cpu(self._reactor, self._environ, PROGRAM, "kvm64,enforce")
        if not trial.runs:
            log.warn("KVM cannot be used here: {reason}", reason=trial.reason)
        return trial.runs


def read_machines(output: str) -> frozenset[str]:
    """The machine types that `-machine help` lists. Raises: BackendFailed: this QEMU is too old."""
    machines = frozenset(_MACHINE.findall(output))
    versions = [tuple(map(int, name.rpartition("-")[2].split("."))) for name in machines]
    newest = max(versions, default=(0,))
    if newest < _OLDEST_QEMU:
        raise BackendFailed(f"this host's QEMU is version {'.'.join(map(str, newest))}; 6.2 or newer is needed")
    return machines


def _list_roms(output: str) -> frozenset[str]:
    """The boot ROM files in QEMU's data folders."""
    folders = [Path(line.strip()) for line in output.splitlines() if line.startswith("/")]
    return frozenset(file.name for folder in folders if folder.is_dir() for file in folder.glob("*.rom"))


def check_huge_pages(memory: GuestMemory, folder: Path = HUGE_PAGES) -> None:
    """Blocks. Raises: BackendFailed: this host has not enough free huge pages."""
    for page, count in memory.page_counts().items():
        try:
            free = int((folder / f"hugepages-{page * 1024}kB" / "free_hugepages").read_text())
        except (OSError, ValueError):
            free = 0
        if free < count:
            raise BackendFailed(f"hugepages: {count} pages of {page} MiB needed, {free} free on this host")


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


def check_devices(hardware: Hardware, host: QemuHost) -> None:
    """Raises: TunnelError: `KEY: …`: a device that is in a module of QEMU which this host does not have."""
    if hardware.tpm is not None and "swtpm" not in host.programs:
        raise refuse("tpmstate0", "this host has no swtpm; on Debian install swtpm and swtpm-tools")
    keys = [f"usb{port.index}" for port in hardware.usb_ports] + (["vga"] if hardware.display.qxl_count else [])
    if keys and not host.has_spice:
        raise refuse(keys[0], f"this host's QEMU has no SPICE; on Debian 13 and newer install {_SPICE_PACKAGE}")
