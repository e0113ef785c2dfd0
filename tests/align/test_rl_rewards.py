"""The rewards of the stages, on answers written by hand."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.align.judges import RULES, case_of
from ling_jax.align.rewards import REWARDS, configured_reward
from ling_jax.align.rubrics import RULE_RUBRICS
from ling_jax.chat.end_tokens import end_ids
from ling_jax.chat.template import ChatTemplate
from ling_jax.engine import Event
from ling_jax.envs import environment
from ling_jax.objectives import group_advantages
from ling_jax.rl.episode import Episode, EpisodeRequest
from ling_jax.rl.harvest import ROUND_OFF
from ling_jax.rl.judge_config import JudgeConfig, Rubric
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Rewards
from ling_jax.rl.sessions import SessionResult, open_session
from ling_jax.rl.turns import append_generation, append_observation, append_result, pending_action
from tests.helpers.judge_server import Endpoint, Response, served
from tests.helpers.rl_run import small_config, tokenizer

READER = Reader(tokenizer(), ChatTemplate(), end_ids(tokenizer()), 2000)
RUBRICS = [rubric.name for rubric in RULE_RUBRICS]
DENSE = (Rubric(name="correct"), Rubric(name="dense", question="Is it dense?"))
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
    assert right == 1.0  # a perfect process costs nothing
    np.testing.assert_allclose(right - extra, 0.125 * (0.1 + 6 / 5 * (1 - 2 / 3)))  # one more, in count and in name
    np.testing.assert_allclose(guessed, 0.125 * (1 - 3 - 4))  # not solved, readable, and nothing of what was needed
    assert right - 0.13 < malformed < right and guessed <= cut < 0
    assert rewards.parts["superfluous_calls"].tolist() == [0, 1, 0, 0, 0]


def test_a_task_without_calls_needs_none():
    ((rewards,), _) = pay("agentic", [episode(SHORT), episode("A:7")])
    assert rewards.total.tolist() == [1.0, 0.0]


def test_preference_moves_weight_to_what_is_not_yet_good():
    """Where all are right, correctness is saturated and brevity decides."""
    group = [episode(SHORT), episode(LONG)]
    (rewards,), pace = pay("preference", group)
    assert rewards.total[0] > rewards.total[1] and list(rewards.parts) == RUBRICS
    assert rewards.parts["correct"].tolist() == [1, 1] and pace[0] == 1 and pace[-1] < 1
    _, later = pay("preference", [episode("A:7"), episode("A:8")], memory=pace)
    np.testing.assert_allclose(later[0], 0.9 * pace[0] + 0.1 * 0, rtol=1e-6)
    both, mean = pay("preference", group, [episode("A:7"), episode("A:8")])
    np.testing.assert_allclose(mean[0], 0.5)  # of the groups, each judged alone
    np.testing.assert_array_equal(both[0].total, rewards.total)


def test_an_answer_that_is_cut_off_does_not_end_cleanly():
    merits, defects, _ = RULES(RULE_RUBRICS, *case_of([episode(SHORT), episode(SHORT[:9], cut=True)], READER))
    ends, steps = RUBRICS.index("ends_cleanly"), RUBRICS.index("shows_steps")
    assert merits[:, ends].tolist() == [1, 0] and defects[:, ends].tolist() == [0, 1]
    assert merits[:, steps].tolist() == [1, 0]


DEMANDS = "Reply as JSON. Write exactly one sentence. Use at most 3 words. Do not mention rain. End with '}'."


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"a": 1}', 5),
        ('<think>It may rain. Or not, who knows</think>\n\n{"a": 1}', 5),
        ("<think>It may rain.", 2),  # an empty answer has at most 3 words and does not mention rain
        ("{rain. b}", 2),
    ],
)
def test_items_are_about_the_last_turn_without_reasoning_and_end_token(text, kept):
    task = dataclasses.replace(SUM, messages=[{"role": "user", "content": DEMANDS}])
    merits, _, _ = RULES([Rubric(name="items")], *case_of([episode(text, task=task)], READER))
    np.testing.assert_allclose(merits, [[kept / 5]], rtol=1e-6)


BUSY = Response(status=400, body="no such model")


@pytest.mark.parametrize("bad", [BUSY, Response("I would rather not.")])
def test_a_run_that_goes_on_asks_again_until_its_rewards_are_accepted(bad, tmp_path):
    group = [episode(SHORT), episode("A:7")]

    def paid(reply: Response, *, accepted=False, replay=False) -> tuple[Rewards, int]:
        """By a new process in the same workdir, and how many questions it asked."""
        with served(Endpoint(lambda prompt, attempt: reply)) as server:
            judge = JudgeConfig(kind="endpoint", model="judge-1", base_url=server.url, key_variable="", rubrics=DENSE)
            config = dataclasses.replace(small_config(tmp_path), judge=judge)
            reward = configured_reward(config, tmp_path, replay=replay)
            ((rewards,), _) = reward.pay([group], READER, None)
            if accepted:
                reward.accepted()
            return rewards, len(server.prompts)

    unjudged, _ = paid(bad)
    assert all(unjudged.errors)
    judged, asked = paid(Response("dense: merit 9 / defect 0"), accepted=True)
    assert asked == 2 and np.isfinite(judged.total).all()
    again, asked = paid(bad)
    assert asked == 0 and again.total.tolist() == judged.total.tolist()

    (tmp_path / "judgements.jsonl").unlink()
    unjudged, _ = paid(bad, accepted=True)
    for replay in (False, True):
        again, asked = paid(Response("dense: merit 9 / defect 0"), replay=replay)
        assert asked == 0 and again.errors == unjudged.errors and np.isnan(again.total).all()


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


LOOKUP = environment("lookup").make_task(5, 2)
CALLS = environment("lookup").solution(LOOKUP)
WRONG = ("A:7", "A:", "", "<think>A:7", "37" * 300, "c37+85=122;" * 4, "A:0 " + "abc" * 200)
GROUPS = st.lists(st.sampled_from([SHORT, LONG, "<think>" + LONG, *WRONG]), min_size=2, max_size=8)
LOOKUPS = st.lists(
    st.sampled_from([CALLS, (CALLS[0], *CALLS), CALLS[-1:], ("A:7",), (CALLS[0], "A:7"), ("<tool_call>get\n", "A:7")]),
    min_size=2,
    max_size=8,
)
COMPOSITE = [name for name in REWARDS if name != "outcome"]


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Of one group, as a row of 8, so that all sizes share a program."""
    padded = np.pad(rewards.astype(np.float32), (0, 8 - len(rewards)), constant_values=np.nan)
    return np.asarray(group_advantages(padded[None], np.isfinite(padded)[None]))[0, : len(rewards)]


def lookup(turns) -> Episode:
    return episode(*turns, task=LOOKUP, effort="high")


@pytest.mark.parametrize("name", COMPOSITE)
@given(st.lists(st.sampled_from(WRONG), min_size=2, max_size=8), st.integers(2, 8), st.booleans())
def test_where_nobody_is_right_there_is_no_advantage(name, texts, size, with_tools):
    """No length, format, redundancy, process or rubric term decides among wrong answers."""
    group = [episode(text, effort="high") for text in texts]
    if with_tools:
        group = [lookup([*CALLS[: i % 2], "A:7"]) for i in range(size)]
    ((rewards,), _) = pay(name, group)
    assert not np.any(advantages(rewards.total))


@pytest.mark.parametrize("name", COMPOSITE)
@given(
    st.one_of(
        GROUPS.map(lambda texts: [episode(t, effort="high") for t in texts]),
        LOOKUPS.map(lambda g: [lookup(turns) for turns in g]),
    )
)
def test_a_right_answer_is_worth_more_than_a_wrong_one(name, group):
    ((rewards,), _) = pay(name, group)
    right = np.array([e.outcome for e in group]) == 1
    if right.any() and not right.all():
        assert rewards.total[right].min() > rewards.total[~right].max()
