import json

import numpy as np
import pytest

from ling_jax.rewards.evo_cot import evo_cot_rewards, format_reward


def test_evo_cot_equals_the_oracle(golden):
    for case in json.loads((golden / "objectives/evo_cot.json").read_text()):
        texts, lengths, flagged = case["texts"], case["lengths"], case["flagged_tokens"]
        found = evo_cot_rewards(texts, lengths, case["correct"], flagged, redundancy_weight=case["lam"])
        names = {"acc": "accuracy", "alpha": "length_weight"}
        for name, expected in case["expected"].items():
            value = getattr(found, names.get(name, name))
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6, err_msg=f"{case['name']}: {name}")


def test_a_marker_costs_once_and_only_as_it_is_written():
    assert format_reward("<think>a</think><think>") == -0.5
    assert format_reward("so </think>") == -0.5
    assert format_reward("<Think> think <thinking>") == 0


def test_a_right_answer_beats_a_wrong_one_whatever_their_lengths():
    found = evo_cot_rewards(["", ""], [100_000, 1], [1, 0], [100_000, 0])
    assert found.total[0] > found.total[1]


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="texts has 1, lengths has 2, correct has 2, flagged has 2"):
        evo_cot_rewards([""], [1, 2], [1, 1], [0, 0])
