"""Percentiles, the interval in which each lies, and the verdict of three on a limit."""

from math import log

import numpy as np
import pytest

from abathur_nb.percentiles import LEVELS, Percentile, percentiles, verdict

MS = 1_000_000


def samples_of(rng: np.random.Generator, count: int) -> list[int]:
    """Return times in nanoseconds whose true quantiles are known: exponential, 1 ms in the mean."""
    return [int(value) for value in rng.exponential(MS, count)]


@pytest.mark.parametrize(
    ("fast", "slow", "level", "said"),
    [
        (299, 0, 0.99, "met"),  # 0.99**299 < 0.05
        (298, 0, 0.99, "not enough samples"),  # 0.99**298 >= 0.05
        (471, 1, 0.99, "not enough samples"),
        (472, 1, 0.99, "met"),
        (985, 15, 0.99, "not enough samples"),
        (984, 16, 0.99, "not met"),
        (0, 1, 0.99, "not met"),
        (59, 0, 0.95, "met"),
        (58, 0, 0.95, "not enough samples"),
    ],
)
def test_a_limit_is_met_not_met_or_not_proven(fast: int, slow: int, level: float, said: str) -> None:
    assert verdict([MS] * fast + [20 * MS] * slow, level, 10) == said


@pytest.mark.parametrize(
    ("count", "low", "high"), [(6, 1, 6), (8, 1, 8), (10, 2, 9), (20, 6, 15), (25, 8, 18), (50, 18, 33), (100, 40, 61)]
)
def test_the_interval_of_a_median_is_that_of_the_published_tables(count: int, low: int, high: int) -> None:
    """By order statistics: the table of the sign test's 95 % intervals (Conover; Dixon and Massey)."""
    median = percentiles([number * MS for number in range(1, count + 1)])[0]
    assert (median.low, median.high) == (low, high)


def test_few_samples_bound_and_prove_nothing() -> None:
    for count in (1, 2, 5):
        for found in percentiles([5 * MS] * count):
            assert (found.value, found.high) == (5, None)
    *_, p99 = percentiles([MS] * 100)
    assert (p99.high, str(p99)) == (None, "p99 1 ms (1–?)")
    assert str(Percentile(0.5, 0.12345, 0.1, 0.2)) == "p50 0.123 ms (0.1–0.2)"
    assert verdict([], 0.99, 10) == "not enough samples"
    assert verdict([10 * MS] * 299, 0.99, 10) == "not met", "a sample at the limit does not lie under it"


def test_the_interval_holds_the_true_percentile_at_least_95_times_in_100() -> None:
    """Tried on 400 draws: a two-sided 95 % interval may miss 20 of them, and by chance hardly more than 33."""
    rng = np.random.default_rng(3)
    missed = dict.fromkeys(LEVELS, 0)
    for _ in range(400):
        samples = samples_of(rng, 700)
        for found in percentiles(samples):
            assert found.value == pytest.approx(np.quantile(samples, found.level) / MS)
            true = -log(1 - found.level)
            low = -np.inf if found.low is None else found.low
            high = np.inf if found.high is None else found.high
            missed[found.level] += not low <= true <= high
    assert all(2 <= count <= 33 for count in missed.values()), missed  # never missed, it would be needlessly wide
