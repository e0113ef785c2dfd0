import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.rewards.repetition import compression_ratio, repetition_reward


def test_repetition_reward_equals_the_oracle(golden):
    for case in json.loads((golden / "objectives/zlib_penalty.json").read_text()):
        assert (case["c0"], case["min_bytes"]) == (0.25, 512)
        # zlib builds differ by a few bytes.
        assert repetition_reward(case["text"]) == pytest.approx(case["expected"]["penalty"], abs=0.02), case["name"]
        if case["expected"]["ratio"] is not None:
            assert compression_ratio(case["text"]) == pytest.approx(case["expected"]["ratio"], abs=0.02), case["name"]


@given(st.text(max_size=50), st.integers(0, 60))
def test_repetition_reward_is_a_penalty_of_at_most_one(text, times):
    assert -1 <= repetition_reward(text * times) <= 0


def test_a_text_said_more_often_costs_more():
    text = "The quick brown fox jumps over the lazy dog, and nobody knows why it should do so at all. "
    rewards = [repetition_reward(text * times) for times in (6, 12, 24, 48)]
    assert rewards == sorted(rewards, reverse=True) and rewards[-1] < rewards[0]


def test_the_limit_is_in_bytes_not_characters():
    assert repetition_reward("a" * 511) == 0 and repetition_reward("a" * 512) < -0.8
    assert repetition_reward("好" * 171) < -0.5  # 513 bytes


def test_any_text_has_a_ratio_but_the_empty_one():
    assert compression_ratio("\ud800") > 1
    with pytest.raises(ValueError, match="the text is empty"):
        compression_ratio("")
