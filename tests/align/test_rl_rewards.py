"""The rewards of the stages, on answers written by hand."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.align.preference import RUBRICS, judge
from ling_jax.align.rewards import REWARDS
from ling_jax.chat.end_tokens import end_ids
from ling_jax.chat.template import ChatTemplate
from ling_jax.engine import Event
from ling_jax.envs import environment
from ling_jax.rl.episode import Episode, EpisodeRequest
from ling_jax.rl.learner import ROUND_OFF
from ling_jax.rl.reader import Reader
from ling_jax.rl.sessions import SessionResult, open_session
from ling_jax.rl.turns import append_generation, append_observation, append_result, pending_action
from tests.helpers.rl_run import tokenizer

READER = Reader(tokenizer(), ChatTemplate(), end_ids(tokenizer()), 2000)
END = tokenizer().token_to_id("<|role_end|>")
SUM = dataclasses.replace(
    environment("running_sums").make_task(0, 2), hidden={"numbers": [37, 85, 12], "answer": "134"}
)
SHORT = "37+85=122;122+12=134;A:134"
LONG = "37+85=122;c37+85=122;122+12=134;A:134"


def episode(text: str, *more: str, task=SUM, effort=None, cut=False) -> Episode:
    """After these turns; `cut`: the last has no end."""
    (begun,) = READER.begin_all([EpisodeRequest(0, 0, task, seed=0, effort=effort)])
    with open_session(task) as act:
        for turn in (text, *more):
            tokens = tokenizer().encode(turn).ids + [END] * (not cut)
            reason = "length" if cut else "stop"
            append_generation(begun, Event(0, 0, tokens, (-1.0,) * len(tokens), 0, reason), READER)
            if begun.running and append_result(begun, SessionResult(0, act(pending_action(begun))), READER):
                append_observation(begun, [5, 6], 0, READER)
    return begun


def pay(name: str, *groups, memory=None):
    return REWARDS[name].pay(groups, READER, memory)


def test_evo_cot_adds_its_four_parts():
    """Right and short, right and long with a step said twice, wrong, right with a reasoning marker."""
    group = [episode(SHORT), episode(LONG), episode("A:7"), episode("<think>" + SHORT)]
    ((rewards,), memory) = pay("evo_cot", group)
    lengths = np.array([27, 38, 4, 28])
    assert [e.drawn for e in group] == lengths.tolist() and memory is None
    alpha, place = 0.2 * 3 / 4, 0.5 - (lengths - 4) / 34
    length = alpha * np.where([True, True, False, True], place, np.minimum(place, 0))
    redundancy = np.array([0, -0.2 * 11 / 38, 0, 0])  # the 11 tokens of c37+85=122;
    wanted = np.array([1, 1, 0, 0.5]) + length + redundancy
    np.testing.assert_allclose(rewards.total, wanted, atol=1e-9)
    np.testing.assert_allclose(rewards.parts["length"], length, atol=1e-9)
    np.testing.assert_allclose(rewards.parts["redundancy"], redundancy)


def test_agentic_pays_the_needed_calls_and_not_the_others():
    env = environment("lookup")
    task = env.make_task(5, 2)
    first, second, last = env.solution(task)
    group = [
        episode(first, second, last, task=task),
        episode(first, first, second, last, task=task),
        episode(last, task=task),
        episode(first, "<tool_call>get\n<arg_key>", second, last, task=task),
        episode(first, task=task, cut=True),
    ]
    ((rewards,), _) = pay("agentic", group)
    right, extra, guessed, malformed, cut = rewards.total
    assert right == 2.0  # outcome 1, and a perfect process is worth 4 quarters
    np.testing.assert_allclose(right - extra, 0.25 * (0.1 + 6 / 5 * (1 - 2 / 3)))  # one call more, in count and in name
    np.testing.assert_allclose(guessed, 0.25 * (1 - 3))  # readable, and nothing of what was needed
    assert right - 0.26 < malformed < right and guessed < cut + 0.5
    assert rewards.parts["superfluous_calls"].tolist() == [0, 1, 0, 0, 0]


def test_a_task_without_calls_needs_none():
    ((rewards,), _) = pay("agentic", [episode(SHORT), episode("A:7")])
    assert rewards.total.tolist() == [2.0, 1.0]


def test_preference_moves_weight_to_what_is_not_yet_good():
    """Where all are right, correctness is saturated and brevity decides."""
    group = [episode(SHORT), episode(LONG)]
    (rewards,), pace = pay("preference", group)
    assert rewards.total[0] > rewards.total[1] and rewards.parts.keys() == RUBRICS.keys()
    assert rewards.parts["correct"].tolist() == [1, 1] and pace[0] == 1 and pace[-1] < 1
    _, later = pay("preference", [episode("A:7"), episode("A:8")], memory=pace)
    np.testing.assert_allclose(later[0], 0.9 * pace[0] + 0.1 * 0, rtol=1e-6)
    both, mean = pay("preference", group, [episode("A:7"), episode("A:8")])
    np.testing.assert_allclose(mean[0], 0.5)  # of the groups, each judged alone
    np.testing.assert_array_equal(both[0].total, rewards.total)


def test_an_answer_that_is_cut_off_does_not_end_cleanly():
    merits, defects = judge([episode(SHORT), episode(SHORT[:9], cut=True)], READER)
    names = list(RUBRICS)
    ends, steps = names.index("ends_cleanly"), names.index("shows_steps")
    assert merits[:, ends].tolist() == [1, 0] and defects[:, ends].tolist() == [0, 1]
    assert merits[:, steps].tolist() == [1, 0]


def test_a_score_out_of_its_range_is_named():
    solved = episode(SHORT)
    solved.rewards = {"outcome": 1.5}
    with pytest.raises(ValueError, match=r"merits\[1, 0\] is 1.5; expected a finite number from 0 to 1"):
        pay("preference", [episode(SHORT), solved])


def test_adaptive_compares_answers_of_the_same_effort():
    group = [episode(text, effort=effort) for effort in ("high", "xhigh") for text in (SHORT, LONG)]
    ((rewards,), _) = pay("adaptive", group)
    np.testing.assert_allclose(rewards.total, [1.1, 0.9, 1.01, 0.99])
    assert len(group[0].trajectory.prompt_ids) < len(group[2].trajectory.prompt_ids), "the prompt asks for the effort"


@given(st.lists(st.sampled_from([SHORT, LONG, "A:7", "A:", "", "<think>A:134", "37" * 300]), min_size=1, max_size=8))
def test_every_reward_stays_in_its_range(texts):
    group = [episode(text, effort="high") for text in texts]
    for name, reward in REWARDS.items():
        ((rewards,), _) = reward.pay([group], READER, None)
        assert rewards.total.shape == (len(group),) and np.isfinite(rewards.total).all()
        # the focal reward is summed in float32
        assert reward.low - ROUND_OFF <= rewards.total.min() and rewards.total.max() <= reward.high + ROUND_OFF, name


@pytest.mark.parametrize("name", REWARDS)
def test_no_group_has_no_reward(name):
    assert REWARDS[name].pay([], READER, None) == ([], None)
