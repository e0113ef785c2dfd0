import jax
import numpy as np
import pytest

from ling_jax.objectives import gspo_loss
from ling_jax.objectives.gspo import sequence_ratio
from ling_jax.objectives.tokens import loss_tokens
from tests.helpers.objective_numbers import BOTH, close, evaluate, load, objective


@BOTH
def test_value_gradient_and_ratios_are_the_expected(golden, dtype):
    numbers = load(golden, "gspo")
    advantages, mask = numbers["adv"].reshape(-1), numbers["loss_mask"]
    options = dict(clip_low=float(numbers["eps_lo"]), clip_high=float(numbers["eps_hi"]))
    arrays = (numbers["logp"], numbers["logp_old"], advantages, mask)

    def loss(policy, old, advantages, mask):
        return gspo_loss(policy, old, None, advantages, mask, **options)

    value, grad, _ = objective(loss, dtype, *arrays)
    close(value, numbers["J"], dtype)
    close(grad, numbers["grad"], dtype)
    np.testing.assert_array_equal(grad == 0, numbers["grad"] == 0)
    rows = jax.vmap(lambda *row: -loss(*(x[None] for x in row))[0])
    close(evaluate(rows, dtype, *arrays), numbers["per_seq"], dtype)
    ratios = evaluate(lambda p, o, a, m: sequence_ratio(loss_tokens("gspo", p, o, None, a, m)), dtype, *arrays)
    close(ratios, numbers["seq_ratio"], dtype)


def test_advantages_of_tokens_are_refused():
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"gspo: advantages has shape \(2, 3\); policy_logps asks for \(2,\)"):
        gspo_loss(x, x, None, x, x)
