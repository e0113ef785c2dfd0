import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.rewards.length import effort_rewards, length_rewards, length_weight

GROUPS = st.lists(st.tuples(st.integers(0, 100_000), st.booleans()), min_size=1, max_size=16)


def test_effort_rewards_equal_the_oracle(golden):
    for case in json.loads((golden / "objectives/thinking_effort.json").read_text()):
        found = effort_rewards(case["lengths"], case["correct"], case["effort"], weights=case["alpha"])
        np.testing.assert_allclose(found, case["expected"], rtol=0, atol=1e-6)


@given(GROUPS)
def test_length_reward_is_in_range_and_a_wrong_answer_earns_none(group):
    lengths, correct = zip(*group, strict=True)
    rewards = length_rewards(lengths, correct)
    assert np.all((rewards >= -0.5) & (rewards <= 0.5))
    assert np.all(rewards[~np.array(correct)] <= 0)


@given(GROUPS)
def test_length_reward_falls_with_length_among_equals(group):
    lengths, correct = zip(*group, strict=True)
    rewards = length_rewards(lengths, correct)
    for right in (True, False):
        same = np.flatnonzero(np.array(correct) == right)
        in_order = same[np.argsort(np.array(lengths)[same], kind="stable")]
        assert np.all(np.diff(rewards[in_order]) <= 0)


@given(GROUPS, st.randoms(use_true_random=False))
def test_length_reward_does_not_depend_on_order(group, random):
    order = random.sample(range(len(group)), len(group))
    rewards = length_rewards(*zip(*group, strict=True))
    shuffled = length_rewards(*zip(*[group[i] for i in order], strict=True))
    np.testing.assert_array_equal(shuffled, rewards[order])


@given(st.lists(st.booleans(), max_size=16))
def test_brevity_weighs_more_where_more_are_right_and_stays_below_accuracy(correct):
    weight = length_weight(correct)
    assert 0.02 <= weight <= 0.2
    assert length_weight([*correct, True]) >= weight
    assert weight * 0.5 * 2 < 1  # the widest gap between two answers of a group


def test_an_answer_without_a_verdict_is_refused_not_wrong():
    for verdict in (None, float("nan"), 0.5, "right"):
        with pytest.raises(ValueError, match=r"correct\[1\] is .*leave out answers without a verdict"):
            length_rewards([1, 2], [1, verdict])


def test_malformed_groups_are_named():
    with pytest.raises(ValueError, match=r"lengths\[0\] is nan"):
        length_rewards([float("nan"), 2], [1, 1])
    with pytest.raises(ValueError, match=r"lengths has 1, correct has 2"):
        length_rewards([1], [1, 1])
    with pytest.raises(ValueError, match=r"efforts\[1\] is 'low'; expected one of high, xhigh"):
        effort_rewards([1, 2], [1, 1], ["high", "low"])


def test_a_group_may_be_empty():
    assert length_rewards([], []).shape == (0,) and length_weight([]) == 0.02
