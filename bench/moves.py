"""Whole moves: of a running VM beside the same QEMUs alone, of a stopped one beside what people use instead."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from bench.case import MIB
from bench.copying import GIB, SIZE_BYTES, WAYS, Copy, copy_by
from bench.guest import DATA_BYTES, MEMORY_MIB
from bench.live import Voyage, move_bare, move_through_tunnel
from bench.targets import Verdict, at_most, judge_ratios

LIVE = f"live migration, {MEMORY_MIB} MiB of memory, {DATA_BYTES // MIB} MiB of data on disk"
STOPPED = f"stopped VM, {SIZE_BYTES // GIB} GiB of data on disk"
Try = Callable[[str, str, Callable[[], None]], None]
"""Takes what is measured, of whom, and the measurement; one that fails is left out, and that is told."""
Say = Callable[[str], None]
MOST_DOWNTIME_MS = 100
OURS, RSYNC, QEMU_IMG = WAYS


class WholeMoves:
    """Moves in rounds; each way once a round, in turn."""

    def __init__(self, rounds: int, attempt: Try, say: Say) -> None:
        self._rounds, self._try, self._say = rounds, attempt, say
        self._voyages: list[tuple[Voyage, Voyage]] = []
        self._copies: dict[str, list[Copy]] = {name: [] for name in WAYS}
        self.others: list[tuple[str, str, str]] = []

    def run_live(self) -> None:
        """A VM that runs."""
        self._try("live migration", LIVE, self._measure_live)

    def run_stopped(self) -> None:
        """A VM that is off."""
        for _ in range(self._rounds):
            for name in WAYS:
                self._try("whole copy", f"{STOPPED}: {name}", lambda name=name: self._copy(name))  # type: ignore[misc]
        for name, copies in self._copies.items():
            if copies:
                took_s, cpu_s = median(each.took_s for each in copies), median(each.cpu_s_gib for each in copies)
                self.others.append((STOPPED, name, f"{took_s:.1f} s, {cpu_s:.2f} CPU s/GiB on both sides"))

    def _measure_live(self) -> None:
        for _ in range(self._rounds):
            bare, ours = move_bare(), move_through_tunnel()
            self._voyages.append((bare, ours))
            self._say(f"{LIVE}: {bare.took_s:.2f} s alone, {ours.took_s:.2f} s by mtunnel")
        for name, side in (("QEMU alone", 0), ("mtunnel", 1)):
            took_s = median(pair[side].took_s for pair in self._voyages)
            self.others.append((LIVE, name, f"{took_s:.1f} s, downtime {self._downtime_ms(side):.0f} ms"))
        p99_ms = median(ours.version_p99_ms for _, ours in self._voyages)
        self.others.append(("`version` meanwhile, 99th percentile", "mtunnel", f"{p99_ms:.1f} ms"))

    def _downtime_ms(self, side: int) -> float:
        return median(pair[side].downtime_ms for pair in self._voyages)

    def _copy(self, name: str) -> None:
        copy = copy_by(WAYS[name])
        self._copies[name].append(copy)
        self._say(f"{STOPPED}: {name}: {copy.took_s:.2f} s, {copy.cpu_s_gib:.2f} CPU s/GiB")

    def verdicts(self) -> list[Verdict]:
        """What is promised of whole moves."""
        live = [ours.took_s / bare.took_s for bare, ours in self._voyages]
        downtime_ms = self._downtime_ms(1) if self._voyages else None
        return [
            judge_ratios("live migration, against two QEMUs alone", live, 1.3, at_least=False),
            at_most(MOST_DOWNTIME_MS, "ms", "live migration, downtime", downtime_ms),
            self._judge(1.0, "stopped VM, time against rsync over ssh", RSYNC, lambda copy: copy.took_s),
            self._judge(1.0, "stopped VM, CPU against rsync over ssh", RSYNC, lambda copy: copy.cpu_s),
            self._judge(1.0, "stopped VM, time against qemu-img over NBD and ssh", QEMU_IMG, lambda copy: copy.took_s),
            self._judge(1.0, "stopped VM, CPU against qemu-img over NBD and ssh", QEMU_IMG, lambda copy: copy.cpu_s),
        ]

    def _judge(self, bound: float, text: str, other: str, figure: Callable[[Copy], float]) -> Verdict:
        pairs = zip(self._copies[OURS], self._copies[other], strict=False)
        ratios = [figure(ours) / figure(theirs) for ours, theirs in pairs]
        return judge_ratios(text, ratios, bound, at_least=False)
