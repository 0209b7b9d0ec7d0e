"""What the project promises of its relay, as ratios: those move less than the figures that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.case import FOUR, FROM_UNIX, MASKED, SIXTEEN, SMALL_FRAMES, TO_UNIX, Case
from bench.measure import Sample

Samples = dict[tuple[str, Case], list[Sample]]
Figure = Callable[[Sample], float]


def _speed(sample: Sample) -> float:
    return sample.mb_s


def _cost(sample: Sample) -> float:
    return sample.cpu_s_gib


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A figure of one relay in one case, over that of another: at least, or at most, `bound`."""

    text: str
    figure: Figure
    over: tuple[str, Case]
    under: tuple[str, Case]
    bound: float
    at_least: bool

    def value(self, samples: Samples) -> float | None:
        """The median of the ratios of runs in the same round; None where one side was not measured."""
        pairs = zip(samples.get(self.over, ()), samples.get(self.under, ()), strict=False)
        ratios = [self.figure(over) / self.figure(under) for over, under in pairs if self.figure(under)]
        return median(ratios) if ratios else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A target and what was measured; None: it was not."""

    text: str
    value: float | None
    bound: float
    at_least: bool
    unit: str = "x"

    @property
    def reached(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def shown(self) -> str:
        """E.g. `2.04 x (≥ 1.9 x) reached`."""
        sign = "≥" if self.at_least else "≤"
        value = "not measured" if self.value is None else f"{self.value:.2f} {self.unit}"
        word = {None: "", True: " reached", False: " MISSED"}[self.reached]
        return f"{value} ({sign} {self.bound:g} {self.unit}){word}"


def _at_least(bound: float, text: str, over: tuple[str, Case], under: tuple[str, Case]) -> Target:
    return Target(text=text, figure=_speed, over=over, under=under, bound=bound, at_least=True)


def _costs_at_most(bound: float, text: str, over: tuple[str, Case], under: tuple[str, Case]) -> Target:
    return Target(text=text, figure=_cost, over=over, under=under, bound=bound, at_least=False)


_BASE = ("mtunnel", TO_UNIX)

RATIOS: Sequence[Target] = (
    _at_least(1.9, "to UNIX, MB/s against socat -b262144", _BASE, ("socat", TO_UNIX)),
    _costs_at_most(0.70, "to UNIX, CPU against socat -b262144", _BASE, ("socat", TO_UNIX)),
    _costs_at_most(1.3, "to UNIX, CPU against nginx", _BASE, ("nginx", TO_UNIX)),
    _at_least(0.92, "to UNIX, MB/s, random mask against zero mask", ("mtunnel", MASKED), _BASE),
    _at_least(0.85, "from UNIX, MB/s against socat -b262144", ("mtunnel", FROM_UNIX), ("socat", FROM_UNIX)),
    _at_least(4, "4 KiB frames, MB/s against autobahn", ("mtunnel", SMALL_FRAMES), ("autobahn", SMALL_FRAMES)),
    _at_least(0.85, "4 streams, MB/s, 2 workers against nginx's 2", ("mtunnel-w2", FOUR), ("nginx-w2", FOUR)),
    _costs_at_most(1.3, "16 streams, CPU against one stream", ("mtunnel", SIXTEEN), _BASE),
)


def judge(samples: Samples) -> list[Verdict]:
    """All ratios."""
    return [
        Verdict(text=each.text, value=each.value(samples), bound=each.bound, at_least=each.at_least) for each in RATIOS
    ]


def at_most(bound: float, unit: str, text: str, value: float | None) -> Verdict:
    """A target that is no ratio."""
    return Verdict(text=text, value=value, bound=bound, at_least=False, unit=unit)
