"""QEMU's `-cpu` argument: a model, the flags that Proxmox adds to it, and those of the config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mtunnel_tx.backends.host import QemuHost
from mtunnel_tx.errors import refuse
from mtunnel_tx.pve.cpumodels import vendor_of
from mtunnel_tx.pve.hardware import Hardware

_HYPER_V = ("ipi", "relaxed", "reset", "runtime", "spinlocks=0x1fff", "stimer", "synic", "time", "vapic", "vpindex")
_HYPER_V_VISTA = ("relaxed", "spinlocks=0x1fff", "vapic", "time")
_CONTROL_FLOW = ("cet-ibt", "cet-ss")
"""Flags that Windows 11 does not start with; older QEMUs do not have them."""
_WITH_GUEST_PHYS_BITS = "pc-i440fx-9.1"
_OF_KVM = ("kvm_", "kvm-", "hv_", "hv-", "enforce")
"""Properties that emulation does not know, or can ignore."""


def cpu_argument(hardware: Hardware, host: QemuHost, *, told: str | None = None) -> str:
    """The model and its flags; without KVM, what only KVM has is left out.

    Args: told: the argument that the source of a migration gives.
    """
    kvm = host.runs_on_kvm(hardware)
    words = told.split(",") if told else list(_words(hardware, host, kvm=kvm))
    if not kvm:
        words = ["max" if word == "host" else word for word in words if not word.lstrip("+-").startswith(_OF_KVM)]
    return ",".join(words)


def check_cpu(hardware: Hardware, host: QemuHost) -> None:
    """Raises: TunnelError: `cpu: …`: a model or a flag that this QEMU does not have."""
    model, *words = cpu_argument(hardware, host).split(",")
    if model not in host.cpus:
        raise refuse("cpu", f"this QEMU has no CPU model '{model}'")
    for flag in (word[1:] for word in words if word[0] in "+-"):
        if _dashed(flag) not in host.cpu_flags and not flag.startswith(_OF_KVM):
            raise refuse("cpu", f"this QEMU has no CPU flag '{flag}'")
    if hardware.cpu.guest_phys_bits is not None and _WITH_GUEST_PHYS_BITS not in host.machines:
        raise refuse("cpu", "this QEMU has no guest-phys-bits")


def _dashed(flag: str) -> str:
    """QEMU lists flags with dashes, and also takes underscores and dots."""
    return flag.replace("_", "-").replace(".", "-")


def _words(hardware: Hardware, host: QemuHost, *, kvm: bool) -> Iterator[str]:
    """A flag of the VM wins over one of its custom model, and that one over Proxmox's own."""
    cpu = hardware.cpu
    model = cpu.name or ("kvm64" if hardware.kvm else "qemu64")
    flags = dict(_named(_own_flags(model, hardware, host, kvm=kvm)))
    flags |= _named(_resolved(flag, host) for flag in (*cpu.flags, *cpu.own_flags))
    yield model
    yield from flags.values()
    if kvm and model not in ("host", "max"):
        yield "enforce"
    if vendor := vendor_of(model):
        yield f"vendor={vendor}"
    if cpu.hidden:
        yield "kvm=off"
    if cpu.phys_bits is not None:
        yield "host-phys-bits=true" if cpu.phys_bits == "host" else f"phys-bits={cpu.phys_bits}"
    numbers = {"guest-phys-bits": cpu.guest_phys_bits, "level": cpu.level}
    yield from (f"{key}={value}" for key, value in numbers.items() if value is not None)


def _named(words: Iterator[str]) -> Mapping[str, str]:
    return {word.lstrip("+-").partition("=")[0]: word for word in words}


def _resolved(flag: str, host: QemuHost) -> str:
    """`nested-virt` is Proxmox's name for a flag that is `svm` or `vmx`."""
    return f"{flag[0]}{host.nesting}" if flag[1:] == "nested-virt" else flag


def _own_flags(model: str, hardware: Hardware, host: QemuHost, *, kvm: bool) -> Iterator[str]:
    """The flags that Proxmox gives to every CPU of a model, or of a guest system."""
    if model == "kvm64":
        yield "+lahf_lm"
    if model in ("kvm64", "kvm32"):
        yield "+sep"
    if model.startswith("Opteron_"):
        yield "-rdtscp"
    if hardware.solaris:
        yield "-x2apic"
    if hardware.windows >= 11:
        yield from (f"-{flag}" for flag in _CONTROL_FLOW if flag in host.cpu_flags)
    if kvm:
        yield from ("+kvm_pv_unhalt", "+kvm_pv_eoi")
        yield from _windows_flags(hardware)


def _windows_flags(hardware: Hardware) -> Iterator[str]:
    """The Hyper-V features that Windows uses: Vista some of them, newer versions more."""
    if hardware.windows < 6:
        return
    yield from (f"hv_{word}" for word in (_HYPER_V if hardware.windows >= 7 else _HYPER_V_VISTA))
    if hardware.cpu.hv_vendor_id is not None:
        yield f"hv_vendor_id={hardware.cpu.hv_vendor_id}"
