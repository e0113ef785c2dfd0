import numpy as np
import pytest

from ling_jax.objectives import icepop_loss
from tests.helpers.objective_numbers import BOTH, close, load, objective, token_terms


@BOTH
def test_value_gradient_and_mask_are_the_expected(golden, dtype):
    numbers = load(golden, "icepop")
    arrays = [numbers[name] for name in ("logp", "logp_old", "logp_infer", "adv", "loss_mask")]
    options = {name: float(numbers[key]) for name, key in (("alpha", "alpha"), ("beta", "beta"), ("clip", "eps"))}
    value, grad, metrics = objective(icepop_loss, dtype, *arrays, **options)
    close(value, numbers["J"], dtype)
    close(grad, numbers["grad"], dtype)
    np.testing.assert_array_equal(grad == 0, numbers["grad"] == 0)
    close(metrics["masked_fraction"], numbers["masked_fraction"], dtype)
    close(token_terms(icepop_loss, dtype, *arrays, **options), numbers["per_token"], dtype)


@BOTH
def test_tokens_in_the_band_keep_their_ratio_as_weight(golden, dtype):
    """With policy = old and advantage 1 a token's term is M itself."""
    numbers = load(golden, "icepop")
    old, behaviour, mask = (numbers[name] for name in ("logp_old", "logp_infer", "loss_mask"))
    bounds = dict(alpha=float(numbers["alpha"]), beta=float(numbers["beta"]))
    weights = token_terms(icepop_loss, dtype, old, old, behaviour, np.ones(len(old)), mask, **bounds)
    np.testing.assert_array_equal(weights != 0, numbers["keep"])
    close(weights[numbers["keep"]], numbers["ratio"][numbers["keep"]], dtype)


def test_the_band_includes_its_ends():
    old = np.log([[0.5, 0.5]])
    value = objective(icepop_loss, "float32", old, old, old, np.ones(1), np.ones((1, 2)), alpha=1.0, beta=1.0)[0]
    assert value == 1


def test_behaviour_log_probs_are_asked_for():
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"icepop: behaviour_logps is missing; it needs an array of shape \(2, 3\)"):
        icepop_loss(x, x, None, np.zeros(2), x)
