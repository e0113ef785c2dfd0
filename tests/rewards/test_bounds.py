import numpy as np
import pytest

from ling_jax.rewards.bounds import check_reward, check_same_length


def test_a_reward_in_range_passes_as_float64():
    found = check_reward(np.array([[0, 1], [0.5, 0.25]], np.float32), 0, 1, "score")
    assert found.dtype == np.float64 and found.tolist() == [[0, 1], [0.5, 0.25]]
    assert check_reward(-3, -3, 4, "total") == -3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1.0001, -0.1])
def test_a_reward_out_of_range_or_not_finite_is_refused_by_name(bad):
    with pytest.raises(ValueError, match=r"^score is .*; expected a finite number from 0 to 1$"):
        check_reward(bad, 0, 1, "score")
    with pytest.raises(ValueError, match=r"^score\[1, 0\] is .* \(2 entries are so\)$"):
        check_reward([[0, 1], [bad, bad]], 0, 1, "score")


def test_infinity_is_refused_even_where_the_range_has_no_end():
    with pytest.raises(ValueError, match="is inf"):
        check_reward(np.inf, 0, np.inf, "length")


def test_lists_of_different_lengths_are_named():
    assert check_same_length(texts=["a"], lengths=[1]) == 1
    with pytest.raises(ValueError, match="texts has 1, lengths has 2"):
        check_same_length(texts=["a"], lengths=[1, 2])
