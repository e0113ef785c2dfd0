import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.objectives import grpo_loss, kpop_loss
from ling_jax.objectives.metrics import masked_quantile
from tests.helpers.objective_numbers import evaluate, objective


@given(seed=st.integers(0, 2**32 - 1), level=st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.7, 0.99, 1.0]))
def test_a_masked_quantile_is_that_of_the_values_under_the_mask(seed, level):
    rng = np.random.default_rng(seed)
    values, mask = rng.normal(size=(4, 5)).astype(np.float32), rng.random((4, 5)) < rng.random()
    wanted = np.quantile(values[mask], level, method="inverted_cdf") if mask.any() else 0
    assert evaluate(masked_quantile, "float32", values, mask, np.float64(level)) == np.float32(wanted)


def test_metrics_count_loss_tokens_only():
    """Ten tokens, two without loss: one of eight is clipped, none of the garbage is seen."""
    old, ratio = np.full((1, 10), -2.0), np.array([[1.0, 1.1, 0.9, 1.0, 1.0, 1.5, 1.0, 0.5, 1.0, 1.0]])
    mask = np.arange(10)[None] < 8
    policy, behaviour, entropies = old + np.log(ratio), old - 0.25, np.full((1, 10), 0.5)
    behaviour[0, 0] -= 0.5
    for x in (policy, behaviour, entropies):
        x[~mask] = np.nan
    metrics = objective(grpo_loss, "float32", policy, old, behaviour, np.ones(1), mask, entropies=entropies)[2]
    wanted = {"clip_fraction": 1 / 8, "ratio/0.01": 0.5, "ratio/0.5": 1.0, "ratio/0.99": 1.5}
    wanted |= {"mismatch/mean": 0.25 + 0.5 / 8, "mismatch/max": 0.75, "entropy": 0.5}
    assert metrics.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)


def test_masked_fractions_are_by_the_behaviour_policys_probability():
    behaviour = np.array([[0.05, 0.09, 0.3, 0.5, 0.6, 0.95, 0.995, 1.0]])
    old = np.array([[0.05, 0.001, 0.9, 0.5, 0.6, 0.2, 0.995, 0.5]])
    logps = np.log(old), np.log(behaviour)
    metrics = objective(kpop_loss, "float32", logps[0], *logps, np.ones(1), np.ones((1, 8)), phi=0.1)[2]
    found = {name.split("/")[1]: float(x) for name, x in metrics.items() if name.startswith("masked_fraction/")}
    assert found == {"0-0.1": 0.5, "0.1-0.5": 1.0, "0.5-0.9": 0.0, "0.9-0.99": 1.0, "0.99-1": 0.5}
    assert metrics["masked_fraction"] == 0.5


def test_metrics_of_missing_inputs_are_not_reported():
    x = np.zeros((2, 3))
    metrics = objective(grpo_loss, "float32", x, x, None, np.zeros(2), np.ones((2, 3)))[2]
    assert metrics.keys() == {"clip_fraction", "ratio/0.01", "ratio/0.5", "ratio/0.99"}


def test_entropies_of_another_shape_are_named():
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"grpo: entropies has shape \(2,\)"):
        grpo_loss(x, x, None, np.zeros(2), x, entropies=np.zeros(2))
