"""Requests for the tools of many toolkits."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ling_jax.chat.tool_calls import render_call
from ling_jax.envs import parse_action
from ling_jax.envs.tools import policy
from ling_jax.envs.tools.catalogue import KITS, TOOLS
from ling_jax.envs.tools.episode import state_hash
from ling_jax.envs.tools.plan import after
from ling_jax.envs.tools.toolkits import DIFFICULTIES, make_task, reset, solution, step

TASKS = st.builds(make_task, st.integers(0, 10_000), st.sampled_from(DIFFICULTIES))


def act(task, *turns):
    """The last result of turns."""
    state, result = reset(task, 0), None
    for turn in turns:
        state, result = step(state, parse_action(turn, task.tools))
    return result


def xml(*calls):
    return "\n".join(render_call(call, "xml") for call in calls)


def first_task(difficulty, fits):
    return next(task for task in (make_task(seed, difficulty) for seed in range(500)) if fits(task))


def changing(task):
    return [call for call in task.hidden["calls"] if TOOLS[call["name"]][1].changes]


@given(TASKS)
def test_the_reference_reaches_the_goal_and_difficulty_is_what_there_is_to_do(task):
    assert state_hash(after(task.hidden["world"], task.hidden["calls"])) == task.hidden["goal"]
    refused = task.hidden["wishes"][0]["answer"].split(",").count("cannot")
    assert len(task.hidden["calls"]) + refused == task.difficulty
    offered = {schema["function"]["name"] for schema in task.tools} or {"see", "add", "take"}
    assert {call["name"] for call in task.hidden["calls"]} <= offered == set(task.hidden["offered"])
    assert act(task, *solution(task)).rewards == {
        "outcome": 1.0, "state": 1.0, "sequence": 1.0, "answers": 1.0, "superfluous_calls": 0.0,
    }  # fmt: skip


@given(TASKS)
def test_no_answer_stands_in_the_prompt(task):
    words = task.prompt.replace(".", " ").replace(",", " ").replace("?", " ").replace(":", " ").split()
    answers = task.hidden["wishes"][0]["answer"].split(",")
    assert not set(answers) - {"done", "cannot"} & set(words)
    assert not any(answer in words for answer in answers if answer not in ("done", "cannot"))


def test_harder_tasks_have_more_toolkits_and_more_tools_of_no_use():
    def kits(task):
        return {TOOLS[name][0] for name in task.hidden["offered"]}

    easy, hard = ([make_task(seed, difficulty) for seed in range(30)] for difficulty in (2, 12))
    assert max(len(kits(task)) for task in easy) < min(len(kits(task)) for task in hard)
    for task in hard:
        used = {TOOLS[call["name"]][0] for call in task.hidden["calls"]}
        assert len(kits(task) - used) >= 1 and len(task.hidden["offered"]) > 20


def test_all_calls_may_stand_in_one_turn_where_none_needs_the_answer_of_another():
    task = first_task(6, lambda task: len(changing(task)) == 6 == len(solution(task)) - 1)
    *_, last = solution(task)
    assert act(task, xml(*task.hidden["calls"]), last).rewards["outcome"] == 1


def test_calls_about_different_things_may_be_made_in_any_order_and_those_about_one_thing_not():
    free = first_task(2, lambda task: len(changing(task)) == 2 and not is_tied(task))
    first, second = changing(free)
    assert act(free, xml(second, first), solution(free)[-1]).rewards["outcome"] == 1
    tied = first_task(2, is_tied)
    first, second = changing(tied)
    rewards = act(tied, xml(second, first), solution(tied)[-1]).rewards
    assert rewards["outcome"] == rewards["sequence"] == 0


def is_tied(task):
    """Whether two calls are about one thing."""
    calls = changing(task)
    kits = {TOOLS[call["name"]][0] for call in calls}
    return len(calls) == 2 and len(kits) == 1 and bool(set.intersection(*(things(call) for call in calls)))


def things(call):
    return set(policy.things(KITS[TOOLS[call["name"]][0]], call))


@pytest.mark.parametrize("missing", range(2))
def test_a_missing_call_is_wrong(missing):
    task = first_task(2, lambda task: len(changing(task)) == 2)
    calls = [call for i, call in enumerate(task.hidden["calls"]) if i != missing]
    assert act(task, xml(*calls), solution(task)[-1]).rewards["outcome"] == 0


def test_a_change_that_nobody_asked_for_is_wrong_though_it_is_undone():
    task = first_task(1, lambda task: changing(task) and changing(task)[0]["name"] == "add")
    name = next(iter(task.hidden["world"]["counters"]))
    there, back = ({"name": tool, "arguments": {"name": name, "count": 3}} for tool in ("add", "take"))
    rewards = act(task, xml(there, back), *solution(task)).rewards
    assert (rewards["state"], rewards["sequence"], rewards["outcome"]) == (1, 0, 0)
    assert rewards["superfluous_calls"] == 2


def test_reading_more_is_free_and_counted():
    task = first_task(1, changing)
    look = {"name": "see", "arguments": {"name": next(iter(task.hidden["world"]["counters"]))}}
    rewards = act(task, xml(look), *solution(task)).rewards
    assert (rewards["outcome"], rewards["superfluous_calls"]) == (1, 1)


def test_what_no_tool_does_is_to_be_said():
    task = first_task(1, lambda task: not task.hidden["calls"])
    assert act(task, "A:cannot").rewards["outcome"] == 1
    assert act(task, "A:done").rewards["outcome"] == act(task, "cannot").rewards["outcome"] == 0


def test_an_answer_is_exact_and_a_list_of_guesses_is_none():
    task = first_task(1, lambda task: task.hidden["wishes"][0]["answer"].isdigit())
    *calls, last = solution(task)
    assert act(task, *calls, f"The number: {last} ").rewards["outcome"] == 1
    guesses = "A:" + ",".join(str(number) for number in range(100))
    assert act(task, *calls, guesses).rewards["outcome"] == act(task, *calls, last + "0").rewards["outcome"] == 0


@given(TASKS, st.data())
def test_a_refused_call_leaves_the_world_as_it_is(task, data):
    state = reset(task, 0)
    name = data.draw(st.sampled_from(task.hidden["offered"]))
    call = {"name": name, "arguments": {}}
    after_call, result = step(state, parse_action(render_call(call, "json"), task.tools))
    assert "is missing" in result.error and state_hash(after_call.episode.world) == state_hash(state.episode.world)
    assert json.loads(result.observation[0]["content"]) == {"error": result.error}


def test_a_tool_that_is_not_offered_is_unknown():
    task = dataclasses.replace(make_task(0, 1), tools=())
    call = {"name": "wallet_see", "arguments": {"wallet": "ana"}}
    _, result = step(reset(task, 0), parse_action(xml(call)))
    assert "unknown tool 'wallet_see'" in result.error
