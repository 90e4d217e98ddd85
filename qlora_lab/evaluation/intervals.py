"""How sure a mean over a few seeds is: Student's t intervals, and differences paired by seed.

A run's result depends on its seed: the adapters' first values, the order of the examples. Three runs are a sample of
all the runs that could have been; with so few, two standard errors are far too narrow, and Student's t says by how
much. Where two conditions were run with the same seeds, the seed's own effect is in both of them, and the difference
within each seed is known better than either result.
"""

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean of `count` values and its 95 % interval."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies above or below zero, else 0: not told from zero."""
        return (self.low > 0) - (self.high < 0)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval by Student's t: mean ± t s / √n, s with n - 1 in its denominator.

    Raises:
        ValueError: fewer than two values, which say nothing of how they spread, or one that is not finite.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} values have no spread; an interval needs two at least")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{values} are not all finite")
    mean = statistics.mean(values)
    half = student_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval:
    """Ours minus theirs within each seed that both have: {seed: result} each.

    Raises:
        ValueError: fewer than two seeds in common.
    """
    shared = sorted(ours.keys() & theirs.keys())
    if len(shared) < 2:
        raise ValueError(f"seeds {sorted(ours)} and {sorted(theirs)} have {len(shared)} in common; two are needed")
    return mean_interval([ours[seed] - theirs[seed] for seed in shared])


@functools.cache
def student_quantile(freedom: int, share: float = 0.95) -> float:
    """The t that `share` of Student's distribution with so many degrees of freedom lies within, -t to t.

    With t = √v tan θ the density is a constant times cos^(v - 1) θ, which Simpson's rule integrates to ten digits.

    Raises:
        ValueError: no degree of freedom, or a share that is none.
    """
    if freedom < 1 or not 0 < share < 1:
        raise ValueError(
            f"{freedom} degrees of freedom and a share of {share} have no quantile; give 1 or more, 0 to 1"
        )
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)

    def within(angle: float, pieces: int = 200) -> float:
        step = angle / pieces
        weights = (1 if i in (0, pieces) else 4 if i % 2 else 2 for i in range(pieces + 1))
        return 2 * constant * step / 3 * sum(w * math.cos(i * step) ** (freedom - 1) for i, w in enumerate(weights))

    low, high = 0.0, math.pi / 2
    while high - low > 1e-14:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < share else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
