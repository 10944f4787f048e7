"""Statistics of timings: known answers, and a coverage that is what it claims."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgecore.measure.statistics import abba, median, median_interval, percentiles


def test_percentiles_interpolate_and_of_nothing_are_not_a_number() -> None:
    assert percentiles([1, 2, 3, 4, 5], (0, 50, 75, 100)) == (1, 3, 4, 5)
    assert median([4, 1, 3, 2]) == 2.5
    assert all(math.isnan(p) for p in percentiles([]))


def test_the_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    hits = sum(median_interval(list(random.exponential(1, 15))).holds(math.log(2)) for _ in range(200))
    assert 0.88 <= hits / 200 <= 0.995


def test_the_interval_is_the_same_on_every_call_and_shrinks_to_a_constant() -> None:
    values = [1.0, 1.1, 0.9, 1.3, 0.97]
    assert median_interval(values) == median_interval(values)
    same = median_interval([2.0] * 10)
    assert (same.low, same.median, same.high, same.n) == (2, 2, 2, 10)


@pytest.mark.parametrize("arms", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_rounds_go_forwards_and_backwards_so_that_a_drift_cancels(arms: list[str]) -> None:
    order = [arm for one in abba(arms, 10) for arm in one]
    mean_place = {arm: np.mean([i for i, name in enumerate(order) if name == arm]) for arm in arms}
    assert len(set(mean_place.values())) == 1
