import numpy as np
import pytest

from ling_jax.evaluate.statistics import bootstrap_ratio_interval, effective_count, wilson_interval


@pytest.mark.parametrize(
    ("mean", "count", "interval"),
    [  # Newcombe 1998, table I, method 3: score without continuity correction
        (81 / 263, 263, (0.2553, 0.3662)),
        (15 / 148, 148, (0.0624, 0.1605)),
        (0 / 20, 20, (0.0000, 0.1611)),
        (1 / 29, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_intervals_are_the_published(mean, count, interval):
    np.testing.assert_allclose(wilson_interval(mean, count), interval, atol=5e-5)
    low, high = wilson_interval(1 - mean, count)
    np.testing.assert_allclose((1 - high, 1 - low), interval, atol=5e-5)


def test_wilson_intervals_stay_in_range_and_hold_the_mean():
    for count in (1, 2, 7, 1000, 3.5):
        for mean in (0.0, 1e-9, 0.3, 1 - 1e-9, 1.0):
            low, high = wilson_interval(mean, count)
            assert 0 <= low <= mean <= high <= 1 and high > low


def test_single_binary_samples_are_worth_their_number():
    scores = np.array([1.0, 0, 0, 1, 1, 0, 1])
    np.testing.assert_allclose(effective_count(scores, np.ones(7)), 7)


def test_samples_that_repeat_their_prompt_are_worth_no_more_than_the_prompts():
    scores = np.random.default_rng(0).integers(0, 2, 30)
    assert effective_count(8 * scores, np.full(30, 8)) == pytest.approx(29 * 240 / 239)  # 30, each variance unbiased
    assert effective_count(np.zeros(30), np.full(30, 8)) == effective_count(np.full(30, 8), np.full(30, 8)) == 30
    assert effective_count([3], [8]) == 1


def coverage(intervals, truth):
    return np.mean([low <= truth <= high for low, high in intervals])


def test_clustered_intervals_cover_and_those_that_take_samples_as_independent_do_not():
    rng, clusters, each, simulations = np.random.default_rng(0), 40, 8, 1000
    chances = rng.beta(0.3, 0.7, size=(simulations, clusters))  # most prompts are nearly always or never solved
    sums = rng.binomial(each, chances)
    counts = np.full(clusters, each)
    means = sums.sum(axis=1) / counts.sum()
    clustered = [wilson_interval(m, effective_count(s, counts)) for m, s in zip(means, sums, strict=True)]
    assert 0.93 <= coverage(clustered, 0.3) <= 0.97  # 95 %, three standard errors of 0.7 % each way
    assert coverage([wilson_interval(m, counts.sum()) for m in means], 0.3) < 0.8


def test_bootstrap_intervals_of_a_ratio_cover():
    rng, simulations, documents = np.random.default_rng(0), 400, 80
    lengths = rng.integers(5, 200, size=(simulations, documents))
    # Long documents are easier: the mean over tokens, 3 - 0.005 E[n^2] / E[n], is not the mean of the documents' means.
    nats = lengths * (3 - 0.005 * lengths + 0.3 * rng.normal(size=lengths.shape))
    n = np.arange(5, 200)
    truth = 3 - 0.005 * np.mean(n**2) / np.mean(n)
    found = [bootstrap_ratio_interval(a, b) for a, b in zip(nats, lengths, strict=True)]
    assert 0.91 <= coverage(found, truth) <= 0.98  # 95 %, three standard errors of 1.1 % each way
    assert coverage(found, 3 - 0.005 * np.mean(n)) < 0.2  # the mean of the documents' means


def test_a_bootstrap_is_the_same_every_time_and_needs_two_units():
    a, b = np.random.default_rng(0).uniform(1, 2, size=(2, 50))
    assert bootstrap_ratio_interval(a, b) == bootstrap_ratio_interval(a, b)
    assert bootstrap_ratio_interval([1.0], [2.0]) is None
    assert bootstrap_ratio_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == (2.0, 2.0)
