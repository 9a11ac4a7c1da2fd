"""Means, intervals and paired differences: what a table may claim from a few seeds.

Three questions, three answers. How well does a method do? The mean over seeds with Student's t interval
`mean +- t(0.975, n - 1) * s / sqrt(n)`. Is method a better than method b? Both saw the same samples and the same seeds,
so the difference is taken in pairs: a bootstrap resamples test samples and seeds for both together. With three seeds a
bootstrap alone calls a quarter of all differences that are nothing but seed noise significant (three coins fall alike
that often), so the t interval of the seeds' paired differences must exclude 0 as well.

How many such claims may a report make? Each has a p-value, the larger one of the t test over seeds and of the normal
test with the bootstrap's standard error, which unlike a share of resamples says something far out in the tail. `holm`
raises the p-values of all claims of one kind, so that the probability of a single false one among them is at most 5 %,
however they depend on each other: they share seeds, samples and methods. Holm's correction was preferred to intervals
widened by Bonferroni's, which keeps the same promise with less power, and whose percentiles for hundreds of comparisons
would need tens of thousands of resamples each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

DEFAULT_LEVEL = 0.95
DEFAULT_RESAMPLES = 5000


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
        p_value: The larger p-value of the two two-sided tests; None for one seed.
    """

    mean: float
    low: float
    high: float
    over_seeds: Summary
    p_value: float | None

    def verdict(self, p_value: float | None) -> str:
        """`better` or `worse` where both intervals exclude 0 and `p_value` is small, else `no significant difference`.

        Args:
            p_value: `self.p_value`, corrected for the number of differences that are reported together.
        """
        half_width = self.over_seeds.half_width
        if half_width is None or p_value is None:
            return "undecided with one seed"
        if p_value <= 1 - DEFAULT_LEVEL:
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
    shares = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=resamples) / num_seeds
    means = np.mean([_resampled_means(one, shares, generator) for one in differences], axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    by_seed = np.mean([difference.mean(axis=1) for difference in differences], axis=0)
    summary = summarize(by_seed.tolist(), level)
    return Difference(float(by_seed.mean()), float(low), float(high), summary, _p_value(summary, float(means.std())))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: a claim counts at level a where its corrected p-value is at most a.

    Args:
        p_values: One for each claim of a family; None makes no claim and stays None.

    Returns:
        The corrected p-values in the same order, at most 1.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    claims = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, index) in enumerate(claims):
        largest = max(largest, min(1.0, (len(claims) - rank) * value))
        corrected[index] = largest
    return corrected


def _p_value(over_seeds: Summary, standard_error: float) -> float | None:
    """The larger p-value of the t test over seeds and of the normal test with the bootstrap's standard error."""
    if over_seeds.std is None:
        return None
    if over_seeds.mean == 0:
        return 1.0
    from scipy.stats import norm, t

    def statistic(error: float) -> float:
        return abs(over_seeds.mean) / error if error > 0 else math.inf

    by_seeds = 2 * t.sf(statistic(over_seeds.std / math.sqrt(over_seeds.count)), over_seeds.count - 1)
    return float(max(by_seeds, 2 * norm.sf(statistic(standard_error))))


def _difference(correct_a: "np.ndarray", correct_b: "np.ndarray") -> "np.ndarray":
    """A - b of one test set as float64 (seeds, samples)."""
    import numpy as np

    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.shape != b.shape or a.ndim != 2 or a.size == 0:
        raise ValueError(f"expected two non-empty (seeds, samples) arrays of one shape, got {a.shape} and {b.shape}")
    return a.astype(np.float64) - b.astype(np.float64)


def _resampled_means(difference: "np.ndarray", shares: "np.ndarray", generator: "np.random.Generator") -> "np.ndarray":
    """Means of `difference` (seeds, samples) over seeds with the given shares (count, seeds) and drawn samples.

    Samples with the same differences at all seeds are alike to a mean, and there are few kinds of them (27 for three
    seeds), so how often each kind is drawn is drawn from a multinomial: the same distribution as drawing the samples
    one by one, at a cost that does not grow with their number. The frequent kinds come first, which leaves little to
    draw for the rest.
    """
    import numpy as np

    num_seeds, num_samples = difference.shape
    codes = 3.0 ** np.arange(num_seeds) @ (difference + 1)  # each sample's differences, -1, 0 or 1, as digits
    _, first, counts = np.unique(codes, return_index=True, return_counts=True)
    order = np.argsort(-counts)
    kinds = difference[:, first[order]]
    drawn = generator.multinomial(num_samples, counts[order] / num_samples, size=len(shares))
    return np.einsum("rs,sk,rk->r", shares, kinds, drawn, optimize=True) / num_samples
