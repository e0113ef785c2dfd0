import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.objectives import group_advantages
from tests.helpers.objective_numbers import BOTH, close, evaluate, load


def normalised(rewards):
    """The formula for one group, in float64."""
    rewards = np.asarray(rewards, np.float64)
    return (rewards - rewards.mean()) / rewards.std()


@BOTH
@pytest.mark.parametrize("name", ["grpo", "gspo", "lpo"])
def test_advantages_are_the_expected(golden, dtype, name):
    """One group's rewards are equal up to one float32 ulp."""
    numbers = load(golden, name)
    found = evaluate(group_advantages, dtype, numbers["rewards"])
    close(found.reshape(-1), numbers["adv"].reshape(-1), dtype)


@given(seed=st.integers(0, 2**32 - 1))
def test_groups_by_id_equal_groups_by_row(seed):
    rng = np.random.default_rng(seed)
    rewards, valid = rng.normal(size=(3, 5)), rng.random((3, 5)) < 0.8
    by_row = evaluate(group_advantages, "float32", rewards, valid)
    order, names = rng.permutation(15), rng.permutation([-4, 7, 10**6])
    groups = np.repeat(names, 5)[order]
    by_id = evaluate(group_advantages, "float32", rewards.reshape(-1)[order], valid.reshape(-1)[order], groups=groups)
    np.testing.assert_allclose(by_id, by_row.reshape(-1)[order], rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 2**32 - 1))
def test_failed_rows_leave_the_statistics_and_get_zero(seed):
    rng = np.random.default_rng(seed)
    rewards, valid = rng.normal(size=(2, 6)), np.ones((2, 6), bool)
    valid[0, rng.permutation(6)[:3]] = False
    rewards[~valid] = rng.choice([np.nan, np.inf, -np.inf, 1e9])
    found = evaluate(group_advantages, "float32", rewards, valid)
    np.testing.assert_allclose(found[0, valid[0]], normalised(rewards[0, valid[0]]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], normalised(rewards[1]), rtol=1e-4, atol=1e-5)
    assert (found[~valid] == 0).all()


@given(reward=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))
def test_equal_rewards_of_any_size_have_none(reward):
    """The float32 mean of seven equal numbers is often not that number."""
    assert (evaluate(group_advantages, "float32", np.full((1, 7), reward)) == 0).all()


@given(shift=st.floats(-10, 10), scale=st.floats(0.1, 10))
def test_shift_and_scale_of_rewards_change_nothing(shift, scale):
    rewards = np.array([[0.0, 1.0, 1.0, -0.5]])
    found = evaluate(group_advantages, "float64", shift + scale * rewards)
    np.testing.assert_allclose(found[0], normalised(rewards[0]), rtol=1e-9, atol=1e-9)


def test_a_group_with_one_valid_row_or_none_has_none():
    valid = np.array([[True, False], [False, False]])
    assert (evaluate(group_advantages, "float32", np.array([[5.0, np.nan], [np.nan, 1.0]]), valid) == 0).all()
    assert group_advantages(np.zeros((0, 4))).shape == (0, 4)


def test_whole_number_rewards_are_taken_as_float32():
    found = group_advantages(np.array([[0, 1]], np.int32))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[-1, 1]])


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        (np.zeros(4), {}, r"rewards has shape \(4,\) with no groups; give rewards \[P, G\]"),
        (np.zeros((2, 2)), {"groups": np.zeros(4, int)}, r"rewards has shape \(2, 2\) with groups \(4,\)"),
        (np.zeros(4), {"groups": np.zeros(3, int)}, r"groups \(3,\)"),
        (np.zeros((2, 2)), {"valid": np.ones(4)}, r"valid has shape \(4,\); expected that of rewards, \(2, 2\)"),
    ],
)
def test_bad_input_is_named(rewards, options, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, **options)
