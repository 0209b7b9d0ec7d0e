"""`mtunnel check`: what is well, what is not, and what to type."""

from __future__ import annotations

import argparse
import datetime
import errno
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.host import HostFacts, QemuHost
from mtunnel_tx.checks import clean
from mtunnel_tx.checkup.access import check_access
from mtunnel_tx.checkup.finding import Finding, FindingState, fine, problem
from mtunnel_tx.checkup.guests import check_guests, needed_bridges, needed_vlans
from mtunnel_tx.checkup.places import check_certificate, check_directories, check_storages
from mtunnel_tx.checkup.port import check_iptables, check_listening, check_nft, check_ufw, is_listening
from mtunnel_tx.checkup.processor import check_models
from mtunnel_tx.checkup.qemu import check_networks, check_programs, check_qemu, check_vlans
from mtunnel_tx.checkup.restart import check_restart
from mtunnel_tx.cli.program import run_reactor
from mtunnel_tx.cli.table import format_table
from mtunnel_tx.cli.vm.program import make_host
from mtunnel_tx.config import ConfigError, Settings, is_there, load_settings
from mtunnel_tx.config.listening import read_listener
from mtunnel_tx.daemon.descriptors import count_needed
from mtunnel_tx.errors import TunnelError, os_reason
from mtunnel_tx.net.controlsocket import ask
from mtunnel_tx.waiting import pause
from mtunnel_tx.workers.reachable import find_closed

ASK_S = 5.0
_DESCRIPTION = """\
Read the configuration, storages, users, tokens, the certificate and all VMs; look at QEMU, KVM and the CPU models that
run with it, bridges, the port, its firewall as far as that can be read, the limit of open files, and whom the workers
run as. Nothing is changed. Exit status 1: there is a problem."""
_FIREWALLS: Mapping[str, tuple[tuple[str, ...], Callable[[str, int], Iterable[Finding]]]] = {
    "nft": (("nft", "--json", "list", "ruleset"), check_nft),
    "iptables": (("iptables", "-S"), check_iptables),
    "ufw": (("ufw", "status"), check_ufw),
}


@dataclass(frozen=True, slots=True)
class CheckPlace:
    """What is to be read: the configuration that was named, if any."""

    path: Path | None
    environ: Mapping[str, str]


def configure(subparsers: Any) -> None:
    """Add `check` to the commands of `mtunnel`."""
    parser = subparsers.add_parser(
        "check", help="say what is well, what is not, and what to type", description=_DESCRIPTION
    )
    parser.add_argument("--json", action="store_true", help="as one JSON object (docs/operations.md)")
    parser.set_defaults(run=run, load=CheckPlace)


def run(args: argparse.Namespace, place: CheckPlace) -> int:
    """Look at everything and say so. Returns: the exit code."""
    try:
        settings = load_settings(place.path, place.environ)
    except ConfigError as error:
        lines = error.text.splitlines()
        return show([problem("configuration", line, _remedy(line)) for line in lines], as_json=args.json)
    from twisted.internet import reactor

    found: list[Finding] = []
    status = run_reactor(reactor, lambda: _collect(reactor, settings, found))
    return status or show(found, as_json=args.json)


def _remedy(reason: str) -> str:
    is_missing = os.strerror(errno.ENOENT) in reason
    return "name another file with --config, or make this one: mtunnel init" if is_missing else "edit the file"


def show(found: list[Finding], *, as_json: bool) -> int:
    """Print the findings. Returns: 1 where one of them is a problem."""
    has_problem = any(finding.state is FindingState.PROBLEM for finding in found)
    if as_json:
        print(json.dumps({"success": not has_problem, "findings": [asdict(finding) for finding in found]}, indent=2))
    else:
        rows = [(clean(finding.subject), finding.state.value, clean(finding.text)) for finding in found]
        for line, finding in zip(format_table([("WHAT", "STATE", "FINDING"), *rows]), [None, *found], strict=True):
            print(line)
            if finding is not None and finding.remedy:
                print(f"    do: {clean(finding.remedy)}")
    return int(has_problem)


async def _collect(reactor: Any, settings: Settings, found: list[Finding]) -> int:
    found.append(fine("configuration", str(settings.file or "none, so the defaults hold")))
    now_s = time.time()
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    for name, work in (
        ("directories", lambda: check_directories(settings)),
        ("storage.cfg", lambda: check_storages(settings)),
        ("users", lambda: check_access(settings, now_s)),
        ("certificate", lambda: check_certificate(settings, now)),
        ("open files", lambda: _descriptors(settings)),
        ("workers", lambda: check_restart(settings, _closed(settings))),
        ("programs", check_programs),
    ):
        found += _guarded(name, work)
    await pause(reactor, 0)
    await _check_port(reactor, settings, found)
    if settings.profile == "standalone" and is_there(settings.state_dir) and is_there(settings.machine_dir):
        await _check_machines(reactor, settings, found)
    return 0


def _guarded(name: str, work: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What keeps a check from looking is a finding, too."""
    try:
        return list(work())
    except TunnelError as error:
        return [problem(name, error.text)]
    except OSError as error:
        return [problem(name, os_reason(error))]


def _closed(settings: Settings) -> str | None:
    return find_closed(settings.user) if settings.workers and os.geteuid() == 0 else None


def _descriptors(settings: Settings) -> Iterator[Finding]:
    needed, hard = count_needed(settings), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < needed:
        remedy = "raise it: ulimit -Hn, LimitNOFILE= of systemd; or lower limits.connections"
        yield problem("open files", f"the limits need {needed}, the hard limit is {hard}", remedy)
    else:
        yield fine("open files", f"the limits need {needed}")


async def _check_port(reactor: Any, settings: Settings, found: list[Finding]) -> None:
    answers = True
    try:
        await ask(reactor, settings.runtime_dir / "control.sock", {"cmd": "status"}, ASK_S)
    except TunnelError:
        answers = False
    for port in (read_listener(text).port for text in settings.listen):
        if port:
            found.append(check_listening(port, daemon_answers=answers, listens=is_listening(port)))
            found += _check_firewalls(port)


def _check_firewalls(port: int) -> list[Finding]:
    looked, found = [], []
    for name, (words, look) in _FIREWALLS.items():
        text = _output(words)
        if text is not None:
            looked.append(name)
            found += _guarded("firewall", partial(look, text, port))
    return found or [
        fine("firewall", f"{', '.join(looked)}: nothing drops port {port}" if looked else "none can be read")
    ]


def _output(words: tuple[str, ...]) -> str | None:
    """What a program says; None: it is not there, may not be asked, or knows nothing."""
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 and done.stdout.strip() else None


async def _check_machines(reactor: Any, settings: Settings, found: list[Finding]) -> None:
    qemu: QemuHost | None = None
    reason = ""
    try:
        qemu = await HostFacts(reactor, os.environ).ask()
    except TunnelError as error:
        reason = " ".join(error.text.split())
    found += check_qemu(qemu, reason)
    host = make_host(ReactorThreads(reactor, reactor.getThreadPool()), settings, lambda _: None)
    try:
        found += check_networks(needed_bridges(host))
        found += check_vlans(needed_vlans(host))
        found += await check_models(reactor, host)
        found += [finding async for finding in check_guests(host)]
    except TunnelError as error:
        found.append(problem("guests", error.text))
    finally:
        host.machines.close()
