"""Percentiles with their confidence intervals, and the verdict of three on a limit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["CONFIDENCE", "LEVELS", "Percentile", "Verdict", "above", "percentiles", "verdict"]

CONFIDENCE = 0.95
LEVELS = (0.5, 0.95, 0.99)
_NOISE = 1.1  # the intervals of eight runs on one quiet machine lay up to 1.02 apart: they tell of samples, not of runs

Verdict = Literal["met", "not met", "not enough samples"]


@dataclass(frozen=True, slots=True)
class Percentile:
    """Hold one percentile in milliseconds with its two-sided 95 % confidence interval.

    A bound is None where the samples are too few to give one. The interval is that of the order statistics, which
    assumes nothing of the distribution (Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2).
    """

    level: float
    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        low, high = ("?" if bound is None else f"{bound:.3g}" for bound in (self.low, self.high))
        return f"p{self.level * 100:g} {self.value:.3g} ms ({low}–{high})"


def percentiles(nanoseconds: Sequence[int]) -> tuple[Percentile, ...]:
    """Return p50, p95 and p99 of samples in nanoseconds."""
    import numpy as np
    from scipy.stats import quantile_test

    milliseconds = np.asarray(nanoseconds, dtype=float) / 1e6
    found = []
    for level in LEVELS:
        interval: Any = quantile_test(milliseconds, p=level).confidence_interval(CONFIDENCE)
        low, high = (None if np.isnan(bound) else float(bound) for bound in (interval.low, interval.high))
        found.append(Percentile(level, float(np.quantile(milliseconds, level)), low, high))
    return tuple(found)


def above(low: float | None, high: float | None) -> bool:
    """Tell whether an interval that begins at ``low`` lies above one that ends at ``high``, by more than runs differ.

    A bound that the samples could not give is open.
    """
    return low is not None and high is not None and low > high * _NOISE


def verdict(nanoseconds: Sequence[int], level: float, limit_ms: float) -> Verdict:
    """Say whether the percentile ``level`` lies under ``limit_ms``, with 95 % confidence either way.

    Each side is a one-sided bound: to claim that p99 lies under a limit takes 299 samples with none above it, since
    0.99**299 < 0.05 <= 0.99**298.
    """
    from scipy.stats import binom

    above = sum(sample >= limit_ms * 1e6 for sample in nanoseconds)
    count = len(nanoseconds)
    # Were the percentile at the limit, a share of 1 - level of the samples would lie above it.
    if binom.cdf(above, count, 1 - level) <= 1 - CONFIDENCE:
        return "met"
    if binom.sf(above - 1, count, 1 - level) <= 1 - CONFIDENCE:
        return "not met"
    return "not enough samples"
