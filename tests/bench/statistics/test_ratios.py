"""The interval of a ratio by simulation, against order statistics by hand, and the noise floor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from bench.statistics.ratios import estimate, no_difference, noise_floor

Draw = Callable[[np.random.Generator, int], np.ndarray]


def normal(random: np.random.Generator, n: int) -> np.ndarray:
    return random.normal(0, 0.02, n)


def spiky(random: np.random.Generator, n: int) -> np.ndarray:
    """Now and then something slows a call down."""
    return random.normal(0, 0.01, n) + (random.random(n) < 0.15) * random.exponential(0.1, n)


def skewed(random: np.random.Generator, n: int) -> np.ndarray:
    return random.exponential(0.03, n)


@pytest.mark.parametrize("rounds", [6, 8, 10, 15])
@pytest.mark.parametrize(("ours", "theirs"), [(normal, normal), (spiky, spiky), (spiky, normal), (skewed, normal)])
def test_interval_holds_the_true_median_as_often_as_it_says(rounds: int, ours: Draw, theirs: Draw) -> None:
    random = np.random.default_rng(rounds)
    true = float(np.median(np.exp(ours(random, 400_000) - theirs(random, 400_000))))
    held = 0
    for _ in range(1500):
        found = estimate(np.exp(ours(random, rounds) - theirs(random, rounds)))
        held += found.low <= true <= found.high
    assert 0.935 <= held / 1500 <= 0.97  # 0.95 within three standard errors, and the interpolation is an approximation


@pytest.mark.parametrize("rounds", [2, 4, 5])
def test_few_rounds_give_their_range(rounds: int) -> None:
    values = np.random.default_rng(0).random(rounds)
    found = estimate(values)
    assert (found.low, found.median, found.high) == (values.min(), np.median(values), values.max())


@pytest.mark.parametrize("rounds", [6, 9, 10, 15, 30])
def test_interval_lies_between_the_order_statistics_that_cover_too_much_and_too_little(rounds: int) -> None:
    values = np.sort(np.random.default_rng(rounds).random(rounds))
    found = estimate(values[::-1])
    covers = [1 - 2 * binom.cdf(rank - 1, rounds, 0.5) for rank in range(1, rounds // 2 + 1)]
    rank = sum(c >= 0.95 for c in covers)
    assert values[rank - 1] <= found.low < values[rank]
    assert values[rounds - rank - 1] < found.high <= values[rounds - rank]
    assert found.low + found.high == pytest.approx(1.0, abs=0.6)


def test_one_round_is_a_point() -> None:
    found = estimate(np.array([1.3]))
    assert (found.low, found.median, found.high) == (1.3, 1.3, 1.3)


def test_noise_floor_is_symmetric_in_the_ratio() -> None:
    assert noise_floor(0.99, 1.03) == 1.03
    assert noise_floor(0.96, 1.01) == pytest.approx(1 / 0.96)
    assert noise_floor(1.02, 1.05) == 1.05  # an interval that misses 1: the floor still reaches back to it
    assert noise_floor(0.9, 0.95) == pytest.approx(1 / 0.9)


@pytest.mark.parametrize(
    ("low", "high", "seen"),
    [
        (1.05, 1.1, True),
        (1.02, 1.1, False),
        (0.9, 0.95, True),
        (0.9, 0.98, False),
        (0.99, 1.01, False),
        (0.5, 2, False),
    ],
)
def test_a_ratio_that_reaches_into_the_floor_says_nothing(low: float, high: float, seen: bool) -> None:
    assert no_difference(low, high, 1.03) is not seen
