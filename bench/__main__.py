"""Run the benchmark: `make bench`, or `make bench QUICK=1` for a look.

python -m bench [--quick] [--rounds N] [--only TEXT] [--docs]
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.case import FOUR, FULL, MIB, PROXMOX, QUICK, VERIFIED, Case, Comparison
from bench.measure import Bench, Relay
from bench.moves import WholeMoves
from bench.ours import Mtunnel, make_node
from bench.peers import Autobahn, Nginx, Place, ProxmoxLike, Socat, Websockify
from bench.processes import Trouble
from bench.report import Findings, make_row, write, write_documents
from bench.targets import Samples, at_most, judge
from bench.watched import measure_watched

SMALL_BYTES = 16 << 10
"""Smaller frames are slow."""

SLOWED = ("mtunnel", "mtunnel-reactor", "autobahn", "websockify", "nginx", PROXMOX)
"""Those that meet a slow sink, ours first."""

ROOM = Path("build/bench").resolve()


def make_relays(place: Place) -> dict[str, Relay]:
    """All relays by name, ours first."""
    relays: list[Relay] = [
        Mtunnel("mtunnel", place),
        Mtunnel("mtunnel-w2", place, workers=2),
        Mtunnel("mtunnel-reactor", place, relays="reactor"),
        Autobahn("autobahn", place),
        ProxmoxLike(PROXMOX, place),
        Websockify("websockify", place),
        Socat("socat", place),
        Socat("socat-2m", place, ",sndbuf=2097152"),
        Nginx("nginx", place),
        Nginx("nginx-w2", place, workers=2),
    ]
    return {relay.name: relay for relay in relays if relay.is_there()}


@contextmanager
def prepared() -> Iterator[Place]:
    """A folder with a node, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="mtunnel-bench-"))
    try:
        certificate, key = make_node(folder)
        yield Place(room=ROOM, folder=folder, sink=folder / "sink.sock", certificate=certificate, key=key)
    finally:
        shutil.rmtree(folder)


class Session:
    """One benchmark, from its first run to its findings. `quick`: once, few bytes; else medians."""

    def __init__(self, place: Place, *, quick: bool, rounds: int, only: str) -> None:
        self._bench = Bench(place)
        self._relays = make_relays(place)
        self._quick, self._rounds, self._only = quick, rounds, only
        self._samples: Samples = {}
        self._cases: list[tuple[str, Case]] = []
        self._skipped: dict[str, str] = {}
        self._others: list[tuple[str, str, str]] = []
        self._found: dict[str, float] = {}
        self._moves = WholeMoves(rounds, self._try, _say)

    def _ours(self, name: str) -> Mtunnel:
        ours = self._relays[name]
        assert isinstance(ours, Mtunnel)
        return ours

    def run(self) -> Findings:
        """Everything, in order."""
        self._verify()
        for comparison in QUICK if self._quick else FULL:
            self._compare(
                [(name, case) for name, case in comparison if name in self._relays and self._only in str(case)]
            )
        if not self._only:
            self._be_slow()
            self._be_idle()
            self._be_busy()
        if self._only in ("", "watched"):
            self._be_watched()
        if self._only in ("", "live") and not self._quick:
            self._moves.run_live()
        if self._only in ("", "stopped") and not self._quick:
            self._moves.run_stopped()
        return self._findings()

    def _try(self, what: str, name: str, measurement: Callable[[], None]) -> None:
        """A relay that fails is left out, and that is told."""
        if name in self._skipped:
            return
        try:
            measurement()
        except Trouble as trouble:
            self._skipped[name] = f"{name} is left out: {trouble} ({what})"
            _say(self._skipped[name])

    def _verify(self) -> None:
        for case in VERIFIED[1:4:2] if self._quick else VERIFIED:
            for name in ("mtunnel", "mtunnel-w2") if self._quick else ("mtunnel", "mtunnel-w2", "mtunnel-reactor"):
                if not case.tls and name == "mtunnel-w2":
                    continue  # it has no plain side
                size_bytes = self._bench.verify(self._relays[name], case, 64 * MIB)
                _say(f"{name}: {size_bytes // MIB} MiB compared, all equal: {case}")

    def _compare(self, comparison: Comparison) -> None:
        """Rounds: each relay in each case once, in turn."""
        self._cases += comparison
        for _ in range(self._rounds):
            for name, case in comparison:
                self._try(str(case), name, partial(self._run, name, case))

    def _run(self, name: str, case: Case) -> None:
        relay = self._relays[name]
        sample = self._bench.run(relay, case, self._size_bytes(case))
        self._samples.setdefault((name, case), []).append(sample)
        _say(f"{case}: {name}: {sample.mb_s:.0f} MB/s, {sample.cpu_s_gib:.2f} CPU s/GiB, {sample.rss_mib:.0f} MiB")

    def _size_bytes(self, case: Case) -> int:
        size_bytes = (256 if self._quick else 512) * MIB
        if case.rate_mb_s:
            return min(size_bytes, int(case.rate_mb_s * (0.5 if self._quick else 3)) * MIB)
        if case.frame_bytes < SMALL_BYTES:
            return size_bytes // 4
        return size_bytes if case.streams == 1 else 2 * size_bytes

    def _be_slow(self) -> None:
        length_s = 2.0 if self._quick else 10.0
        for name in ("mtunnel",) if self._quick else SLOWED:
            if name in self._relays:
                self._try("slow sink", name, partial(self._measure_slow, name, length_s))

    def _measure_slow(self, name: str, length_s: float) -> None:
        sample = self._bench.run_slow(self._relays[name], Case(), length_s)
        self._others.append((f"memory growth, sink of 5 MB/s, {length_s:.0f} s", name, f"{sample.growth_mib:.1f} MiB"))
        self._others.append(("share of a core, sink of 5 MB/s", name, f"{sample.core_percent:.1f} %"))
        self._found.setdefault("growth", sample.growth_mib)
        self._found.setdefault("core", sample.core_percent)

    def _be_idle(self) -> None:
        plain = Case(streams=100 if self._quick else 1000, pinned=False)
        resumable = replace(plain, resumable=True)
        cases = [("mtunnel", plain), ("mtunnel", resumable)]
        if not self._quick:
            cases += [("mtunnel-reactor", plain), ("autobahn", plain)]
        for name, case in cases:
            self._try("idle", name, partial(self._measure_idle, name, case))

    def _measure_idle(self, name: str, case: Case) -> None:
        each_kib = self._bench.run_idle(self._relays[name], case)
        kind = "resumable websocket" if case.resumable else "websocket"
        self._others.append((f"memory of a {kind}, {case.streams} idle", name, f"{each_kib:.0f} KiB"))
        self._found.setdefault(kind, each_kib)

    def _be_busy(self) -> None:
        for name in ("mtunnel", "mtunnel-w2"):
            self._try("version command", name, partial(self._measure_busy, name))

    def _measure_busy(self, name: str) -> None:
        p99_ms = self._bench.time_versions(self._ours(name), FOUR, 4.0 if self._quick else 10.0)
        self._others.append(("`version`, 4 streams at full speed, 99th percentile", name, f"{p99_ms:.1f} ms"))
        self._found[f"version {name}"] = p99_ms

    def _be_watched(self) -> None:
        self._try("status page", "mtunnel watched", self._measure_watched)

    def _measure_watched(self) -> None:
        length_s, rounds = (2.0, 1) if self._quick else (5.0, self._rounds)
        folder = self._bench.folder
        watched = measure_watched(self._bench, self._ours("mtunnel"), folder, length_s=length_s, rounds=rounds)
        what = "4 streams at 100 MB/s, status page open, /metrics each second"
        self._others.append((f"{what}: more of a core than unwatched", "mtunnel", f"{watched.core_percent:.1f} %"))
        self._others.append((f"{what}: `version`, 99th percentile", "mtunnel", f"{watched.p99_ms:.1f} ms"))
        self._found |= {"watched": watched.core_percent, "version watched": watched.p99_ms}

    def _findings(self) -> Findings:
        measured = [key for key in self._cases if key in self._samples]
        rows = [make_row(name, self._relays[name].framed, case, self._samples[name, case]) for name, case in measured]
        verdicts = [
            *judge(self._samples),
            at_most(4, "MiB", "sink of 5 MB/s, memory growth", self._found.get("growth")),
            at_most(5, "%", "sink of 5 MB/s, share of a core", self._found.get("core")),
            at_most(50, "ms", "`version`, 4 busy streams, 99th percentile", self._found.get("version mtunnel")),
            at_most(50, "ms", "`version`, the same with 2 workers", self._found.get("version mtunnel-w2")),
            at_most(45, "KiB", "memory of an idle websocket", self._found.get("websocket")),
            at_most(45, "KiB", "memory of an idle resumable websocket", self._found.get("resumable websocket")),
            at_most(2, "%", "status page and /metrics, more of a core", self._found.get("watched")),
            at_most(50, "ms", "`version`, the same watched", self._found.get("version watched")),
            *self._moves.verdicts(),
        ]
        commands = {name: self._relays[name].shown(case) for name, case in reversed(measured) if case.tls}
        return Findings(
            rows=rows,
            samples=self._samples,
            others=[*self._others, *self._moves.others],
            verdicts=verdicts,
            commands=dict(reversed(commands.items())),
            skipped=list(self._skipped.values()),
        )


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def compile_package() -> None:
    """As an installed package is: else each process of ours would compile the modules that it imports."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir("mtunnel_tx", quiet=1)


def main() -> None:
    """Run it; SIGTERM ends it as Ctrl-C does, with everything it started."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--quick", action="store_true", help="few bytes, the most important rows, under a minute")
    parser.add_argument("--rounds", type=int, help="runs of each row")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose description has this text")
    parser.add_argument("--docs", action="store_true", help="put the figures into README.md and docs/")
    options = parser.parse_args()
    compile_package()
    start_s = time.monotonic()
    with prepared() as place:
        rounds = options.rounds or (1 if options.quick else 5)
        findings = Session(place, quick=options.quick, rounds=rounds, only=options.only).run()
    write(findings, ROOM)
    if options.docs:
        write_documents(findings, Path())
    print(findings.text())
    _say(f"{time.monotonic() - start_s:.0f} s; {ROOM}/results.json, {ROOM}/performance.svg")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Trouble as trouble:
        sys.exit(f"bench: {trouble}")
