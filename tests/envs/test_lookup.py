"""Sums of numbers that only a tool knows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.chat.tool_calls import parse_either, render_call
from ling_jax.envs import parse_action
from ling_jax.envs.tools.lookup import DIFFICULTIES, NAMES, make_task, reset, solution, step

SEEDS = st.integers(0, 10_000)


def act(task, *turns):
    """The results of turns, one after the other."""
    state, results = reset(task, 0), []
    for turn in turns:
        state, result = step(state, parse_action(turn, task.tools))
        results.append(result)
    return results


def get(name):
    return render_call({"name": "get", "arguments": {"name": name}}, "xml")


def told(result):
    return [message["content"] for message in result.observation]


def test_the_documented_episode():
    task = make_task(3, 2)
    assert task.prompt == "?c+g="
    first, second, last = act(task, *solution(task))
    assert told(first) == ["5"] and told(second) == ["2"] and not first.rewards
    assert solution(task) == (get("c"), get("g"), "5+2=7;A:7")
    assert last.rewards == {"outcome": 1.0, "answer": 1.0, "sequence": 1.0, "superfluous_calls": 0.0}


@given(SEEDS, st.sampled_from(DIFFICULTIES))
def test_only_the_store_knows_the_numbers(seed, difficulty):
    task = make_task(seed, difficulty)
    assert [call["arguments"]["name"] for call in task.hidden["calls"]] == task.prompt[1:-1].split("+")
    assert len(task.hidden["calls"]) == difficulty and task.tools == ()
    assert not any(character.isdigit() for character in task.prompt)
    assert sorted(task.hidden["store"]) == sorted(NAMES) and len(NAMES) >= 2 * difficulty


@given(SEEDS, st.sampled_from(DIFFICULTIES), st.floats(0, 0.6))
def test_planted_calls_are_superfluous_and_do_no_harm(seed, difficulty, redundancy):
    task = make_task(seed, difficulty)
    *turns, last = solution(task, redundancy=redundancy, seed=seed)
    asked = [call["arguments"]["name"] for call in task.hidden["calls"]]
    made = [parse_either(turn).tool_calls[0]["arguments"]["name"] for turn in turns]
    rest = iter(made)
    assert all(name in rest for name in asked), "the calls that were asked for are made in order"
    assert last == solution(task)[-1]
    assert len(made) - len(asked) < task.max_turns - difficulty
    rewards = act(task, *turns, last)[-1].rewards
    assert rewards["outcome"] == 1 and rewards["superfluous_calls"] == len(made) - len(asked)


@pytest.mark.parametrize("redundancy", [0.25, 0.5])
def test_superfluous_calls_come_with_their_probability(redundancy):
    made = [make_task(seed, 1) for seed in range(800)]
    counts = [len(solution(task, redundancy=redundancy, seed=1)) - 2 for task in made]
    assert set(counts) == {0, 1, 2, 3}
    for count in (1, 2, 3):
        share, wanted = sum(found >= count for found in counts) / len(counts), redundancy**count
        assert share == pytest.approx(wanted, abs=4 * (wanted / len(counts)) ** 0.5)
    assert {len(solution(task, redundancy=redundancy, most=1)) for task in made} == {2, 3}
    assert solution(made[0], redundancy=0.5, seed=2) == solution(made[0], redundancy=0.5, seed=2)
    with pytest.raises(ValueError, match=r"redundancy is -0.1; expected a probability from 0 to below 1"):
        solution(made[0], redundancy=-0.1)


@pytest.mark.parametrize(
    ("turns", "answer", "sequence", "superfluous"),
    [
        (["c", "g", "5+2=8;A:8"], 0, 1, 0),
        (["g", "c", "5+2=7;A:7"], 1, 0, 0),
        (["c", "5+2=7;A:7"], 1, 0, 0),
        (["A:7"], 1, 0, 0),
        (["c", "c", "k", "g", "5+2=7;A:7"], 1, 1, 2),
        (["g", "c", "g", "A:7"], 1, 1, 1),
        (["c", "z", "g", "A:7"], 1, 1, 1),
        (["c", "g", ""], 0, 1, 0),
    ],
)
def test_the_answer_and_the_calls_count(turns, answer, sequence, superfluous):
    actions = [get(turn) if len(turn) == 1 else turn for turn in turns]
    last = act(make_task(3, 2), *actions)[-1]
    outcome = float(answer and sequence)
    assert last.terminated and last.rewards == {
        "outcome": outcome, "answer": answer, "sequence": sequence, "superfluous_calls": superfluous,
    }  # fmt: skip


def test_several_calls_in_one_turn_are_answered_in_order():
    first, last = act(make_task(3, 2), get("c") + "\n" + get("g"), "5+2=7;A:7")
    assert told(first) == ["5", "2"] and last.rewards["outcome"] == 1


@pytest.mark.parametrize(
    ("turn", "error"),
    [
        (get("z"), "get: no 'z'"),
        (get("c" * 999), "get: no 'c'"),
        ("<tool_call>gte\n<arg_key>name</arg_key>\n<arg_value>c</arg_value>\n</tool_call>", "unknown tool 'gte'"),
        ("<tool_call>get\n</tool_call>", "get: argument 'name' is missing"),
        ("<tool_call>get", "unclosed_tool_call"),
    ],
)
def test_a_bad_call_is_answered_and_the_episode_goes_on(turn, error):
    first, *_, last = act(make_task(3, 2), turn, *solution(make_task(3, 2)))
    assert error in first.error and told(first) == [first.error]
    assert not first.terminated and last.rewards["outcome"] == 1


def test_an_episode_without_an_end_is_cut_and_unsolved():
    task = make_task(3, 2)
    *_, last = act(task, *[get("c")] * task.max_turns)
    assert last.truncated and not last.terminated and last.rewards["outcome"] == 0
