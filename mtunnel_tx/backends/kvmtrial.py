"""Runs a guest of one boot sector with KVM, to see whether a CPU model really works on this host."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mtunnel_tx.backends.child import run
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.waiting import together

TRIAL_S = 5.0
_BOOTS = bytes.fromhex("fa31c08ed8bc007cfb a16c04 f4 3b066c04 74f9 ba0105 b010 ee f4 ebfd")
"""A boot sector: waits for the clock's next tick, then leaves by the exit device with 0x10, which is exit code 33."""
_LEFT_WELL = "exit code 33:"
_SECTOR_BYTES = 512
_MISSING = re.compile(r"requested feature: (?:CPUID\S*?E[A-D]X|MSR\(\S+?\))\.(\S+) \[bit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How a CPU model did. `missing`: the flags that KVM does not have here; `reason`: QEMU's words where it failed."""

    runs: bool
    missing: tuple[str, ...] = ()
    reason: str = ""


async def try_cpu(reactor: Any, environ: Mapping[str, str], program: str, cpu: str) -> Trial:
    """Run the guest up to its first timer interrupt. Args: cpu: QEMU's `-cpu`, with `enforce` where that is meant."""
    with TemporaryDirectory(prefix="mtunnel-kvm-") as folder:
        disk = Path(folder, "boot")
        disk.write_bytes(_BOOTS.ljust(_SECTOR_BYTES - 2, b"\0") + b"\x55\xaa")
        try:
            await run(reactor, [program, *_arguments(disk, cpu)], environ, TRIAL_S)
        except TunnelError as error:
            if _LEFT_WELL in error.text:
                return Trial(runs=True)
            missing = tuple(dict.fromkeys(_MISSING.findall(error.text)))
            return Trial(runs=False, missing=missing, reason=" ".join(error.text.split()))
    return Trial(runs=False, reason="the trial guest ended by itself")


async def try_cpus(reactor: Any, environ: Mapping[str, str], program: str, cpus: Mapping[str, str]) -> dict[str, Trial]:
    """Try several at the same time. Args: cpus: name to `-cpu`. Returns: name to how it did."""
    trials: dict[str, Trial] = {}

    async def try_one(name: str) -> None:
        trials[name] = await try_cpu(reactor, environ, program, cpus[name])

    await together(*map(try_one, cpus))
    return trials


def _arguments(disk: Path, cpu: str) -> list[str]:
    options = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "16"]
    options += ["-machine", "pc,accel=kvm", "-cpu", cpu, "-device", "isa-debug-exit,iobase=0x501,iosize=1"]
    return [*options, "-drive", f"file={disk},format=raw,if=ide,readonly=off"]
