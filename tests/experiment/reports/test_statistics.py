import itertools

import numpy as np
import pytest
import scipy.stats

from randlora_core.experiment.reports.statistics import Difference, Summary, paired_difference, summarize


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
    assert found.verdict == "better" and paired_difference([b], [a]).verdict == "worse"
    shuffled = a[:, generator.permutation(500)]
    assert paired_difference([shuffled], [b]).verdict == "no significant difference"


def test_seeds_that_disagree_widen_the_interval():
    right, wrong = np.ones((1, 2000), bool), np.zeros((1, 2000), bool)
    half = np.arange(2000)[None] % 2 == 0
    steady = paired_difference([np.concatenate([half] * 4)], [np.concatenate([~half] * 4)])
    moody = paired_difference([np.concatenate([right, right, wrong, wrong])], [np.concatenate([half] * 4)])
    assert moody.high - moody.low > 5 * (steady.high - steady.low)
    assert moody.verdict == "no significant difference"


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
    assert Difference(0.1, low, high, seeds).verdict == verdict
    turned = Difference(-0.1, -high, -low, seeds).verdict
    assert turned == {"better": "worse"}.get(verdict, verdict)


def test_seed_noise_alone_is_rarely_called_significant():
    """Methods of equal mean whose seeds scatter: a nominal 5 % of false verdicts, which the bootstrap alone exceeds."""
    generator = np.random.default_rng(7)
    verdicts, bootstrap_alone = [], []
    for _ in range(200):
        levels = np.clip(generator.normal(0.7, 0.1, size=(2, 3, 1)), 0, 1)
        a, b = generator.random((2, 3, 400)) < levels
        found = paired_difference([a], [b], resamples=200)
        verdicts.append(found.verdict != "no significant difference")
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
