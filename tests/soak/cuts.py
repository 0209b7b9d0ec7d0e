"""`python -m tests.soak.cuts GIB CUTS_S [options]`: so much through resumable flows that are cut.

Two real daemons, one with workers and one without, and a client process for each; between them a proxy that cuts a
connection about every CUTS_S seconds: reset, end of file or black hole, at either end. Every byte is compared. Each
round ends with the end of all of its flows, and then the processes are counted.
Exit status 1: a byte was wrong, lost or doubled, a flow did not end in order, a process grew, or no flow lived through
the outage that was asked for.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from tests.patience import wait_for
from tests.soak.cutsite import PARK_S, Account, Load, Site, take_account

GIB, MIB = 1 << 30, 1 << 20
ROUND_S, ROUND_BYTES = 60.0, 8 * GIB
LARGEST_BYTES, LARGEST_S = 512 * MIB, 5
"""The largest way of a flow; with a pace, what all flows together carry in so many seconds."""
WARM_ROUNDS = 3
MORE_MEMORY_BYTES = 40 * MIB
"""From the warm rounds on. Measured in 92 minutes with 76 GiB and 5,971 cuts: 7 MiB for a daemon, 4 for a worker, and
for a client, whose threads compare every byte, 24 MiB, most of it within the first half of the time. A pump thread may
keep 8 MiB of free chunks more; a heap in pieces grew by 100 MiB in minutes."""
MORE_DESCRIPTORS = 8
"""The threads of a pump, with a poll and a bell each, come with the first flows and stay."""
MORE_THREADS = 8
SHORTER_S = 15.0
"""By so much a client may hear later than others of an outage: a dead peer, and a try that is under way."""


@dataclass(slots=True, kw_only=True)
class Sum:
    """What was carried, and what is wrong. survivors: flows that have lived through the outage of outage_s."""

    flows: int = 0
    void: int = 0
    bytes: int = 0
    losses: int = 0
    resumed: int = 0
    parked_s: float = 0.0
    outage_s: float = 0.0
    survivors: int = 0
    cuts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, said: dict[str, Any]) -> None:
        for one in said["lasted"]:
            self.flows += 1
            self.bytes += one["bytes_in"] + one["bytes_out"]
            self.losses += one["losses"]
            self.resumed += one["resumed"]
            self.parked_s += one["parked_s"]
            self.survivors += self.outage_s > 0 and one["longest_s"] >= self.outage_s - SHORTER_S
        self.void += len(said["void"])
        self.cuts.update(said["cuts"])
        self.wrong += said["wrong"]

    def words(self, passed_s: float) -> str:
        """Fit for the documentation."""
        outage = f"; {self.survivors} flows lived through an outage of {self.outage_s:.0f} s" if self.outage_s else ""
        return (
            f"{self.bytes / GIB:.1f} GiB in {passed_s:,.0f} s ({self.bytes / MIB / passed_s:.1f} MiB/s) by"
            f" {self.flows:,} flows: {self.cuts.total():,} connections cut, {self.losses:,} lost by a client,"
            f" {self.resumed:,} resumed{outage}; {len(self.wrong)} wrong"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """size_bytes, most_s: the end, whatever comes first; most_s 0: the bytes. outage_at: so much of it is done then."""

    size_bytes: int
    most_s: float
    most_bytes: int
    outage_s: float
    outage_at: float

    def done(self, moved_bytes: int, passed_s: float) -> float:
        """Returns: which part of it."""
        return max(moved_bytes / self.size_bytes, passed_s / self.most_s if self.most_s else 0.0)


class Soak:
    """Rounds of flows at all sites at once."""

    def __init__(self, sites: list[Site], plan: Plan) -> None:
        self.sites, self.plan = sites, plan
        self.begun_s, self.sum = time.monotonic(), Sum()
        self.ends: Counter[str] = Counter()
        self.first: dict[str, Account] = {}
        self.now: dict[str, Account] = {}
        self.most_bytes: Counter[str] = Counter()

    @property
    def passed_s(self) -> float:
        return time.monotonic() - self.begun_s

    @property
    def done(self) -> float:
        return self.plan.done(self.sum.bytes, self.passed_s)

    def round(self, number: int) -> None:
        before_s, before_bytes = self.passed_s, self.sum.bytes
        size_bytes = min(ROUND_BYTES, self.plan.size_bytes - before_bytes) // len(self.sites)
        arguments = {"mark": str(number), "seconds": ROUND_S, "most_bytes": self.plan.most_bytes}
        outage_s = self._begin_outage()
        with ThreadPoolExecutor(len(self.sites)) as pool:
            said = list(pool.map(lambda site: site.round(outage_s, size_bytes=size_bytes, **arguments), self.sites))
        for site, one in zip(self.sites, said, strict=True):
            self.sum.add(one)
            self._wait_for_ends(site, one)
            self.sum.wrong += site.failures()
        rate = (self.sum.bytes - before_bytes) / MIB / (self.passed_s - before_s)
        if outage_s and not self.sum.survivors:
            self.sum.wrong.append(f"no flow has lived through the outage of {outage_s:g} s")
        self._count(number)
        print(self.report(rate), flush=True)

    def _begin_outage(self) -> float:
        """Returns: how long one is to be in this round, 0: none."""
        if self.sum.outage_s or not self.plan.outage_s or self.done < self.plan.outage_at:
            return 0.0
        self.sum.outage_s = self.plan.outage_s
        return self.plan.outage_s

    def _wait_for_ends(self, site: Site, said: dict[str, Any]) -> None:
        """The daemon has to say of each flow what its client has said: it ended in order."""
        ends = {one["name"]: one["orderly"] for one in said["told"] if "orderly" in one}
        names = {one["name"] for one in said["lasted"]}

        def are_told() -> bool:
            ends.update({one["name"]: one["orderly"] for one in site.told() if "orderly" in one})
            return names <= set(ends)

        try:
            wait_for("the daemon's word of all ends", are_told, 60)
        except AssertionError as error:
            self.sum.wrong.append(f"{error}: {names - set(ends)}")
        self.sum.wrong += [f"{name}: the daemon says that it failed" for name in names if ends.get(name) is False]

    def _count(self, number: int) -> None:
        for site in self.sites:
            for name, pid in site.processes().items():
                self.now[name] = account = take_account(pid)
                self.most_bytes[name] = max(self.most_bytes[name], account.memory_bytes)
                first = self.first.setdefault(name, account)
                if number <= WARM_ROUNDS:
                    self.first[name] = self._larger(first, account)
                else:
                    self._judge(name, pid, first)

    def _larger(self, one: Account, other: Account) -> Account:
        return Account(
            memory_bytes=max(one.memory_bytes, other.memory_bytes),
            descriptors=min(one.descriptors, other.descriptors),
            threads=max(one.threads, other.threads),
        )

    def _judge(self, name: str, pid: int, first: Account) -> None:
        """A flow that was cut while it was opened waits for `park_s` before it gives back what it has."""

        def is_flat() -> bool:
            self.now[name] = now = take_account(pid)
            return (
                now.descriptors <= first.descriptors + MORE_DESCRIPTORS
                and now.threads <= first.threads + MORE_THREADS
                and now.memory_bytes <= first.memory_bytes + MORE_MEMORY_BYTES
            )

        try:
            wait_for(f"{name} to be as it was when warm", is_flat, 2 * PARK_S + self.plan.outage_s)
        except AssertionError as error:
            self.sum.wrong.append(f"{error}: {first} then, {self.now[name]} now")

    def report(self, rate_mib_s: float) -> str:
        """One line for a round, which lasts about a minute, or as long as the outage."""
        sum_ = self.sum
        return (
            f"{self.passed_s:6.0f} s  {sum_.bytes / GIB:7.2f} GiB  {rate_mib_s:6.1f} MiB/s  {sum_.flows:6} flows"
            f"  {sum_.cuts.total():5} cuts  {sum_.losses:5} lost  {sum_.resumed:5} resumed"
            f"  {sum_.parked_s:6.0f} s parked  {len(sum_.wrong)} wrong"
            + "".join(
                f"; {name}: {one.memory_bytes / MIB:.0f} MiB {one.descriptors} descriptors {one.threads} threads"
                for name, one in self.now.items()
            )
        )

    def last_words(self) -> str:
        lines = [", ".join(f"{cut}: {times}" for cut, times in sorted(self.sum.cuts.items()))]
        lines += [f"{self.sum.void} flows were cut while they were opened, and came to nothing"]
        for name, now in self.now.items():
            numbers = (self.first[name].memory_bytes, self.most_bytes[name], now.memory_bytes)
            warm, most, last = (f"{number / MIB:.0f}" for number in numbers)
            lines.append(f"{name}: {warm} MiB when warm, {most} at most, {last} at the end")
        return "\n".join([*lines, self.sum.words(self.passed_s)])


def soak(sites: list[Site], plan: Plan) -> Sum:
    """Returns: what came of it."""
    state = Soak(sites, plan)
    for number in count(1):
        state.round(number)
        if state.sum.wrong or state.done >= 1:
            break
    print(state.last_words(), flush=True)
    return state.sum


def read_arguments() -> Namespace:
    parser = ArgumentParser(prog="python -m tests.soak.cuts", description="Bytes through flows that are cut.")
    parser.add_argument("gib", type=float, help="so much in all")
    parser.add_argument("cuts_s", type=float, help="a cut about every so many seconds, at each daemon")
    parser.add_argument("--mib-s", type=float, default=0, help="so much a second, for runs of hours; 0: what goes")
    parser.add_argument("--minutes", type=float, default=0, help="end then; 0: when all was carried")
    parser.add_argument("--outage-s", type=float, default=0, help="once, no connection at all for so many seconds")
    parser.add_argument("--outage-at", type=float, default=0.5, help="when this part of the run is done")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    return parser.parse_args()


def make_plan(said: Namespace) -> Plan:
    size_bytes, rate_bytes_s = int(said.gib * GIB), said.mib_s * MIB
    return Plan(
        size_bytes=size_bytes,
        most_s=said.minutes * 60,
        most_bytes=min(LARGEST_BYTES, size_bytes // 20, int(rate_bytes_s * LARGEST_S) or LARGEST_BYTES),
        outage_s=said.outage_s,
        outage_at=said.outage_at,
    )


def main() -> int:
    said = read_arguments()
    print(f"seed {said.seed}, a cut every {said.cuts_s:g} s at each of 2 daemons", flush=True)
    load = Load(seed=said.seed, cuts_s=said.cuts_s, rate_bytes_s=said.mib_s * MIB / 2, outage_s=said.outage_s)
    with ExitStack() as owner:
        sites = [Site(owner, workers, load) for workers in (0, 2)]
        result = soak(sites, make_plan(said))
        for site in sites:
            site.settle()
        if result.wrong:
            print("\n".join(["WRONG:", *result.wrong[:20]]), flush=True)
            for path in (path for site in sites for path in site.logs()):
                print(path.read_text("utf-8", "replace")[-20_000:], file=sys.stderr)
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
