import numpy as np
import pytest

from ling_jax.objectives import tis_loss
from tests.helpers.objective_numbers import BOTH, close, objective, token_terms


@BOTH
def test_a_token_weighs_its_ratio_up_to_the_cap_and_that_is_a_constant(dtype):
    rng = np.random.default_rng(0)
    policy, old, behaviour = -rng.exponential(1.0, (3, 4, 9))
    advantages, mask = rng.normal(size=4), rng.random((4, 9)) < 0.8
    weight = np.minimum(np.exp(old - behaviour), 2)
    assert (weight == 2)[mask].any() and (weight < 2)[mask].any()
    ratio, row = np.exp(policy - old), advantages[:, None]
    clipped = np.where(row > 0, ratio > 1.2, ratio < 0.8)
    terms = np.where(mask, weight * np.minimum(ratio * row, np.clip(ratio, 0.8, 1.2) * row), 0)
    lengths = mask.sum(axis=1, keepdims=True)
    arrays = (policy, old, behaviour, advantages, mask)
    value, grad, metrics = objective(tis_loss, dtype, *arrays)
    close(value, (terms / lengths).sum() / 4, dtype)
    close(grad, np.where(mask & ~clipped, weight * ratio * row, 0) / lengths / 4, dtype)
    close(token_terms(tis_loss, dtype, *arrays), terms, dtype)
    close(metrics["truncated_fraction"], (weight == 2)[mask].mean(), dtype)


def test_behaviour_log_probs_are_asked_for():
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match="tis: behaviour_logps is missing"):
        tis_loss(x, x, None, np.zeros(2), x)
