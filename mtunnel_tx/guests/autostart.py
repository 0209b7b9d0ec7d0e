"""Which VMs are started after a boot, in which order, and how all are shut down."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from itertools import groupby

from twisted.internet.defer import Deferred, gatherResults

from mtunnel_tx.checks import FormatError
from mtunnel_tx.errors import NotFound, TimedOut, TunnelError
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.guests.running import SHUTDOWN_S, shut_down, shut_down_leaving, start, stop
from mtunnel_tx.guests.settings import set_options
from mtunnel_tx.ports.clock import Clock
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestrules import is_template
from mtunnel_tx.pve.moved import find_move
from mtunnel_tx.pve.property import parse_property
from mtunnel_tx.waiting import pause

_LAST = sys.maxsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Startup:
    """`startup` of a config.

    `order`: the least is started first. `up_s`: the pause after its start. `down_s`: what it may take to shut down.
    """

    order: int = _LAST
    up_s: float = 0
    down_s: float = SHUTDOWN_S


@dataclass(frozen=True, slots=True, kw_only=True)
class AutostartResult:
    """What became of one VM; `problem`: empty where all went well."""

    vmid: int
    name: str
    problem: str = ""


def read_startup(conf: GuestConfig) -> Startup:
    """What cannot be read counts as absent."""
    try:
        values = parse_property(conf.options.get("startup", ""), "order")
    except FormatError:
        values = {}
    numbers = {key: int(value) for key, value in values.items() if value.isascii() and value.isdecimal()}
    down_s = numbers.get("down", 0) or SHUTDOWN_S
    return Startup(order=numbers.get("order", _LAST), up_s=numbers.get("up", 0), down_s=down_s)


async def set_autostart(host: PlainHost, vmid: int, on: bool, startup: Mapping[str, int]) -> None:
    """Have a VM started after a boot, or not. Args: startup: `order`, `up`, `down` in seconds; empty: as they are."""
    conf = host.guests.read(vmid)
    assigned = {"onboot": "1"} if on else {}
    if startup:
        given = {key: str(value) for key, value in startup.items()}
        kept = parse_property(conf.options.get("startup", ""), "order")
        assigned["startup"] = ",".join(f"{key}={value}" for key, value in sorted({**kept, **given}.items()))
    deleted = ["onboot"] if not on and "onboot" in conf.options else []
    await set_options(host, vmid, assigned, deleted)


async def start_all(host: PlainHost, clock: Clock) -> list[AutostartResult]:
    """Start each VM that is to run after a boot, one after the other; one that fails does not keep the others.

    A copy of a VM that was moved away is passed over: that it does not start is no failure of the boot.
    """
    results: list[AutostartResult] = []
    wait_s = 0.0
    for vmid, conf in _ordered(host):
        if conf.options.get("onboot") != "1" or is_template(conf) or host.machines.running(vmid):
            continue
        if move := find_move(conf):
            host.note(f"VM {vmid} was {move}: it is not started")
            continue
        await pause(clock, wait_s)
        result = await _attempt(host, vmid, conf, _start(host, vmid))
        wait_s = 0.0 if result.problem else read_startup(conf).up_s
        results.append(result)
    return results


async def shut_all_down(host: PlainHost) -> list[AutostartResult]:
    """Shut down all VMs, the last started first; those of one order at once. One that takes too long is ended."""
    running = [(vmid, conf) for vmid, conf in reversed(_ordered(host)) if host.machines.running(vmid)]
    results: list[AutostartResult] = []
    for _, group in groupby(running, key=lambda found: read_startup(found[1]).order):
        works = [Deferred.fromCoroutine(_attempt(host, vmid, conf, _end(host, vmid, conf))) for vmid, conf in group]
        results += await gatherResults(works)
    return results


def _ordered(host: PlainHost) -> list[tuple[int, GuestConfig]]:
    found = []
    for vmid in host.vmids():
        try:
            found.append((vmid, host.guests.read(vmid)))
        except NotFound:
            continue
    return sorted(found, key=lambda entry: (read_startup(entry[1]).order, entry[0]))


async def _start(host: PlainHost, vmid: int) -> None:
    """A move that the host's restart broke off is settled first."""
    if vmid in host.departures.standing():
        await host.settle_kept(vmid)
    await start(host, vmid)


async def _end(host: PlainHost, vmid: int, conf: GuestConfig) -> None:
    if conf.lock is not None and vmid in host.departures.standing():
        await shut_down_leaving(host, vmid, read_startup(conf).down_s)
        return
    try:
        await shut_down(host, vmid, read_startup(conf).down_s)
    except TimedOut:
        await stop(host, vmid)


async def _attempt(host: PlainHost, vmid: int, conf: GuestConfig, work: Awaitable[None]) -> AutostartResult:
    name = conf.options.get("name", "")
    try:
        await work
    except TunnelError as error:
        host.note(f"VM {vmid}: {error.text}")
        return AutostartResult(vmid=vmid, name=name, problem=error.text)
    return AutostartResult(vmid=vmid, name=name)
