"""Percentiles with their confidence intervals, and the verdict whether a percentile meets a limit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
LEVELS = (0.5, 0.95, 0.99)
_NOISE = 1.1  # intervals of eight runs on one quiet machine differed by a factor of up to 1.02

Verdict = Literal["met", "not met", "not enough samples"]


@dataclass(frozen=True, slots=True)
class Percentile:
    """Hold one percentile in milliseconds with its two-sided 95 % confidence interval.

    A bound is None if there are too few samples. The interval comes from order statistics and assumes no distribution
    (Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2).
    """

    level: float
    value: float
    low: float | None
    high: float | None

    @property
    def name(self) -> str:
        """Return the usual name, such as ``p99``."""
        return f"p{self.level * 100:g}"

    def __str__(self) -> str:
        low, high = ("?" if bound is None else f"{bound:.3g}" for bound in (self.low, self.high))
        return f"{self.name} {self.value:.3g} ms ({low}–{high})"


def percentiles(nanoseconds: Sequence[int]) -> tuple[Percentile, ...]:
    """Return p50, p95 and p99 of samples in nanoseconds."""
    import numpy as np

    ordered = np.sort(np.asarray(nanoseconds, dtype=float)) / 1e6
    tail, found = (1 - CONFIDENCE) / 2, []
    for level in LEVELS:
        low, high = np.searchsorted(_at_most(len(ordered), level), (tail, 1 - tail))
        lower = float(ordered[low - 1]) if low > 0 else None
        upper = float(ordered[high]) if high < len(ordered) else None
        found.append(Percentile(level, float(np.quantile(ordered, level)), lower, upper))
    return tuple(found)


def _at_most(count: int, chance: float) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Return, for each k in 0..count, the probability of at most k successes in ``count`` trials."""
    import numpy as np

    k = np.arange(count + 1)
    logs = np.cumsum(np.log(np.maximum(k, 1)))  # of the factorials
    return np.cumsum(np.exp(logs[-1] - logs - logs[::-1] + k * np.log(chance) + (count - k) * np.log1p(-chance)))


def above(low: float | None, high: float | None) -> bool:
    """Return whether ``low`` is above another interval's bound ``high`` by more than noise; None means no bound."""
    return low is not None and high is not None and low > high * _NOISE


def verdict(nanoseconds: Sequence[int], level: float, limit_ms: float) -> Verdict:
    """Return whether the percentile ``level`` is below ``limit_ms``, with 95 % confidence for either answer.

    Each answer uses a one-sided bound: a p99 needs 299 samples, all below the limit, to be met (0.99**299 < 0.05).
    """
    above, count = sum(sample >= limit_ms * 1e6 for sample in nanoseconds), len(nanoseconds)
    # If the percentile equals the limit, a share of 1 - level of the samples lies above it.
    at_most = _at_most(count, 1 - level)
    if at_most[above] <= 1 - CONFIDENCE:
        return "met"
    if above and at_most[above - 1] >= CONFIDENCE:
        return "not met"
    return "not enough samples"
