"""Means, intervals and paired differences: what a table may claim from a few seeds.

Two questions, two answers. How well does a method do? The mean over seeds with Student's t interval
`mean +- t(0.975, n - 1) * s / sqrt(n)`. Is method a better than method b? Both saw the same samples and the same seeds,
so the difference is taken in pairs: a bootstrap resamples test samples and seeds for both together. With three seeds a
bootstrap alone calls a quarter of all differences that are nothing but seed noise significant (three coins fall alike
that often), so the t interval of the seeds' paired differences must exclude 0 as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

DEFAULT_LEVEL = 0.95
DEFAULT_RESAMPLES = 5000
CHUNK_ENTRIES = 4_000_000  # bootstrap indices drawn at a time: 32 MB


@dataclass(frozen=True)
class Summary:
    """Values of several seeds in brief.

    Attributes:
        mean: Arithmetic mean.
        std: Sample standard deviation (n - 1); None for one value.
        half_width: Half the width of the t interval around the mean; None for one value.
        count: Number of values, at least 1.
    """

    mean: float
    std: float | None
    half_width: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """A paired difference of accuracies, a minus b.

    Attributes:
        mean: Observed difference.
        low: Lower end of the bootstrap's percentile interval over samples and seeds.
        high: Upper end of it.
        over_seeds: Summary of the seeds' differences; its t interval is around the same mean.
    """

    mean: float
    low: float
    high: float
    over_seeds: Summary

    @property
    def verdict(self) -> str:
        """`better` or `worse` where both intervals exclude 0, else `no significant difference`."""
        half_width = self.over_seeds.half_width
        if half_width is None:
            return "undecided with one seed"
        if min(self.low, self.mean - half_width) > 0:
            return "better"
        if max(self.high, self.mean + half_width) < 0:
            return "worse"
        return "no significant difference"


def summarize(values: Sequence[float], level: float = DEFAULT_LEVEL) -> Summary:
    """Mean, sample standard deviation and t interval.

    Args:
        values: One value per seed, at least one.
        level: Coverage of the interval, between 0 and 1.

    Raises:
        ValueError: No value, or a level outside (0, 1).
    """
    if not values:
        raise ValueError("cannot summarise an empty list of values; accepted: at least one value")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is outside (0, 1)")
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Summary(mean, None, None, 1)
    from scipy.stats import t

    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half_width = float(t.ppf((1 + level) / 2, count - 1)) * std / math.sqrt(count)
    return Summary(mean, std, half_width, count)


def paired_difference(
    correct_a: "Sequence[np.ndarray]",
    correct_b: "Sequence[np.ndarray]",
    *,
    resamples: int = DEFAULT_RESAMPLES,
    level: float = DEFAULT_LEVEL,
    seed: int = 0,
) -> Difference:
    """Difference in accuracy between two methods on the same samples and seeds, with its intervals.

    Every bootstrap resample draws seeds, and samples of each test set, with replacement, the same for both methods, and
    takes the mean difference over the drawn seeds x samples, then over the test sets.

    Args:
        correct_a: For each test set (seeds, samples) 0/1 or bool: was the sample classified correctly by method a.
        correct_b: The same for method b, with rows and columns in the same order.
        resamples: Number of bootstrap resamples, at least 1.
        level: Coverage of both intervals.
        seed: Seed of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: The arrays of a set are not of one non-empty two-dimensional shape, the sets differ in their number
            of seeds, or `resamples` is below 1.
    """
    import numpy as np

    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; accepted: 1 or more")
    differences = [_difference(a, b) for a, b in zip(correct_a, correct_b, strict=True)]
    counts = {difference.shape[0] for difference in differences}
    if len(counts) != 1:
        raise ValueError(f"test sets with {sorted(counts)} seeds; accepted: one number of seeds")
    (num_seeds,) = counts
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_ENTRIES // max(difference.shape[1] for difference in differences))
    means = []
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        shares = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=count) / num_seeds
        means.append(np.mean([_resampled_means(one, shares, generator) for one in differences], axis=0))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    by_seed = np.mean([difference.mean(axis=1) for difference in differences], axis=0)
    return Difference(float(by_seed.mean()), float(low), float(high), summarize(by_seed.tolist(), level))


def _difference(correct_a: "np.ndarray", correct_b: "np.ndarray") -> "np.ndarray":
    """A - b of one test set as float64 (seeds, samples)."""
    import numpy as np

    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.shape != b.shape or a.ndim != 2 or a.size == 0:
        raise ValueError(f"expected two non-empty (seeds, samples) arrays of one shape, got {a.shape} and {b.shape}")
    return a.astype(np.float64) - b.astype(np.float64)


def _resampled_means(difference: "np.ndarray", shares: "np.ndarray", generator: "np.random.Generator") -> "np.ndarray":
    """Means of `difference` (seeds, samples) over seeds with the given shares (count, seeds) and drawn samples."""
    import numpy as np

    num_samples = difference.shape[1]
    samples = generator.integers(num_samples, size=(len(shares), num_samples))
    return np.take_along_axis(shares @ difference, samples, axis=1).mean(axis=1)
