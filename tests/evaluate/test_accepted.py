import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.evaluate.accepted import accepted_length


def drafts_of(tokens, right):
    """Drafts of depths that are right where `right` [T, N] says so."""
    ahead = [np.pad(tokens, (0, n + 2), constant_values=-1)[n + 2 :][: len(tokens)] for n in range(right.shape[1])]
    return np.where(right, np.stack(ahead, axis=1), -2)


def test_all_right_gives_all_and_all_wrong_gives_one():
    tokens = np.arange(14)
    for right, length in ((True, 4.0), (False, 1.0)):
        drafts = drafts_of(tokens, np.full((14, 3), right))
        assert accepted_length(tokens, drafts, start=2) == length


def test_drafts_after_a_wrong_one_are_not_accepted():
    tokens = np.arange(13)
    right = np.tile([True, False, True], (13, 1))
    assert accepted_length(tokens, drafts_of(tokens, right), start=1) == 2


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_accepted_length_is_between_one_and_all_and_grows_with_right_drafts(seed, depths):
    rng = np.random.default_rng(seed)
    tokens, right = rng.integers(0, 9, 40), rng.random((40, depths)) < 0.5
    length = accepted_length(tokens, drafts_of(tokens, right), start=1)
    assert 1 <= length <= depths + 1


def test_a_text_without_room_for_drafts_is_an_error():
    with pytest.raises(ValueError, match="a text of 4 tokens from 2 on has no room for 3 drafts"):
        accepted_length(np.arange(4), np.zeros((4, 3)), start=2)
