"""Which CPU models run with KVM here: those that Proxmox offers first, and those of this host's VMs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from mtunnel_tx.backends.host import CPUINFO, KVM, PROGRAM
from mtunnel_tx.backends.kvmtrial import Trial, try_cpus
from mtunnel_tx.checkup.finding import Finding, fine, problem, warning
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.pve.cpumodels import CUSTOM, read_cpu
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestformats import CPU

DEFAULT = "kvm64"
OFFERED = (DEFAULT, "x86-64-v2", "x86-64-v2-AES", "x86-64-v3", "x86-64-v4", "host")
"""From the model that runs nearly everywhere to that of this host's own processor."""
_SUBJECT = "cpu models"
_SHOWN = 3
_NESTED = "this host is a VM itself: allow it nested virtualisation, e.g. with cpu: host"
_BARE = "dmesg | grep -i kvm; the firmware's settings may have virtualisation switched off"


async def check_models(reactor: Any, host: PlainHost) -> list[Finding]:
    """Nothing where there is no QEMU, or no KVM to be tried."""
    if shutil.which(PROGRAM) is None or not os.access(KVM, os.R_OK | os.W_OK):
        return []
    wanted = wanted_models(host)
    cpus = {name: argument(name) for name in (*OFFERED, *wanted)}
    trials = await try_cpus(reactor, os.environ, PROGRAM, cpus)
    return list(judge_models(trials, wanted, is_vm=" hypervisor" in CPUINFO.read_text()))


def argument(name: str) -> str:
    """QEMU's `-cpu` for a model of Proxmox's; it has to have all its flags."""
    cpu = read_cpu({"cpu": name}, {})
    return ",".join((cpu.name or DEFAULT, *cpu.flags, "enforce"))


def judge_models(trials: Mapping[str, Trial], wanted: Mapping[str, list[int]], *, is_vm: bool) -> Iterator[Finding]:
    """Args: wanted: model to the VMs that have it. is_vm: whether this host is a VM itself."""
    running = [name for name in OFFERED if name in trials and trials[name].runs]
    failing = [f"{name} ({_describe(trials[name])})" for name in OFFERED if name in trials and name not in running]
    if not running:
        yield warning(_SUBJECT, f"none runs with KVM: {', '.join(failing)}", _NESTED if is_vm else _BARE)
        return
    without = f"; not: {', '.join(failing)}" if failing else ""
    yield fine(_SUBJECT, f"run with KVM: {', '.join(running)}{without}")
    for name, vmids in sorted(wanted.items()):
        if not trials[name].runs:
            text = f"its CPU model {name} does not run with KVM here ({_describe(trials[name])})"
            remedy = f"mtunnel vm set {{}} cpu={max(set(running) - {'host'}, key=OFFERED.index, default='host')}"
            yield from (problem(f"VM {vmid}", text, remedy.format(vmid)) for vmid in vmids)


def _describe(trial: Trial) -> str:
    if not trial.missing:
        return "its trial guest did not run"
    more = len(trial.missing) - _SHOWN
    return f"lacks {' '.join(trial.missing[:_SHOWN])}{f' and {more} more' if more > 0 else ''}"


def wanted_models(host: PlainHost) -> dict[str, list[int]]:
    """The models that configs name and KVM is to run, each with its VMs."""
    wanted: dict[str, list[int]] = {}
    for vmid in host.vmids():
        name = _model(host.guests.read(vmid))
        if name is not None:
            wanted.setdefault(name, []).append(vmid)
    return wanted


def _model(conf: GuestConfig) -> str | None:
    try:
        name = CPU.parse(conf.options.get("cpu", DEFAULT)).get("cputype", DEFAULT)
    except (TunnelError, ValueError):
        return None
    return None if conf.options.get("kvm") == "0" or name.startswith(CUSTOM) else name
