"""CPU models: those that Proxmox adds to QEMU's, those of `cpu-models.conf`, and what Proxmox knows of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mtunnel_tx.checks import FormatError
from mtunnel_tx.errors import refuse
from mtunnel_tx.pve.guestformats import CPU
from mtunnel_tx.pve.sections import parse_sections

CUSTOM = "custom-"
MOST_PHYS_BITS = 52
_LEVEL_2 = ("pni", "popcnt", "sse4.1", "sse4.2", "ssse3")
_LEVEL_3 = ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")
_LEVEL_4 = ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
_LEVELS = {
    "x86-64-v2": _LEVEL_2,
    "x86-64-v2-AES": ("aes", *_LEVEL_2),
    "x86-64-v3": ("aes", *_LEVEL_2, *_LEVEL_3),
    "x86-64-v4": ("aes", *_LEVEL_2, *_LEVEL_3, *_LEVEL_4),
}
"""Models that Proxmox adds: `qemu64` with these flags."""
_RENAMED = {"Icelake-Client": "Icelake-Server", "Icelake-Client-noTSX": "Icelake-Server-noTSX"}
_GENERIC = frozenset({"host", "max", "kvm32", "kvm64", "qemu32", "qemu64"})
_AMD = ("athlon", "phenom", "Opteron_", "EPYC")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuModel:
    """`name`: QEMU's model, None: the default; `flags`: signed flags of the model, `own_flags` those of the VM."""

    name: str | None = None
    flags: tuple[str, ...] = ()
    own_flags: tuple[str, ...] = ()
    hidden: bool = False
    hv_vendor_id: str | None = None
    phys_bits: str | None = None
    guest_phys_bits: str | None = None
    level: str | None = None


def vendor_of(model: str) -> str | None:
    """The vendor that a model reports; None: that of the host's processor."""
    if model in _GENERIC:
        return None
    return "AuthenticAMD" if model.startswith(_AMD) else "GenuineIntel"


def parse_cpu_models(text: str, warn: Callable[[str], None]) -> dict[str, Mapping[str, str]]:
    """Read `cpu-models.conf`. Args: warn: takes what is skipped. Returns: name to options, as in a VM's `cpu`."""
    models: dict[str, Mapping[str, str]] = {}
    for section in parse_sections(text, warn):
        if section.type == "cpu-model":
            try:
                models[section.id] = {key: CPU.checks[key](value) for key, value in section.options.items()}
            except (FormatError, KeyError) as error:
                warn(f"cpu-model {section.id}: {error}")
    return models


def read_cpu(options: Mapping[str, str], models: Mapping[str, Mapping[str, str]]) -> CpuModel:
    """Read `cpu`. Args: models: those of `cpu-models.conf`. Raises: TunnelError: `cpu: REASON`."""
    cpu = CPU.parse(options["cpu"]) if "cpu" in options else {}
    if "reported-model" in cpu:
        raise refuse("cpu", "reported-model belongs into cpu-models.conf")
    name = cpu.get("cputype")
    custom: Mapping[str, str] = {}
    if name is not None and name.startswith(CUSTOM):
        custom = _find(name, models)
        name = custom.get("reported-model", "kvm64")
    merged = {**custom, **cpu}
    _check_phys_bits(merged.get("phys-bits", "host"))
    added = _LEVELS.get(name or "", ())
    return CpuModel(
        name="qemu64" if added else _RENAMED.get(name or "", name),
        flags=(*(f"+{flag}" for flag in added), *_split(custom)),
        own_flags=_split(cpu),
        hidden=merged.get("hidden") == "1",
        hv_vendor_id=merged.get("hv-vendor-id"),
        phys_bits=merged.get("phys-bits"),
        guest_phys_bits=merged.get("guest-phys-bits"),
        level=merged.get("level"),
    )


def _find(name: str, models: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    custom = models.get(name.removeprefix(CUSTOM))
    if custom is None:
        raise refuse("cpu", f"there is no custom CPU model '{name}' here")
    return custom


def _check_phys_bits(bits: str) -> None:
    if bits != "host" and not 32 <= int(bits) <= MOST_PHYS_BITS:
        raise refuse("cpu", f"there are 32 to {MOST_PHYS_BITS} phys-bits, not {bits}")


def _split(values: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(flag for flag in values.get("flags", "").split(";") if flag)
