"""The few statistics that timings need: order statistics and the bootstrap, because timings are skewed and have
outliers that a mean and a standard deviation would turn into nonsense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float
    n: int
    """Values that it was taken over."""

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def percentiles(values: Sequence[float], which: Sequence[float] = (50, 95, 99)) -> tuple[float, ...]:
    """Linear interpolation between order statistics, as numpy's default. NaN for no values."""
    if not values:
        return tuple(float("nan") for _ in which)
    return tuple(float(p) for p in np.percentile(np.asarray(values, np.float64), which))


def median(values: Sequence[float]) -> float:
    return percentiles(values, (50,))[0]


def median_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> Interval:
    """The median and its percentile-bootstrap interval (Efron 1979). The seed makes it the same on every call.

    For the ratio of two arms, pass the ratio of each pair: pairs were taken side by side, so what slowed both down
    cancels.
    """
    data = np.asarray(values, np.float64)
    if data.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    draws = np.random.default_rng(seed).integers(0, data.size, (RESAMPLES, data.size))
    medians = np.median(data[draws], axis=1)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(medians, (tail, 100 - tail))
    return Interval(float(np.median(data)), float(low), float(high), int(data.size))


def abba(arms: Sequence[T], rounds: int) -> list[list[T]]:
    """The order of every round: forwards and backwards in turn (A B, B A, A B ...), so that a drift of the machine
    (heat, a neighbour) falls on all arms alike."""
    return [list(arms) if i % 2 == 0 else list(reversed(arms)) for i in range(rounds)]
