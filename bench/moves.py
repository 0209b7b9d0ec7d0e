"""Whole moves beside others: of a running VM, and of a stopped one beside what people use instead."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from bench.case import MIB
from bench.copying import GIB, SIZE_BYTES, WAYS, Copy, copy_by
from bench.guest import DATA_BYTES, MEMORY_MIB
from bench.live import Voyage, move_bare, move_by_proxmox, move_through_tunnel
from bench.targets import Verdict, at_most, judge_ratios

LIVE = f"live migration, {MEMORY_MIB} MiB of memory, {DATA_BYTES // MIB} MiB of data on disk"
STOPPED = f"stopped VM, {SIZE_BYTES // GIB} GiB of data on disk"
Try = Callable[[str, str, Callable[[], None]], None]
"""Takes what is measured, of whom, and the measurement; one that fails is left out, and that is told."""
Say = Callable[[str], None]
MOST_DOWNTIME_MS = 100
OURS, RSYNC, QEMU_IMG = WAYS
ALONE, PROXMOX = "QEMU alone", "Proxmox's path"
VOYAGES: dict[str, Callable[[], Voyage]] = {
    ALONE: move_bare,
    PROXMOX: move_by_proxmox,
    OURS: move_through_tunnel,
}


class WholeMoves:
    """Moves in rounds; each way once a round, in turn."""

    def __init__(self, rounds: int, attempt: Try, say: Say) -> None:
        self._rounds, self._try, self._say = rounds, attempt, say
        self._voyages: dict[str, list[Voyage]] = {name: [] for name in VOYAGES}
        self._copies: dict[str, list[Copy]] = {name: [] for name in WAYS}
        self.others: list[tuple[str, str, str]] = []

    def run_live(self) -> None:
        """A VM that runs."""
        for _ in range(self._rounds):
            for name in VOYAGES:
                self._try(LIVE, f"live migration by {name}", lambda name=name: self._travel(name))  # type: ignore[misc]
        for name, voyages in self._voyages.items():
            if voyages:
                took_s = median(each.took_s for each in voyages)
                self.others.append((LIVE, name, f"{took_s:.1f} s, downtime {self._downtime_ms(name):.0f} ms"))
        if ours := self._voyages[OURS]:
            p99_ms = median(each.version_p99_ms for each in ours)
            self.others.append(("`version` meanwhile, 99th percentile", OURS, f"{p99_ms:.1f} ms"))

    def run_stopped(self) -> None:
        """A VM that is off."""
        for _ in range(self._rounds):
            for name in WAYS:
                self._try("whole copy", f"{STOPPED}: {name}", lambda name=name: self._copy(name))  # type: ignore[misc]
        for name, copies in self._copies.items():
            if copies:
                took_s, cpu_s = median(each.took_s for each in copies), median(each.cpu_s_gib for each in copies)
                self.others.append((STOPPED, name, f"{took_s:.1f} s, {cpu_s:.2f} CPU s/GiB on both sides"))

    def _travel(self, name: str) -> None:
        voyage = VOYAGES[name]()
        self._voyages[name].append(voyage)
        self._say(f"{LIVE}: {name}: {voyage.took_s:.2f} s, downtime {voyage.downtime_ms:.0f} ms")

    def _downtime_ms(self, name: str) -> float | None:
        return median(each.downtime_ms for each in self._voyages[name]) if self._voyages[name] else None

    def _copy(self, name: str) -> None:
        copy = copy_by(WAYS[name])
        self._copies[name].append(copy)
        self._say(f"{STOPPED}: {name}: {copy.took_s:.2f} s, {copy.cpu_s_gib:.2f} CPU s/GiB")

    def verdicts(self) -> list[Verdict]:
        """What is promised of whole moves."""
        return [
            self._judge_voyages(1.3, "live migration, against two QEMUs alone", ALONE),
            self._judge_voyages(1.0, "live migration, time against Proxmox's path", PROXMOX),
            at_most(MOST_DOWNTIME_MS, "ms", "live migration, downtime", self._downtime_ms(OURS)),
            self._judge(1.0, "stopped VM, time against rsync over ssh", RSYNC, lambda copy: copy.took_s),
            self._judge(1.0, "stopped VM, CPU against rsync over ssh", RSYNC, lambda copy: copy.cpu_s),
            self._judge(1.0, "stopped VM, time against qemu-img over NBD and ssh", QEMU_IMG, lambda copy: copy.took_s),
            self._judge(1.0, "stopped VM, CPU against qemu-img over NBD and ssh", QEMU_IMG, lambda copy: copy.cpu_s),
        ]

    def _judge_voyages(self, bound: float, text: str, other: str) -> Verdict:
        pairs = zip(self._voyages[OURS], self._voyages[other], strict=False)
        return judge_ratios(text, [ours.took_s / theirs.took_s for ours, theirs in pairs], bound, at_least=False)

    def _judge(self, bound: float, text: str, other: str, figure: Callable[[Copy], float]) -> Verdict:
        pairs = zip(self._copies[OURS], self._copies[other], strict=False)
        ratios = [figure(ours) / figure(theirs) for ours, theirs in pairs]
        return judge_ratios(text, ratios, bound, at_least=False)
