"""One measurement: a relay, the load at its far end, the sink at its local one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any, Protocol

from bench.case import GIB, MIB, Case
from bench.ours import Mtunnel
from bench.peers import Place, Running
from bench.processes import CpuClock, Reporter, Trouble, peak_bytes, pin, reporting, resident_bytes, wait_until_idle
from bench.tunnel import Tunnel

SLOW_BYTES_PER_S = 5_000_000
VERSION_EVERY_S = 0.02
ENDLESS_BYTES = 1 << 40


class Relay(Protocol):
    """What is measured."""

    name: str
    framed: bool
    place: Place

    def is_there(self) -> bool: ...

    def shown(self, case: Case) -> str: ...

    def running(self, case: Case) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one run gave; MB are 10^6 bytes, GiB and MiB powers of two."""

    mb_s: float
    cpu_s_gib: float
    rss_mib: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowSample:
    """What a sink of 5 MB/s does to a relay: memory that grows, and its share of a core in percent."""

    growth_mib: float
    core_percent: float


class Bench:
    """Runs cases in a place."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def folder(self) -> Path:
        """Where the node is."""
        return self._place.folder

    def run(self, relay: Relay, case: Case, size_bytes: int) -> Sample:
        """Move `size_bytes` in all. Raises: Trouble."""
        each_bytes = size_bytes // case.streams // MIB * MIB
        with self._joined(relay, case, each_bytes, load_options=("--prepared",)) as (running, sink, load):
            wait_until_idle(running.pid)
            clock = CpuClock(running.pid)
            _begin(case, sink, load)
            result = (sink if case.direction == "in" else load).read(60.0)
            used_s = clock.read_s()
            peak = peak_bytes(running.pid)
            load.finish()
        moved = int(result["bytes"])
        return Sample(
            mb_s=moved / 1e6 / (result["last_s"] - result["first_s"]),
            cpu_s_gib=used_s / (moved / GIB),
            rss_mib=peak / MIB,
        )

    def verify(self, relay: Relay, case: Case, size_bytes: int) -> int:
        """Compare every byte. Returns: how many. Raises: Trouble: some differ."""
        each_bytes = size_bytes // case.streams // MIB * MIB
        with self._joined(relay, case, each_bytes, "--verify") as (_, sink, load):
            _begin(case, sink, load)
            result = (sink if case.direction == "in" else load).read(60.0)
            load.finish()
        if result["bad"] or result["bytes"] != each_bytes * case.streams:
            raise Trouble(f"{relay.name}: payload differs ({case})")
        return int(result["bytes"])

    def run_slow(self, relay: Relay, case: Case, length_s: float) -> SlowSample:
        """Let the sink be slow for some seconds while the load pushes."""
        rate = ("--rate", str(SLOW_BYTES_PER_S // case.streams))
        with self._joined(relay, case, ENDLESS_BYTES, sink_options=rate) as (running, _, load):
            memory, clock, start_s = resident_bytes(running.pid), CpuClock(running.pid), time.monotonic()
            load.go()
            time.sleep(length_s)
            used_s, passed_s = clock.read_s(), time.monotonic() - start_s
            growth = max(0, peak_bytes(running.pid) - memory)
        return SlowSample(growth_mib=growth / MIB, core_percent=100 * used_s / passed_s)

    def run_idle(self, relay: Relay, case: Case) -> float:
        """Returns: memory of one idle websocket, in KiB."""
        with self._sink(case, ENDLESS_BYTES), relay.running(case) as running:
            memory = resident_bytes(running.pid)
            with self._load(running, relay, case, ENDLESS_BYTES):
                time.sleep(1.0)
                return (resident_bytes(running.pid) - memory) / case.streams / 1024

    def time_versions(self, ours: Mtunnel, case: Case, length_s: float) -> float:
        """Ask `version` again and again while all streams are busy. Returns: the 99th percentile, in ms."""
        with self.busy(ours, case) as (_, tunnel):
            times_s = []
            end_s = time.monotonic() + length_s
            while time.monotonic() < end_s:
                times_s.append(tunnel.time_version())
                time.sleep(VERSION_EVERY_S)
        return quantiles(times_s, n=100)[98] * 1000

    @contextmanager
    def busy(self, ours: Mtunnel, case: Case) -> Iterator[tuple[Running, Tunnel]]:
        """All streams of a case, without an end. Yields: the daemon, and one of its tunnels."""
        with (
            self._sink(case, ENDLESS_BYTES),
            ours.listening(case) as daemon,
            ours.tunnels(daemon, case) as (tunnel, running),
            self._load(running, ours, case, ENDLESS_BYTES) as load,
        ):
            load.go()
            yield daemon, tunnel

    @contextmanager
    def _joined(
        self, relay: Relay, case: Case, each_bytes: int, *options: str, sink_options: tuple[str, ...] = (),
        load_options: tuple[str, ...] = (),
    ) -> Iterator[tuple[Running, Reporter, Reporter]]:  # fmt: skip
        with (
            self._sink(case, each_bytes, *options, *sink_options) as sink,
            relay.running(case) as running,
            self._load(running, relay, case, each_bytes, *options, *load_options) as load,
        ):
            yield running, sink, load

    def _sink(self, case: Case, each_bytes: int, *options: str) -> Any:
        argv: list[str | Path] = [
            *_elsewhere(case),
            self._place.room / "sink",
            "--unix",
            self._place.sink,
            *_sizes(case, each_bytes),
        ]
        argv += ["--source"] if case.direction == "out" else []
        return reporting([*argv, *options], self._log)

    def _load(self, running: Running, relay: Relay, case: Case, each_bytes: int, *options: str) -> Any:
        argv: list[str | Path] = [
            *_elsewhere(case),
            self._place.room / "load",
            "--port",
            str(running.port),
            *_sizes(case, each_bytes),
        ]
        argv += ["--tls"] if case.tls else []
        argv += ["--receive"] if case.direction == "out" else []
        argv += ["--rate", str(case.rate_mb_s * 1_000_000)] if case.rate_mb_s else []
        argv += ["--resumable"] if case.resumable else []
        argv += ["--random-mask"] if case.mask == "random" and relay.framed else []
        return reporting([*argv, "--frame", str(case.frame_bytes), *running.options, *options], self._log)

    @property
    def _log(self) -> Path:
        return self._place.folder / "programs.log"


def _begin(case: Case, sink: Reporter, load: Reporter) -> None:
    """Whoever receives comes first."""
    load.go()
    if case.direction == "out":
        sink.go()


def _elsewhere(case: Case) -> list[str]:
    """Client and sink share the core that the relay does not have."""
    return pin(1 if case.pinned else None)


def _sizes(case: Case, each_bytes: int) -> list[str]:
    return ["--bytes", str(each_bytes), "--streams", str(case.streams)]
