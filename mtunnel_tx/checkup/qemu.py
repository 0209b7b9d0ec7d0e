"""Programs, QEMU, KVM, firmware, bridges: what this host can run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mtunnel_tx.backends.host import KVM, QemuHost
from mtunnel_tx.backends.taps import list_bridges
from mtunnel_tx.backends.vlans import filters_vlans
from mtunnel_tx.checkup.finding import Finding, fine, problem, warning

_PROGRAMS = {
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "setsid": "util-linux",
    "prlimit": "util-linux",
    "sha256sum": "coreutils",
}
_TUN = Path("/dev/net/tun")
_QEMU = "apt-get install --no-install-recommends qemu-system-x86"


def check_programs() -> Iterator[Finding]:
    """Programs without which nothing works."""
    missing = {name: package for name, package in _PROGRAMS.items() if shutil.which(name) is None}
    for name, package in missing.items():
        yield problem("programs", f"{name} is not installed", f"apt-get install {package}")
    if not missing:
        yield fine("programs", ", ".join(_PROGRAMS))


def check_qemu(host: QemuHost | None, reason: str) -> Iterator[Finding]:
    """QEMU and KVM. Args: host: None: it does not answer, for this reason."""
    if host is None:
        yield problem("qemu", reason, _QEMU)
        return
    yield fine("qemu", f"{len(host.machines)} machine types, {len(host.cpus)} CPU models")
    if host.has_kvm:
        yield fine("kvm", "a guest ran on this host's own processor")
    elif not KVM.exists():
        yield warning("kvm", f"there is no {KVM}: VMs are emulated, and slow", "modprobe kvm_intel || modprobe kvm_amd")
    elif not os.access(KVM, os.R_OK | os.W_OK):
        yield problem("kvm", f"{KVM} cannot be used by this user", f"usermod -aG kvm {os.environ.get('USER', 'USER')}")
    else:
        yield warning(
            "kvm", f"{KVM} is there, but the trial guest did not run: VMs are emulated", "dmesg | grep -i kvm"
        )


def check_vlans(needed: dict[str, list[int]]) -> Iterator[Finding]:
    """Args: needed: bridge to the VMs that have a VLAN on it."""
    there = list_bridges()
    for bridge, vmids in sorted(needed.items()):
        if bridge in there and not filters_vlans(bridge):
            text = f"does not keep VLANs apart; needed by VM {', '.join(map(str, vmids))}"
            yield problem(f"bridge {bridge}", text, f"ip link set {bridge} type bridge vlan_filtering 1")


def check_networks(needed: dict[str, list[int]]) -> Iterator[Finding]:
    """Args: needed: bridge to the VMs that name it."""
    there = list_bridges()
    for bridge, vmids in sorted(needed.items()):
        if bridge not in there:
            listed = ", ".join(map(str, vmids))
            yield problem(
                f"bridge {bridge}", f"is not there; needed by VM {listed}", f"ip link add {bridge} type bridge"
            )
    if there:
        yield fine("bridges", ", ".join(there))
    if needed and not os.access(_TUN, os.R_OK | os.W_OK):
        yield problem("bridges", f"{_TUN} cannot be used: no VM gets a port of a bridge", "modprobe tun; run as root")
