import itertools

import numpy as np
import pytest
import scipy.stats

from randlora_core.experiment.reports.statistics import Difference, Summary, holm, paired_difference, summarize


@pytest.mark.parametrize("values", [[0.1, 0.4], [0.91, 0.93, 0.9], list(np.linspace(0, 1, 11) ** 2)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_is_that_of_students_t(values, level):
    summary = summarize(values, level)
    low, high = scipy.stats.t.interval(level, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    assert summary.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert summary.std == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert summary.half_width == pytest.approx((high - low) / 2, rel=1e-9)
    assert summary.count == len(values)


def test_one_value_has_no_interval_and_no_value_no_mean():
    assert summarize([0.5]) == summarize([0.5], 0.9)
    assert (summarize([0.5]).std, summarize([0.5]).half_width) == (None, None)
    with pytest.raises(ValueError, match="empty"):
        summarize([])
    with pytest.raises(ValueError, match=r"level 1\.5"):
        summarize([0.5, 0.6], 1.5)


def test_the_bootstrap_is_the_exact_distribution_over_all_resamples():
    """Two seeds and three samples have 4 x 27 equally likely resamples: their quantiles are the oracle."""
    a = np.array([[1, 0, 1], [1, 1, 0]])
    b = np.array([[0, 0, 1], [0, 1, 1]])
    exact = [
        (a[np.ix_(seeds, samples)] - b[np.ix_(seeds, samples)]).mean()
        for seeds in itertools.product(range(2), repeat=2)
        for samples in itertools.product(range(3), repeat=3)
    ]
    for level in (0.5, 0.8, 0.95):
        found = paired_difference([a], [b], resamples=100_000, level=level)
        low, high = np.quantile(exact, [(1 - level) / 2, (1 + level) / 2])
        # neighbouring values of the discrete distribution are 1/6 apart; the quantile's level is off by < 0.005
        assert found.low == pytest.approx(low, abs=0.17) and found.high == pytest.approx(high, abs=0.17)
        assert found.mean == pytest.approx((a - b).mean())
    moments = resampled_means(a, b)
    assert moments.mean() == pytest.approx(np.mean(exact), abs=4 * np.std(exact) / 300)
    assert moments.std() == pytest.approx(np.std(exact), rel=0.02)


def resampled_means(a, b):
    from randlora_core.experiment.reports.statistics import _resampled_means

    generator = np.random.default_rng(1)
    shares = generator.multinomial(2, [0.5, 0.5], size=90_000) / 2
    return _resampled_means((a - b).astype(float), shares, generator)


def test_the_interval_agrees_with_scipys_over_samples():
    """With one seed it is the ordinary paired bootstrap over samples."""
    generator = np.random.default_rng(3)
    a, b = generator.random((2, 1, 400)) < np.array([0.8, 0.7])[:, None, None]
    found = paired_difference([a], [b], resamples=20_000)
    oracle = scipy.stats.bootstrap(
        (a[0].astype(float) - b[0],), np.mean, method="percentile", n_resamples=20_000, rng=generator
    ).confidence_interval
    assert found.low == pytest.approx(oracle.low, abs=0.004)
    assert found.high == pytest.approx(oracle.high, abs=0.004)


def test_pairing_sees_a_difference_that_two_separate_intervals_hide():
    generator = np.random.default_rng(0)
    b = generator.random((3, 500)) < 0.5
    a = b.copy()
    a[:, :40] = True  # a is right wherever b is, and on a few samples more
    found = paired_difference([a], [b])
    per_seed = scipy.stats.ttest_rel(a.mean(axis=1), b.mean(axis=1)).confidence_interval(0.95)
    assert found.over_seeds.mean == pytest.approx(found.mean)
    assert found.over_seeds.half_width == pytest.approx((per_seed.high - per_seed.low) / 2)
    assert found.verdict(found.p_value) == "better" and uncorrected([b], [a]) == "worse"
    shuffled = a[:, generator.permutation(500)]
    assert uncorrected([shuffled], [b]) == "no significant difference"


def uncorrected(a, b):
    found = paired_difference(a, b)
    return found.verdict(found.p_value)


def test_seeds_that_disagree_widen_the_interval():
    right, wrong = np.ones((1, 2000), bool), np.zeros((1, 2000), bool)
    half = np.arange(2000)[None] % 2 == 0
    steady = paired_difference([np.concatenate([half] * 4)], [np.concatenate([~half] * 4)])
    moody = paired_difference([np.concatenate([right, right, wrong, wrong])], [np.concatenate([half] * 4)])
    assert moody.high - moody.low > 5 * (steady.high - steady.low)
    assert moody.verdict(moody.p_value) == "no significant difference"


def test_the_same_seed_gives_the_same_interval():
    generator = np.random.default_rng(5)
    a, b = generator.random((2, 3, 50)) < 0.6
    assert paired_difference([a], [b], seed=1) == paired_difference([a], [b], seed=1)
    assert paired_difference([a], [b], seed=1) != paired_difference([a], [b], seed=2)


@pytest.mark.parametrize(
    "low, high, half_width, verdict",
    [
        (0.0, 0.2, 0.01, "no significant difference"),
        (-0.1, 0.3, 0.01, "no significant difference"),
        (0.01, 0.2, 0.05, "better"),
        (0.01, 0.2, 0.1, "no significant difference"),
        (0.01, 0.2, None, "undecided with one seed"),
    ],
)
def test_both_intervals_must_exclude_zero(low, high, half_width, verdict):
    seeds = Summary(0.1, None, half_width, 1 if half_width is None else 3)
    p_value = None if half_width is None else 0.05
    assert Difference(0.1, low, high, seeds, p_value).verdict(p_value) == verdict
    turned = Difference(-0.1, -high, -low, seeds, p_value).verdict(p_value)
    assert turned == {"better": "worse"}.get(verdict, verdict)
    if verdict == "better":
        assert Difference(0.1, low, high, seeds, p_value).verdict(0.0501) == "no significant difference"


def test_seed_noise_alone_is_rarely_called_significant():
    """Methods of equal mean whose seeds scatter: a nominal 5 % of false verdicts, which the bootstrap alone exceeds."""
    generator = np.random.default_rng(7)
    verdicts, bootstrap_alone = [], []
    for _ in range(200):
        levels = np.clip(generator.normal(0.7, 0.1, size=(2, 3, 1)), 0, 1)
        a, b = generator.random((2, 3, 400)) < levels
        found = paired_difference([a], [b], resamples=200)
        verdicts.append(found.verdict(found.p_value) != "no significant difference")
        bootstrap_alone.append(found.low > 0 or found.high < 0)
    assert np.mean(verdicts) < 0.08 < np.mean(bootstrap_alone)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\)"):
        paired_difference([np.ones((3, 4))], [np.ones((2, 4))])
    with pytest.raises(ValueError, match="non-empty"):
        paired_difference([np.ones((0, 4))], [np.ones((0, 4))])
    with pytest.raises(ValueError, match="resamples is 0"):
        paired_difference([np.ones((1, 4))], [np.ones((1, 4))], resamples=0)
    with pytest.raises(ValueError, match=r"test sets with \[1, 2\] seeds"):
        paired_difference([np.ones((1, 4)), np.ones((2, 4))], [np.ones((1, 4)), np.ones((2, 4))])


def test_test_sets_count_alike_whatever_their_size():
    """Two test sets and two seeds: the resamples of seeds are shared, those of samples are each set's own."""
    a = [np.array([[1, 0], [1, 1]]), np.array([[1, 0, 1], [0, 1, 0]])]
    b = [np.array([[0, 0], [1, 0]]), np.array([[0, 0, 1], [0, 1, 1]])]
    found = paired_difference(a, b, resamples=100_000, level=0.8)
    by_set = [one.astype(float) - other for one, other in zip(a, b, strict=True)]
    assert found.mean == pytest.approx(np.mean([difference.mean() for difference in by_set]))
    exact = [
        np.mean([by_set[0][np.ix_(seeds, first)].mean(), by_set[1][np.ix_(seeds, second)].mean()])
        for seeds in itertools.product(range(2), repeat=2)
        for first in itertools.product(range(2), repeat=2)
        for second in itertools.product(range(3), repeat=3)
    ]
    low, high = np.quantile(exact, [0.1, 0.9])
    assert found.low == pytest.approx(low, abs=0.09) and found.high == pytest.approx(high, abs=0.09)
    assert found.over_seeds.mean == pytest.approx(found.mean) and found.over_seeds.count == 2


def test_the_p_value_is_the_larger_one_of_two_independent_tests():
    """SciPy's paired t test over seeds, and the normal test with the exact standard error of the bootstrap.

    The mean over drawn seeds s, t and drawn samples i, j of differences x has the variance E[x_si x_tj] - mean^2, where
    two draws are the same seed or sample, or are independent of each other.
    """
    generator = np.random.default_rng(11)
    for level_a, level_b, spread in ((0.8, 0.7, 0.02), (0.8, 0.7, 0.3), (0.75, 0.74, 0.0)):
        levels = np.clip(np.array([[level_a], [level_b]]) + generator.normal(0, spread, size=(2, 4)), 0, 1)
        a, b = generator.random((2, 4, 300)) < levels[:, :, None]
        found = paired_difference([a], [b], resamples=40_000)
        over_seeds = scipy.stats.ttest_rel(a.mean(axis=1), b.mean(axis=1)).pvalue
        x = a.astype(float) - b
        seeds, samples = x.shape
        of_seed = (np.eye(seeds) + (seeds - 1) * np.full((seeds, seeds), 1 / seeds)) / seeds**2
        of_sample = (np.eye(samples) + (samples - 1) * np.full((samples, samples), 1 / samples)) / samples**2
        variance = np.einsum("si,st,ij,tj->", x, of_seed, of_sample, x, optimize=True) - x.mean() ** 2
        over_samples = 2 * scipy.stats.norm.sf(abs(x.mean()) / np.sqrt(variance))
        assert found.p_value == pytest.approx(
            max(over_seeds, over_samples), rel=0.1
        )  # 40,000 resamples: 0.5 % of error
    assert paired_difference([np.ones((1, 9))], [np.zeros((1, 9))]).p_value is None
    assert paired_difference([np.ones((3, 9))], [np.ones((3, 9))]).p_value == 1.0
    assert paired_difference([np.ones((3, 9))], [np.zeros((3, 9))]).p_value == 0.0


def test_the_cost_of_a_bootstrap_does_not_grow_with_the_samples():
    """What is drawn for a million samples of three seeds is at most 27 numbers per resample."""
    generator = np.random.default_rng(2)
    drawn = []

    class Counting:
        def multinomial(self, count, shares, size):
            drawn.append((count, len(shares), size))
            return generator.multinomial(count, shares, size=size)

    from randlora_core.experiment.reports.statistics import _resampled_means

    difference = generator.integers(-1, 2, size=(3, 1_000_000)).astype(float)
    means = _resampled_means(difference, np.full((50, 3), 1 / 3), Counting())
    assert drawn == [(1_000_000, 27, 50)]
    # the mean of a million differences of variance 2/3, averaged over three seeds
    assert means.mean() == pytest.approx(difference.mean(), abs=5 * np.sqrt(2 / 9 / 1e6 / 50))
    assert means.std() == pytest.approx(np.sqrt(2 / 9 / 1e6), rel=0.4)


def closed_test(p_values, level):
    """The closure of Bonferroni's test: a claim holds if every set of claims that has it is refused as a whole."""
    indices = range(len(p_values))
    subsets = [set(s) for size in range(1, len(p_values) + 1) for s in itertools.combinations(indices, size)]
    refused = [min(p_values[i] for i in subset) <= level / len(subset) for subset in subsets]
    return [all(no for subset, no in zip(subsets, refused, strict=True) if index in subset) for index in indices]


def test_holms_correction_is_the_closed_bonferroni_test():
    generator = np.random.default_rng(4)
    for _ in range(100):
        p_values = (generator.random(5) ** 4).tolist()
        for level in (0.01, 0.05, 0.2):
            assert [value <= level for value in holm(p_values)] == closed_test(p_values, level)


def test_holm_leaves_out_what_makes_no_claim():
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06], nan_ok=False)
    assert holm([]) == [] and holm([None]) == [None] and holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("seed_noise", "sample_noise"),
    [
        (0.3, 2.0),
        pytest.param(0.0, 6.0, marks=pytest.mark.slow),
        pytest.param(0.05, 3.0, marks=pytest.mark.slow),
    ],
)
def test_a_family_of_twenty_comparisons_makes_a_false_claim_in_at_most_one_of_twenty_reports(seed_noise, sample_noise):
    """Methods of equal quality that differ by samples, by seeds and by both: uncorrected, a third of reports err.

    Of 100 reports at most 9 err with probability 0.97 if the true rate is 0.05.
    """
    generator = np.random.default_rng(9)
    raw, corrected = 0, 0
    for _ in range(100):
        family = []
        for _ in range(20):
            logits = generator.normal(0, sample_noise, (2, 1, 300)) + generator.normal(0, seed_noise, (2, 3, 1))
            a, b = generator.random((2, 3, 300)) < 1 / (1 + np.exp(-logits))
            family.append(paired_difference([a], [b], resamples=200))
        p_values = [found.p_value for found in family]
        raw += any(is_claim(found, value) for found, value in zip(family, p_values, strict=True))
        corrected += any(is_claim(found, value) for found, value in zip(family, holm(p_values), strict=True))
    assert corrected <= 9 and raw >= 20


def is_claim(found, p_value):
    return found.verdict(p_value) in ("better", "worse")
