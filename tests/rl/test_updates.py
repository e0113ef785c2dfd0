"""The optimisation steps that are made of one batch."""

import dataclasses

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.engine.weights import serving_copy
from ling_jax.rl.harvest import share_without_spread
from ling_jax.rl.step import make_scorer
from ling_jax.rl.updates import Update, minibatches, summarised
from tests.helpers.golden_numbers import quick_jit
from tests.helpers.rl_batch import CONFIG, alone, random_answers
from tests.helpers.tiny import random_params


@given(groups=st.integers(0, 20), count=st.integers(1, 6), seed=st.integers(0, 99))
def test_each_group_is_used_once_in_steps_of_equal_size(groups, count, seed):
    found = minibatches(np.arange(groups), count, np.random.default_rng(seed))
    sizes = [len(part) for part in found]
    assert sorted(np.concatenate(found)) == list(range(groups))
    assert len(found) == max(1, min(count, groups)) and max(sizes) - min(sizes) <= 1
    again = minibatches(np.arange(groups), count, np.random.default_rng(seed))
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


def test_one_step_keeps_the_order_and_several_do_not():
    order = lambda count: [p.tolist() for p in minibatches(np.arange(12), count, np.random.default_rng(0))]  # noqa: E731
    assert order(1) == [list(range(12))]
    assert order(2)[0] != sorted(order(2)[0]) or order(2)[0] != list(range(0, 12, 2))


def test_metrics_of_several_steps_are_sums_of_counts_maxima_and_means():
    each = [
        {"loss": 1.0, "loss_tokens": 10, "mismatch/max": 0.1, "nonfinite": False},
        {"loss": 2.0, "loss_tokens": 20, "mismatch/max": 0.3, "nonfinite": True},
    ]
    updates = [Update([i], None, metrics) for i, metrics in enumerate(each)]
    assert summarised(updates) == {"loss": 1.5, "loss_tokens": 30, "mismatch/max": 0.3, "nonfinite": 1, "updates": 1}
    assert summarised(updates[:1]) == each[0] | {"updates": 1}


def test_groups_whose_answers_are_worth_the_same_are_counted():
    assert share_without_spread(np.array([[0.0, 0.0], [1.0, -1.0], [0.0, 0.0], [-0.5, 0.5]], np.float32)) == 0.5
    assert share_without_spread(np.zeros((0, 2), np.float32)) == 0


def test_the_reference_in_bfloat16_has_the_log_probs_of_its_master_weights():
    """Training computes in the dtypes of serving too, so half the memory costs nothing."""
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    params = jax.tree.map(np.asarray, random_params(config, dtype="float32", std=0.2))
    batch, score = alone(random_answers()), quick_jit(make_scorer(config))
    wanted, found = score(params, batch), score(serving_copy(params, config), batch)
    np.testing.assert_array_equal(found, wanted)
    assert np.asarray(wanted).any()
