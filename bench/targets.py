"""What the project promises of its relay, as ratios: those move less than the figures that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from bench.case import (
    FOUR,
    FROM_UNIX,
    MASKED,
    PACED,
    RESUMABLE_IN,
    RESUMABLE_OUT,
    SIXTEEN,
    SIXTEEN_SHARING,
    SMALL_FRAMES,
    TO_UNIX,
    Case,
)
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

    def ratios(self, samples: Samples) -> list[float]:
        """Those of runs in the same round; none where one side was not measured."""
        pairs = zip(samples.get(self.over, ()), samples.get(self.under, ()), strict=False)
        return [self.figure(over) / self.figure(under) for over, under in pairs if self.figure(under)]

    def judge(self, samples: Samples) -> Verdict:
        """See judge_ratios."""
        return judge_ratios(self.text, self.ratios(samples), self.bound, at_least=self.at_least)


def spread_percent(values: Sequence[float]) -> float | None:
    """Half of the distance between the quartiles, in percent of the median; None: one value says nothing about it."""
    if len(values) < 2:
        return None
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return 100 * (high - low) / 2 / middle


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A target and what was measured; None: it was not. spread: of the rounds, in percent (see spread_percent)."""

    text: str
    value: float | None
    bound: float
    at_least: bool
    unit: str = "x"
    spread: float | None = None

    @property
    def reached(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def shown(self) -> str:
        """E.g. `2.04 x ± 3 % (≥ 1.9 x) reached`."""
        sign = "≥" if self.at_least else "≤"
        value = "not measured" if self.value is None else f"{self.value:.2f} {self.unit}"
        value += "" if self.spread is None else f" ± {self.spread:.0f} %"
        word = {None: "", True: " reached", False: " MISSED"}[self.reached]
        return f"{value} ({sign} {self.bound:g} {self.unit}){word}"


def _at_least(bound: float, text: str, over: tuple[str, Case], under: tuple[str, Case]) -> Target:
    return Target(text=text, figure=_speed, over=over, under=under, bound=bound, at_least=True)


def _costs_at_most(bound: float, text: str, over: tuple[str, Case], under: tuple[str, Case]) -> Target:
    return Target(text=text, figure=_cost, over=over, under=under, bound=bound, at_least=False)


_BASE = ("mtunnel", TO_UNIX)
_BACK = ("mtunnel", FROM_UNIX)

RATIOS: Sequence[Target] = (
    _costs_at_most(1.0, "to UNIX, CPU against nginx", _BASE, ("nginx", TO_UNIX)),
    _costs_at_most(0.75, "to UNIX, CPU against socat -b262144", _BASE, ("socat", TO_UNIX)),
    _at_least(1.25, "to UNIX, MB/s against nginx", _BASE, ("nginx", TO_UNIX)),
    _at_least(1.8, "to UNIX, MB/s against socat -b262144", _BASE, ("socat", TO_UNIX)),
    _at_least(0.92, "to UNIX, MB/s, random mask against zero mask", ("mtunnel", MASKED), _BASE),
    _at_least(1.0, "from UNIX, MB/s against socat -b262144", _BACK, ("socat", FROM_UNIX)),
    _costs_at_most(1.2, "from UNIX, CPU against socat -b262144", _BACK, ("socat", FROM_UNIX)),
    _at_least(8, "4 KiB frames, MB/s against autobahn", ("mtunnel", SMALL_FRAMES), ("autobahn", SMALL_FRAMES)),
    _costs_at_most(
        0.8, "4 KiB frames, CPU against nginx with such records", ("mtunnel", SMALL_FRAMES), ("nginx", SMALL_FRAMES)
    ),
    _at_least(1.0, "4 streams, MB/s, 2 workers against nginx's 2", ("mtunnel-w2", FOUR), ("nginx-w2", FOUR)),
    _at_least(
        1.0,
        "16 streams, MB/s, 2 workers against nginx's 2",
        ("mtunnel-w2", SIXTEEN_SHARING),
        ("nginx-w2", SIXTEEN_SHARING),
    ),
    _costs_at_most(1.3, "16 streams, CPU against one stream", ("mtunnel", SIXTEEN), _BASE),
    _costs_at_most(1.3, "at 125 MB/s, CPU against full speed", ("mtunnel", PACED[125]), _BASE),
    _costs_at_most(1.05, "to UNIX, CPU, resumable against plain", ("mtunnel", RESUMABLE_IN), _BASE),
    _costs_at_most(1.12, "from UNIX, CPU, resumable against plain", ("mtunnel", RESUMABLE_OUT), _BACK),
)

MOST_GROWTH_MIB = 16
GROWTHS = (
    ("to UNIX, memory, resumable above plain", ("mtunnel", RESUMABLE_IN), _BASE),
    ("from UNIX, memory, resumable above plain", ("mtunnel", RESUMABLE_OUT), _BACK),
)
"""What a resumable flow may keep, MOST_GROWTH_MIB more than a plain one."""


def judge_ratios(text: str, ratios: Sequence[float], bound: float, *, at_least: bool) -> Verdict:
    """The median of the ratios of all rounds, and how far they lie apart."""
    value = median(ratios) if ratios else None
    return Verdict(text=text, value=value, spread=spread_percent(ratios), bound=bound, at_least=at_least)


def judge(samples: Samples) -> list[Verdict]:
    """All ratios, and the memory of resumable flows."""
    return [
        *(each.judge(samples) for each in RATIOS),
        *(at_most(MOST_GROWTH_MIB, "MiB", text, _growth_mib(samples, over, under)) for text, over, under in GROWTHS),
    ]


def _growth_mib(samples: Samples, over: tuple[str, Case], under: tuple[str, Case]) -> float | None:
    """The median of the differences within a round."""
    pairs = zip(samples.get(over, ()), samples.get(under, ()), strict=False)
    growths = [more.rss_mib - less.rss_mib for more, less in pairs]
    return median(growths) if growths else None


def at_most(bound: float, unit: str, text: str, value: float | None) -> Verdict:
    """A target that is no ratio."""
    return Verdict(text=text, value=value, bound=bound, at_least=False, unit=unit)
