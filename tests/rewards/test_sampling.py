import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.rewards.sampling import NEVER, observe, sampling_probabilities, sampling_weights, unseen


def test_weights_equal_the_oracle(golden):
    case = json.loads((golden / "objectives/dpr.json").read_text())
    rates = unseen(len(case["history"]))
    for task, history in enumerate(case["history"]):
        rates = observe(rates, [task] * len(history), history, step=1)
    first = [NEVER if step is None else step for step in case["first_solve_step"]]
    rates = rates.replace(first_solved=np.array(first))
    np.testing.assert_allclose(rates.estimate, case["p_hat"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(sampling_weights(rates, case["total_steps"]), case["weight"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(sampling_probabilities(rates, case["total_steps"]), case["prob"], rtol=0, atol=1e-9)


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1)), max_size=30))
def test_every_task_can_be_drawn_and_probabilities_sum_to_one(observations):
    rates = unseen(5)
    for step, (task, rate) in enumerate(observations):
        rates = observe(rates, [task], [rate], step)
    assert np.all((rates.estimate >= 0) & (rates.estimate <= 1))
    probabilities = sampling_probabilities(rates, 100)
    assert np.all(probabilities > 0) and np.isclose(probabilities.sum(), 1)


def test_the_first_solve_is_kept_and_the_old_state_too():
    before = unseen(2)
    after = observe(observe(observe(before, [0, 1], [0.0, 0.0], 5), [0], [0.25], 7), [0], [1.0], 9)
    assert after.first_solved.tolist() == [7, NEVER] and after.seen.tolist() == [3, 1]
    assert before.first_solved.tolist() == [NEVER, NEVER] and before.estimate.tolist() == [0.5, 0.5]


def test_uncertain_tasks_are_drawn_most_and_early_solved_ones_least():
    rates = observe(unseen(4), [0, 1, 2], [0.5, 0.0, 1.0], step=1)
    weights = sampling_weights(rates, total_steps=100)
    assert weights[0] == weights[3] > weights[1] > weights[2]


def test_the_state_is_a_tree_that_can_be_saved():
    assert len(jax.tree.leaves(unseen(3))) == 3


def test_what_is_no_pass_rate_or_task_is_refused():
    with pytest.raises(ValueError, match=r"pass_rates\[0\] is nan"):
        observe(unseen(1), [0], [float("nan")], 0)
    with pytest.raises(ValueError, match="task -1 is unknown; expected 0 to 1"):
        observe(unseen(2), [-1], [0.5], 0)
