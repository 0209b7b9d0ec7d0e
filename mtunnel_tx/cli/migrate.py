"""`mtunnel migrate`: send a VM to another host."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred

from mtunnel_tx.checks import clean, split_list
from mtunnel_tx.cli.dialling import make_dial
from mtunnel_tx.cli.look import format_size, show, show_failure
from mtunnel_tx.cli.output import FAILED, fail
from mtunnel_tx.cli.parser import Paragraphs
from mtunnel_tx.cli.program import USAGE, read_vmid, run_reactor
from mtunnel_tx.cli.progress import Display, make_display
from mtunnel_tx.cli.reporting import alarm, begin_state, reported
from mtunnel_tx.cli.sourcehost import source_parts
from mtunnel_tx.config import Settings
from mtunnel_tx.errors import BadRequest, TunnelError
from mtunnel_tx.http.client import pinned_agent
from mtunnel_tx.ports.events import ByteCount
from mtunnel_tx.pve.maps import SAME_NAMES, Endpoint, Map, parse_endpoint, parse_map
from mtunnel_tx.pve.storagetypes import IMAGES
from mtunnel_tx.source.amounts import describe_pace
from mtunnel_tx.source.links import ProgressListener
from mtunnel_tx.source.migration import Migration
from mtunnel_tx.source.order import Order, SourceWorld
from mtunnel_tx.source.outages import Outages
from mtunnel_tx.source.patience import MAX_DOWNTIME_S, SWITCH_S, OnTimeout, Patience
from mtunnel_tx.source.qemu.meters import MEMORY
from mtunnel_tx.source.survey import Obstructed
from mtunnel_tx.source.target import TargetApi, learn_fingerprint, token_id
from mtunnel_tx.stream.flow import Flow
from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.stream.pump import Pump
from mtunnel_tx.watch.reporter import Reporter
from mtunnel_tx.watch.shape import move_json

LONGEST_S = 1e6
_RATE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)([KMG]?)", re.ASCII | re.IGNORECASE)
ENDPOINT_VARIABLE = "MTUNNEL_ENDPOINT"

_DESCRIPTION = """\
Send a VM to another host, to Proxmox VE or to mtunnel-tx: a stopped one, or with --online a running one. The VM here
is locked meanwhile; afterwards it is off, and stays as it was unless --delete is given and the target has confirmed
that the VM is its own. Interrupted (Ctrl-C), it has the target remove what was sent; interrupted again, it does not
wait until that is done.

ENDPOINT is `apitoken=PVEAPIToken=USER@REALM!TOKENID=SECRET,host=HOST[,port=8006][,fingerprint=AA:BB:...]`. It holds a
secret that every user of this host can see on a command line: better put it in a file, or in $MTUNNEL_ENDPOINT."""
_NOTICE = """\
mtunnel migrate: interrupted; the target is asked to clean up, which may take a minute. Again: do not wait for it."""
_EPILOG = "Exit status: 0 done, 1 failed or something stands in the way, 2 wrong usage, 130 interrupted."


def configure(subparsers: Any) -> None:
    """Add `migrate` to the commands of `mtunnel`."""
    parser = subparsers.add_parser(
        "migrate",
        help="send a virtual machine to another host",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        usage="mtunnel migrate VMID [ENDPOINT] [--target-storage MAP] [options]",
        formatter_class=Paragraphs,
    )
    parser.add_argument("vmid", metavar="VMID", type=read_vmid)
    add_endpoint(parser)
    _add_target(parser)
    parser.add_argument("--bwlimit", type=read_limit, metavar="RATE", help="KiB/s, or 10M for MiB/s; 0 for no limit")
    _add_look(parser)
    parser.add_argument("--delete", action="store_true", help="remove the VM here once the target has it")
    parser.add_argument("--online", action="store_true", help="move it while it runs")
    parser.add_argument(
        "--drop-snapshots",
        action="store_true",
        help="snapshots and bitmaps in its images may be lost, with --online or where a format changes",
    )
    parser.add_argument(
        "--strict-space", action="store_true", help="refuse a target without space for the disks' whole size"
    )
    _add_patience(parser)
    parser.set_defaults(run=run)


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """The target, in one of three ways (`find_endpoint`)."""
    parser.add_argument("endpoint", metavar="ENDPOINT", nargs="?", help="where to, and with which API token")
    parser.add_argument("--endpoint-file", type=Path, metavar="FILE", help="read ENDPOINT from the first line of FILE")


def _add_look(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would become of it and what stands in the way"
    )
    parser.add_argument(
        "--json", action="store_true", help="say nothing but how it ended, or with --dry-run what was found"
    )
    parser.add_argument(
        "--drop",
        type=split_list,
        default=(),
        metavar="KEY,...",
        help="leave keys out of the config that is sent, e.g. args,hookscript,affinity",
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target-vmid", type=read_vmid, metavar="N", help="the VMID there (default: the same)")
    parser.add_argument(
        "--target-storage",
        type=read_map,
        default=SAME_NAMES,
        metavar="MAP",
        help="storages: HERE:THERE,... or THERE for all (default: the same names)",
    )
    parser.add_argument(
        "--target-bridge", type=read_map, metavar="MAP", help="bridges, in the same way (default: the same names)"
    )
    parser.add_argument(
        "--target-format",
        choices=IMAGES,
        help="the disks' image format there (default: as here, where the storage there has that, else its usual one)",
    )


def _add_patience(parser: argparse.ArgumentParser) -> None:
    online = parser.add_argument_group("with --online, where the VM changes faster than it is sent")
    online.add_argument(
        "--max-downtime",
        type=read_seconds,
        default=MAX_DOWNTIME_S,
        metavar="S",
        help=f"raise its downtime in steps, up to so many seconds (default: {MAX_DOWNTIME_S:g})",
    )
    online.add_argument(
        "--switch-timeout",
        type=read_seconds,
        default=SWITCH_S,
        metavar="S",
        help="let it run on here if what is left cannot be sent within so many seconds of its standing still "
        f"(default: {SWITCH_S:g})",
    )
    online.add_argument("--auto-converge", action="store_true", help="slow its guest down")
    online.add_argument(
        "--timeout", type=read_seconds, metavar="S", help="seconds for disks and memory together (default: no limit)"
    )
    online.add_argument(
        "--on-timeout",
        type=OnTimeout,
        choices=list(OnTimeout),
        default=OnTimeout.ABORT,
        metavar="abort|pause|postcopy",
        help="then give up, let it stand still until it is there, or run there before all of its memory is there "
        "(default: abort)",
    )


def read_seconds(text: str) -> float:
    """A time from the command line."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds, more than 0 and at most {LONGEST_S:g}")
    return seconds


def read_map(text: str) -> Map:
    """A map from the command line."""
    try:
        return parse_map(text)
    except BadRequest as error:
        raise argparse.ArgumentTypeError(error.text) from error


def read_limit(text: str) -> int:
    """A limit from the command line, `10240`, `10M` or `1.5G`. Returns: KiB/s, rounded up."""
    found = _RATE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of KiB/s, nor one with K, M or G behind it")
    return int((Decimal(found[1]) * 1024 ** "KMG".index(found[2].upper() or "K")).to_integral_value(ROUND_CEILING))


def is_endpoint_given(args: argparse.Namespace, environ: Mapping[str, str]) -> bool:
    """Whether `find_endpoint` has anything to read."""
    return args.endpoint is not None or args.endpoint_file is not None or bool(environ.get(ENDPOINT_VARIABLE))


def find_endpoint(args: argparse.Namespace, environ: Mapping[str, str]) -> Endpoint:
    """The endpoint of the command line, of a file, or of the environment. Raises: BadRequest."""
    if args.endpoint is not None and args.endpoint_file is not None:
        raise BadRequest("ENDPOINT and --endpoint-file cannot be given both")
    text, place = args.endpoint, "ENDPOINT"
    if args.endpoint_file is not None:
        text, place = _read_line(args.endpoint_file), str(args.endpoint_file)
    elif text is None:
        text, place = environ.get(ENDPOINT_VARIABLE), f"${ENDPOINT_VARIABLE}"
    if not text:
        raise BadRequest(f"no endpoint: give ENDPOINT, --endpoint-file or ${ENDPOINT_VARIABLE}")
    try:
        return parse_endpoint(text.strip())
    except BadRequest as error:
        raise BadRequest(f"{place}: {_in_one_line(error.text)} ('mtunnel endpoint' at the target prints it)") from None


def _in_one_line(reason: str) -> str:
    """Proxmox's own words for a text without any key are no help."""
    if "schema does not define a default key" in reason:
        return "is no endpoint: apitoken=…,host=… is missing"
    return "; ".join(
        line.strip() for line in reason.removeprefix("endpoint: ").removeprefix("format error\n").splitlines()
    )


def _read_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Returns: the exit status."""
    try:
        endpoint = find_endpoint(args, os.environ)
    except BadRequest as error:
        fail(args, error)
        return USAGE
    from twisted.internet import reactor

    with make_display(sys.stdout, reactor, is_silent=args.json) as display:
        job = Job(reactor, settings, endpoint, display, is_silent=args.json)
        if args.dry_run:
            return run_reactor(reactor, lambda: job.look(make_order(args), as_json=args.json), _NOTICE, job.hurry)
        status = run_reactor(reactor, lambda: job.run(make_order(args)), _NOTICE, job.hurry)
    if args.json:
        print(json.dumps(job.answer(), indent=2))
    return status


def make_order(args: argparse.Namespace) -> Order:
    """What the command line asks for."""
    return Order(
        vmid=args.vmid,
        target_vmid=args.target_vmid or args.vmid,
        storages=args.target_storage,
        bridges=args.target_bridge,
        bwlimit_kib_s=args.bwlimit,
        delete=args.delete,
        online=args.online,
        drop_snapshots=args.drop_snapshots,
        target_format=args.target_format,
        strict_space=args.strict_space,
        drop=tuple(dict.fromkeys(args.drop)),
        patience=Patience(
            max_downtime_s=args.max_downtime,
            switch_s=args.switch_timeout,
            auto_converge=args.auto_converge,
            timeout_s=args.timeout,
            on_timeout=args.on_timeout,
        ),
    )


@asynccontextmanager
async def opened_world(
    reactor: Any, settings: Settings, endpoint: Endpoint, progress: ProgressListener, flows: list[Flow]
) -> AsyncIterator[SourceWorld]:
    """Both hosts, as the configuration and the endpoint describe them; at the end every stream is closed.

    Args: flows: all that are opened are added.
    """
    endpoint = await complete(reactor, endpoint)
    relay = Pump(reactor)
    outages = Outages(reactor, progress.say, progress.tell)
    dial = make_dial(reactor, endpoint, relay, outages, flows, settings.limits.of(FlowLimits))

    try:
        parts = await source_parts(reactor, settings, progress)
        yield SourceWorld(**parts, target=make_target(reactor, endpoint), dial=dial, outages=outages)
    finally:
        await relay.stop()


def make_target(reactor: Any, endpoint: Endpoint) -> TargetApi:
    """The target's API, for the owner of the endpoint's certificate only."""
    return TargetApi(HTTPClient(pinned_agent(reactor, endpoint)), endpoint, reactor)


async def complete(reactor: Any, endpoint: Endpoint) -> Endpoint:
    """Where no fingerprint was given, CAs have to vouch for the target, which then names its certificate."""
    if endpoint.fingerprint is not None:
        return endpoint
    return replace(endpoint, fingerprint=await learn_fingerprint(make_target(reactor, endpoint)))


class Job:
    """One run of the command: builds everything, says how it ended. Args: is_silent: only `answer` says it."""

    def __init__(
        self, reactor: Any, settings: Settings, endpoint: Endpoint, display: Display, *, is_silent: bool = False
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._endpoint = endpoint
        self._display = display
        self._impatient: Deferred[None] = Deferred()
        self._flows: list[Flow] = []
        self._reporter: Reporter | None = None
        self._is_silent = is_silent
        self._reasons: list[str] = []

    def hurry(self) -> None:
        """Wait for the target no more; once."""
        self._impatient.callback(None)

    def answer(self) -> Mapping[str, Any]:
        """How it ended, for --json."""
        move = move_json(self._reporter.state) if self._reporter else None
        return {"success": not self._reasons, "msg": "; ".join(self._reasons), "move": move}

    async def run(self, order: Order) -> int:
        """Move the VM. Returns: the exit status."""
        try:
            async with self._reported(order) as reporter, self._opened(reporter) as world:
                self._reporter = reporter
                self._impatient.chainDeferred(world.impatient)
                await self._migrate(order, world)
        except Obstructed as error:
            for obstacle in error.obstacles:
                self._complain(obstacle)
            return FAILED
        except CancelledError:
            self._complain("interrupted")
            raise
        except TunnelError as error:
            self._complain(f"migration failed: {error.text}")
            return FAILED
        return 0

    async def look(self, order: Order, *, as_json: bool) -> int:
        """Show what would become of the VM, and what stands in the way. Returns: the exit status."""
        try:
            async with self._reported(order, is_recorded=False) as reporter, self._opened(reporter) as world:
                self._impatient.chainDeferred(world.impatient)
                report = await Migration(order, world).check()
        except Obstructed as error:
            report = error.report
        except TunnelError as error:
            if as_json:
                show_failure(error.text)
            else:
                self._complain(error.text)
            return FAILED
        show(report, as_json=as_json)
        for obstacle in () if as_json else report.obstacles:
            self._complain(obstacle)
        return FAILED if report.obstacles else 0

    def _reported(self, order: Order, *, is_recorded: bool = True) -> AbstractAsyncContextManager[Reporter]:
        where = {"host": self._endpoint.host, "token": token_id(self._endpoint)}
        state = begin_state(self._settings, order.vmid, order.target_vmid, **where)
        return reported(self._reactor, self._settings, self._display, state, self._count, is_recorded=is_recorded)

    def _opened(self, progress: ProgressListener) -> AbstractAsyncContextManager[SourceWorld]:
        return opened_world(self._reactor, self._settings, self._endpoint, progress, self._flows)

    def _count(self) -> ByteCount:
        return ByteCount(sum(flow.bytes_in for flow in self._flows), sum(flow.bytes_out for flow in self._flows))

    async def _migrate(self, order: Order, world: SourceWorld) -> None:
        summary = await Migration(order, world).run()
        memory = self._reporter.state.find(MEMORY) if self._reporter else None
        size_bytes = summary.size_bytes + (memory.done_bytes if memory else 0)
        what = format_size(summary.disks, size_bytes, "and the memory" if memory else "")
        pace = describe_pace(size_bytes, summary.seconds)
        self._display.say(f"VM {order.vmid} is VM {order.target_vmid} at the target: {what} {pace}")
        if world.outages is not None and world.outages.times:
            self._display.say(world.outages.summary())

    def _complain(self, text: str) -> None:
        self._reasons.append(clean(text))
        if not self._is_silent:
            alarm(text)
