import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.evaluate.pass_rates import check_ks, pass_at_k, pass_hat_k, pass_metrics


@st.composite
def counts(draw):
    """(samples, right ones, k)."""
    samples = draw(st.integers(1, 9))
    return samples, draw(st.integers(0, samples)), draw(st.integers(1, samples))


@given(counts())
def test_both_rates_are_those_of_all_subsets(case):
    samples, right, k = case
    subsets = list(itertools.combinations([True] * right + [False] * (samples - right), k))
    assert pass_at_k(samples, right, k) == pytest.approx(np.mean([any(subset) for subset in subsets]))
    assert pass_hat_k(samples, right, k) == pytest.approx(np.mean([all(subset) for subset in subsets]))


@given(counts(), st.floats(0, 1))
def test_both_estimates_are_unbiased(case, chance):
    samples, _, k = case
    weights = [math.comb(samples, c) * chance**c * (1 - chance) ** (samples - c) for c in range(samples + 1)]
    expected = [sum(w * f(samples, c, k) for c, w in enumerate(weights)) for f in (pass_at_k, pass_hat_k)]
    np.testing.assert_allclose(expected, (1 - (1 - chance) ** k, chance**k), atol=1e-12)


def values(metrics):
    return {metric.name: metric.value for metric in metrics}


def test_metrics_are_means_over_tasks():
    metrics = pass_metrics([4, 2, 0], 4, [1, 2, 4], unit="tasks")
    assert values(metrics) == pytest.approx(
        {"pass@1": 0.5, "pass@2": (1 + 5 / 6) / 3, "pass^2": (1 + 1 / 6) / 3, "pass@4": 2 / 3, "pass^4": 1 / 3}
    )
    assert all(metric.n == 3 and metric.unit == "tasks" for metric in metrics)
    assert all(metric.interval[0] <= metric.value <= metric.interval[1] for metric in metrics)


def test_no_task_has_no_value():
    (metric, _) = pass_metrics([], 4, [4])
    assert metric.value is None and metric.interval is None and metric.n == 0


def test_more_samples_than_k_narrow_the_interval():
    chances = np.random.default_rng(0).uniform(0.2, 0.8, 60)
    widths = []
    for samples in (4, 32):
        right = np.random.default_rng(1).binomial(samples, chances).tolist()
        low, high = pass_metrics(right, samples, [4])[1].interval
        widths.append(high - low)
    assert widths[1] < 0.8 * widths[0]


def test_intervals_over_tasks_cover():
    rng, tasks, samples, simulations = np.random.default_rng(0), 50, 8, 600
    chances = rng.beta(0.6, 0.6, size=(simulations, tasks))
    truth = {"pass@4": 1 - moment(0.6, 0.6, 4), "pass^4": moment(0.6, 0.6, 4)}  # E[p^4]; beta(0.6, 0.6) is symmetric
    covered = dict.fromkeys(truth, 0)
    for right in rng.binomial(samples, chances).tolist():
        for metric in pass_metrics(right, samples, [4]):
            low, high = metric.interval
            covered[metric.name] += low <= truth[metric.name] <= high
    for name, count in covered.items():
        assert 0.92 <= count / simulations <= 0.98, name  # 95 %, three standard errors of 0.9 % each way


def moment(a, b, k):
    """E[p^k] of a beta distribution."""
    return math.prod((a + i) / (a + b + i) for i in range(k))


def test_numbers_that_cannot_be_drawn_are_named():
    check_ks([1, 4], 4)
    with pytest.raises(ValueError, match="--k has 5; expected numbers from 1 to --samples=4"):
        check_ks([1, 5], 4)
    with pytest.raises(ValueError, match="--k has 0"):
        check_ks([0], 4)
    with pytest.raises(ValueError, match="--k has 2 twice"):
        check_ks([2, 2], 4)
