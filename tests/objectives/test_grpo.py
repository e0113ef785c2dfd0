import numpy as np
import pytest

from ling_jax.objectives import grpo_loss
from tests.helpers.objective_numbers import BOTH, close, load, objective, token_terms


def check(numbers, case, dtype, advantages, mask, **options):
    arrays = (numbers["logp"], numbers["logp_old"], None, advantages, mask)
    value, grad, _ = objective(grpo_loss, dtype, *arrays, **options)
    close(value, numbers[f"J.{case}"], dtype)
    close(grad, numbers[f"grad.{case}"], dtype)
    np.testing.assert_array_equal(grad == 0, numbers[f"grad.{case}"] == 0)
    close(token_terms(grpo_loss, dtype, *arrays, **options), numbers[f"per_token.{case}"], dtype)


@BOTH
@pytest.mark.parametrize("clip", ["sym", "asym"])
@pytest.mark.parametrize("aggregate", ["seq_mean", "token_mean"])
@pytest.mark.parametrize("mask", ["loss", "response"])
def test_value_and_gradient_are_the_expected(golden, dtype, mask, aggregate, clip):
    numbers = load(golden, "grpo")
    high = numbers["eps"] if clip == "sym" else numbers["eps_hi_asym"]
    options = dict(clip_low=float(numbers["eps"]), clip_high=float(high), aggregate=aggregate)
    case = f"grpo.{mask}.{aggregate}.{clip}"
    check(numbers, case, dtype, numbers["adv"].reshape(-1), numbers[f"{mask}_mask"], **options)


@BOTH
@pytest.mark.parametrize("mask", ["loss", "response"])
def test_advantages_of_tokens_make_it_ppo(golden, dtype, mask):
    numbers, options = load(golden, "grpo"), dict(aggregate="token_mean")
    check(numbers, f"ppo.{mask}", dtype, numbers["adv_token"], numbers[f"{mask}_mask"], **options)


def test_at_the_edge_of_the_clip_the_gradient_is_whole():
    """Twice as likely as before, clipped from 2 on: r A with its gradient, and not half of it."""
    old, mask = np.log([[0.25]]), np.ones((1, 1))
    value, grad, metrics = objective(grpo_loss, "float64", np.log([[0.5]]), old, None, np.ones(1), mask, clip_high=1.0)
    assert (value, metrics["clip_fraction"]) == (2, 0) and grad == 2


def test_bad_input_is_named():
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match="grpo: aggregate is 'mean'; expected one of seq_mean, token_mean"):
        grpo_loss(x, x, None, np.zeros(2), x, aggregate="mean")
    with pytest.raises(ValueError, match=r"grpo: advantages has shape \(3, 2\); policy_logps asks for \(2, 3\)"):
        grpo_loss(x, x, None, np.zeros((3, 2)), x)
