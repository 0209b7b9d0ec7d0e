"""A virtual machine's CPU, as QEMU's option has it: Proxmox's models are made of QEMU's."""

from __future__ import annotations

from collections.abc import Iterator

from mtunnel_tx.backends.host import QemuHost
from mtunnel_tx.errors import refuse
from mtunnel_tx.pve.hardware import Hardware

_HYPER_V = ("ipi", "relaxed", "reset", "runtime", "spinlocks=0x1fff", "stimer", "synic", "time", "vapic", "vpindex")
_LEVEL_2 = ("pni", "popcnt", "sse4.1", "sse4.2", "ssse3")
_LEVEL_3 = ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")
_LEVEL_4 = ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
_PROXMOX_CPUS = {
    "x86-64-v2": _LEVEL_2,
    "x86-64-v2-AES": ("aes", *_LEVEL_2),
    "x86-64-v3": ("aes", *_LEVEL_2, *_LEVEL_3),
    "x86-64-v4": ("aes", *_LEVEL_2, *_LEVEL_3, *_LEVEL_4),
}
"""CPU models that Proxmox adds to QEMU's: `qemu64` with these flags."""
_WITH_GUEST_PHYS_BITS = "pc-i440fx-9.1"
_OF_KVM = ("kvm_", "kvm-", "hv_", "hv-", "enforce")
"""Properties that emulation does not know, or that it need not heed."""


def cpu_argument(hardware: Hardware, host: QemuHost, *, told: str | None = None) -> str:
    """The model and its flags. What only KVM has is left out where there is none.

    Args: told: the argument itself, where the source of a migration says it.
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
        if _plain(flag) not in host.cpu_flags and not flag.startswith(_OF_KVM):
            raise refuse("cpu", f"this QEMU has no CPU flag '{flag}'")
    if "guest-phys-bits" in hardware.cpu and _WITH_GUEST_PHYS_BITS not in host.machines:
        raise refuse("cpu", "this QEMU has no guest-phys-bits")


def _plain(flag: str) -> str:
    """QEMU takes either."""
    return flag.replace("_", "-").replace(".", "-")


def _words(hardware: Hardware, host: QemuHost, *, kvm: bool) -> Iterator[str]:
    cpu = hardware.cpu
    model = cpu.get("cputype", "kvm64" if hardware.kvm else "qemu64")
    chosen = [_resolved(flag, host) for flag in cpu.get("flags", "").split(";") if flag]
    named = {flag[1:] for flag in chosen}
    yield "qemu64" if model in _PROXMOX_CPUS else model
    yield from (f"+{flag}" for flag in _PROXMOX_CPUS.get(model, ()) if flag not in named)
    yield from (f"+{flag}" for flag in ("lahf_lm", "sep") if model == "kvm64" and flag not in named)
    yield from chosen
    if kvm:
        yield from ("+kvm_pv_unhalt", "+kvm_pv_eoi")
        yield from () if model in ("host", "max") else ("enforce",)
        yield from _windows_words(hardware)
    if cpu.get("hidden") == "1":
        yield "kvm=off"
    if "phys-bits" in cpu:
        yield "host-phys-bits=true" if cpu["phys-bits"] == "host" else f"phys-bits={cpu['phys-bits']}"
    yield from (f"{key}={cpu[key]}" for key in ("guest-phys-bits", "level") if key in cpu)


def _resolved(flag: str, host: QemuHost) -> str:
    """`nested-virt` is Proxmox's name for what each maker of processors calls otherwise."""
    return f"{flag[0]}{host.nesting}" if flag[1:] == "nested-virt" else flag


def _windows_words(hardware: Hardware) -> Iterator[str]:
    """What Windows from Vista on wants to see of Hyper-V; the newer ones more of it."""
    if hardware.windows < 6:
        return
    early = ("relaxed", "spinlocks=0x1fff", "vapic", "time")
    yield from (f"hv_{word}" for word in (_HYPER_V if hardware.windows >= 7 else early))
    if "hv-vendor-id" in hardware.cpu:
        yield f"hv_vendor_id={hardware.cpu['hv-vendor-id']}"
