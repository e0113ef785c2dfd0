import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.rewards.redundancy import count_flagged, flag_repeats, redundancy_rewards
from ling_jax.rewards.sentences import split_sentences


def flags_of(text: str) -> list[bool]:
    words = [word.encode() for word in text.replace(" ", "| ").replace(".", "|.").split("|")]
    numbers = {word: i for i, word in enumerate(dict.fromkeys(words))}
    return flag_repeats([numbers[word] for word in words], split_sentences(words).ids).tolist()


def test_a_sentence_said_again_is_flagged_and_the_first_is_not():
    said = " So the sum of both sides is nine."
    assert flags_of(said + " We check it with another number." + said) == [False, False, True]


def test_a_shared_phrase_or_a_short_sentence_is_not_flagged():
    assert flags_of(" The sum of both sides is nine. The sum of both terms must be odd then.") == [False, False]
    assert flags_of(" Yes it is. Yes it is.") == [False, True]
    assert flags_of(" Yes. Yes.") == [False, False]


def test_a_long_sentence_with_one_word_changed_is_flagged():
    words = [f" w{i}" for i in range(30)]
    again = [*words[:-2], " other", words[-1]]
    assert flags_of("".join(words) + "." + "".join(again) + ".") == [False, True]


@given(st.lists(st.integers(0, 3), min_size=4, max_size=20), st.integers(2, 5))
def test_of_equal_sentences_all_but_the_first_are_flagged(sentence, times):
    ids = np.repeat(np.arange(times), len(sentence))
    flags = flag_repeats(sentence * times, ids)
    assert flags[1:].all() and not flags[0]
    assert count_flagged(flags, ids) == (times - 1) * len(sentence)


def test_tokens_of_no_sentence_are_not_counted():
    assert flag_repeats([1, 2, 3, 4, 1, 2, 3, 4], [-1] * 4 + [0] * 4).tolist() == [False]
    assert count_flagged([True, False], [-1, -1, 0, 0, 0, 1]) == 3
    assert count_flagged([], []) == 0
    with pytest.raises(ValueError, match="flags are of 1 sentences, sentence_ids go to 1"):
        count_flagged([True], [0, 1])


def test_penalty_is_the_share_of_tokens():
    np.testing.assert_allclose(redundancy_rewards([0, 5, 10, 0], [10, 10, 10, 0]), [0, -0.1, -0.2, 0])
    with pytest.raises(ValueError, match=r"flagged / lengths\[0\] is 1.1"):
        redundancy_rewards([11], [10])
