"""`python -m tests.soak.relay GIB [SEED [RELAYS [PREFIX…]]]`: so much through the relay, every byte compared.

RELAYS: `pump`, `reactor`, `pump,gc` (see relayed.py). PREFIX: what stands before the command line of the process under
test, e.g. `valgrind --error-exitcode=9` or `env PYTHONMALLOC=debug`.
Exit status 1: a byte was wrong, lost or doubled, an end was not what it should be, or the relay grew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from tests.patience import patience_s, wait_for
from tests.processes import started_process
from tests.soak.transfer import Report, Transfer

GIB = 1 << 30
DRIVERS = 2
THREADS = 5
ROUND_BYTES = 4 * GIB
LARGEST_PART = 4
"""The largest stream is this part of a round."""
WARM_ROUNDS = 2
MORE_MEMORY_BYTES = 16 << 20
LEAST_STREAMS = 10_000
FULL_GIB = 200
"""From here on there have to be so many streams too."""


class Relayed:
    """The process under test."""

    def __init__(self, owner: ExitStack, folder: Path, relays: str, prefix: Sequence[str] = ()) -> None:
        self.log = folder / "relayed.log"
        with self.log.open("wb") as log:
            argv = [*prefix, sys.executable, "-m", "tests.soak.relayed", str(folder), relays]
            self.process = started_process(owner.callback, argv, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        self.port = int(json.loads(self.process.stdout.readline())["port"])
        self.told: dict[str, dict[str, Any]] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            self.told[said["name"]] = said

    def descriptors(self) -> int:
        return len([*Path(f"/proc/{self.process.pid}/fd").iterdir()])

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> int:
        """Returns: the exit status."""
        self.process.terminate()
        return self.process.wait(patience_s(60))


@dataclass(slots=True, kw_only=True)
class Sum:
    """What was carried, and what is wrong."""

    streams: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return self.bytes_in + self.bytes_out


def drive(port: int, folder: str, seed: str, size_bytes: int) -> tuple[list[Report], list[str]]:
    """A driver's part of one round: streams, some at once, until so much was carried."""
    reports: list[Report] = []
    wrong: list[str] = []

    def work(thread: int) -> None:
        for number in count():
            if wrong or sum(one.bytes_in + one.bytes_out for one in reports) >= size_bytes:
                return
            name = f"{seed}-{thread}-{number}"
            try:
                reports.append(Transfer(port, Path(folder), name, Random(name), size_bytes // LARGEST_PART).run())
            except Exception as error:
                wrong.append(f"{name}: {type(error).__name__}: {error}")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    return reports, wrong


class Soak:
    """Rounds of streams through one relay."""

    def __init__(self, relayed: Relayed, folder: Path, seed: int, round_bytes: int) -> None:
        self.relayed, self.folder, self.seed, self.round_bytes = relayed, folder, seed, round_bytes
        self.sum = Sum()

    def round(self, number: int, pool: ProcessPoolExecutor) -> None:
        parts = [
            pool.submit(
                drive,
                self.relayed.port,
                str(self.folder),
                f"{self.seed}-{number}-{driver}",
                self.round_bytes // DRIVERS,
            )
            for driver in range(DRIVERS)
        ]
        for part in parts:
            reports, wrong = part.result()
            self.sum.wrong += wrong
            for report in reports:
                self._add(report)

    def _add(self, report: Report) -> None:
        self.sum.streams += 1
        self.sum.ends[report.end] += 1
        self.sum.bytes_in += report.bytes_in
        self.sum.bytes_out += report.bytes_out
        try:
            wait_for("the relay's word of its end", lambda: report.name in self.relayed.told, 60)
        except AssertionError as error:
            self.sum.wrong.append(f"{report}: {error}")
            return
        told = self.relayed.told.pop(report.name)
        if report.orderly is not None and told.get("orderly") is not report.orderly:
            self.sum.wrong.append(f"{report}: the relay says {told}")
        if report.orderly and (told["bytes_in"], told["bytes_out"]) != (report.bytes_in, report.bytes_out):
            self.sum.wrong.append(f"{report}: the relay counts {told}")

    def settle(self, descriptors: int) -> None:
        """Wait until the relay holds nothing any more."""
        try:
            wait_for("the end of descriptors", lambda: self.relayed.descriptors() <= descriptors, 60)
        except AssertionError as error:
            self.sum.wrong.append(f"{error}: {descriptors} at first, {self.relayed.descriptors()} now")


def report(sum_: Sum, relayed: Relayed, passed_s: float) -> None:
    print(
        f"{passed_s:6.0f} s  {sum_.bytes_in / GIB:7.2f} GiB in  {sum_.bytes_out / GIB:7.2f} GiB out"
        f"  {sum_.streams:6} streams  {relayed.descriptors():3} descriptors"
        f"  {relayed.resident_bytes() / (1 << 20):6.1f} MiB  {relayed.cpu_s():6.0f} CPU s",
        flush=True,
    )


def soak(relayed: Relayed, folder: Path, size_bytes: int, seed: int) -> Sum:
    """Returns: what came of it."""
    state, begun_s, warm = Soak(relayed, folder, seed, min(ROUND_BYTES, size_bytes)), time.monotonic(), 0
    # The relay's threads, with a poll and a bell each, come with the first streams and stay.
    descriptors = relayed.descriptors() + 6
    least = LEAST_STREAMS if size_bytes >= FULL_GIB * GIB else 0
    with ProcessPoolExecutor(DRIVERS, mp_context=get_context("spawn")) as pool:
        for number in count(1):
            state.round(number, pool)
            state.settle(descriptors)
            report(state.sum, relayed, time.monotonic() - begun_s)
            if number <= WARM_ROUNDS:
                warm = relayed.resident_bytes()
            if state.sum.wrong or (state.sum.bytes >= size_bytes and state.sum.streams >= least):
                break
    if relayed.resident_bytes() > warm + MORE_MEMORY_BYTES:
        state.sum.wrong.append(f"memory: {warm} bytes when warm, {relayed.resident_bytes()} at the end")
    log = relayed.log.read_text("utf-8", "replace")
    state.sum.wrong += [line for line in log.splitlines() if "unexpected" in line or "Unhandled" in line]
    return state.sum


def main(gib: str = "200", seed: str = "", relays: str = "pump", *prefix: str) -> int:
    number = int(seed) if seed else int(time.time())
    print(f"seed {number}, {relays}", flush=True)
    with TemporaryDirectory(prefix="mtunnel-soak-", dir="/tmp") as name, ExitStack() as owner:
        relayed = Relayed(owner, Path(name), relays, prefix)
        try:
            result = soak(relayed, Path(name), int(float(gib) * GIB), number)
        finally:
            status = relayed.end()
        if status or prefix:
            print(relayed.log.read_text("utf-8", "replace"), file=sys.stderr)
    if status:
        result.wrong.append(f"the relay ended with status {status}")
    print(", ".join(f"{end}: {times}" for end, times in sorted(result.ends.items())))
    if result.wrong:
        print("\n".join(["WRONG:", *result.wrong[:20]]))
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
