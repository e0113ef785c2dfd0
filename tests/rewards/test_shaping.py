import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.objectives import group_advantages
from ling_jax.rewards import shape

TERMS = st.floats(-5, 5, allow_nan=False)
OUTCOMES = st.sampled_from([0.0, 0.5, 0.95, 1.0])  # an environment may give parts of an outcome
GROUPS = st.lists(st.tuples(OUTCOMES, TERMS), min_size=2, max_size=16)


def test_where_some_answer_is_right_terms_count_for_all():
    np.testing.assert_allclose(shape([1, 1, 0, 0], [0.1, -0.3, -0.2, 0.4]), [1.1, 0.7, -0.2, 0])


@given(st.lists(TERMS, min_size=8, max_size=8))
def test_wrong_answers_alone_have_no_advantages(terms):
    rewards = shape(np.zeros(len(terms)), terms)
    assert not np.any(np.asarray(group_advantages(rewards[None].astype(np.float32))))


@given(GROUPS)
def test_a_right_answer_is_above_every_wrong_one(group):
    outcomes, terms = np.array(group).T
    rewards = shape(outcomes, terms)
    others, right = outcomes != 1, rewards[outcomes == 1]
    if right.size and others.any():
        assert right.min() > rewards[others].max() + 0.09 * (1 - outcomes[others].max())


@given(st.lists(st.floats(-0.9, 1), min_size=2, max_size=8))
def test_right_answers_alone_are_ordered_by_their_terms(terms):
    np.testing.assert_allclose(shape(np.ones(len(terms)), terms) - 1, terms, atol=1e-15)


def test_parts_of_an_outcome_are_no_shaping():
    """An environment may pay for a part of the way; without a right answer that alone counts."""
    assert shape([0.5, 0.25], [-0.3, 0.2]).tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("outcomes", "terms", "message"),
    [
        ([1.5], [0], r"outcomes\[0\] is 1.5; expected a finite number from 0 to 1"),
        ([1, 0], [0, float("nan")], r"terms\[1\] is nan; expected a finite number"),
        ([1], [0, 0], "outcomes has 1, terms has 2"),
    ],
)
def test_other_values_are_refused(outcomes, terms, message):
    with pytest.raises(ValueError, match=message):
        shape(outcomes, terms)
