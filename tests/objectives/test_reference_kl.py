import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.objectives import reference_kl
from tests.helpers.objective_numbers import BOTH, LOGPS, close, evaluate


@BOTH
@pytest.mark.parametrize("aggregate", ["seq_mean", "token_mean"])
def test_it_is_the_mean_of_k3(dtype, aggregate):
    rng = np.random.default_rng(0)
    policy, reference = -rng.exponential(1.0, (2, 3, 7))
    mask = rng.random((3, 7)) < [[0.9], [0.5], [0.0]]
    d = reference - policy
    share = mask / (3 * np.maximum(mask.sum(axis=1, keepdims=True), 1) if aggregate == "seq_mean" else mask.sum())
    policy[~mask], reference[~mask] = np.inf, np.nan
    run = jax.value_and_grad(reference_kl, has_aux=True)
    (value, metrics), grad = evaluate(run, dtype, policy, reference, mask, coefficient=0.3, aggregate=aggregate)
    close(metrics["reference_kl"], (share * (np.exp(d) - 1 - d)).sum(), dtype)
    close(value, 0.3 * (share * (np.exp(d) - 1 - d)).sum(), dtype)
    close(grad, 0.3 * share * (1 - np.exp(d)), dtype)


def test_over_the_policys_tokens_it_estimates_the_divergence():
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    tokens = np.repeat(np.arange(3), [50, 30, 20])[None]
    run = lambda p, r, m: reference_kl(p, r, m, coefficient=1.0)[0]  # noqa: E731
    found = evaluate(run, "float64", np.log(policy)[tokens], np.log(reference)[tokens], np.ones((1, 100)))
    np.testing.assert_allclose(found, np.sum(policy * np.log(policy / reference)), rtol=1e-9)


RUN = jax.jit(jax.value_and_grad(lambda p, r: reference_kl(p, r, np.ones((1, 2)), coefficient=1.0)[0]))


@given(st.lists(LOGPS, min_size=4, max_size=4))
def test_it_is_finite_for_finite_input(logps):
    value, grad = RUN(*np.array(logps, np.float32).reshape(2, 1, 2))
    assert np.isfinite(value) and np.isfinite(grad).all()
    assert value >= -1e-6  # round-off of exp(d) - 1 - d near 0


def test_bad_input_is_named():
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match="reference_kl: reference_logps is missing"):
        reference_kl(x, None, x, coefficient=0.1)
    with pytest.raises(ValueError, match="reference_kl: aggregate is 'sum'"):
        reference_kl(x, x, x, coefficient=0.1, aggregate="sum")
