"""Solutions of toolkits, service and safety as conversations to learn from and to distil."""

import pytest

from ling_jax.align.records import ChatSource, check_source, records
from ling_jax.align.shortest_correct import measured, pick, prune
from ling_jax.chat.template import ChatTemplate, check_messages
from ling_jax.chat.tool_calls import parse_either, render_call
from ling_jax.envs import environment
from ling_jax.envs.sources import TaskSource, check_tasks, tasks
from tests.align.test_shortest_correct import STUDENT, right
from tests.align.test_tool_rollouts import learnt, turns_of

FAMILIES = ("toolkits", "service", "safety")


@pytest.mark.parametrize("name", FAMILIES)
def test_solutions_are_conversations_whose_turns_are_learnt(name, tmp_path):
    source = ChatSource(environment=name, difficulties=(1, 3), count=4, seed=2)
    check_source(source, "sources[0]")
    made = list(records(source))
    assert len(made) == 4
    for (where, record), task in zip(made, tasks(source.tasks), strict=True):
        check_messages(record["messages"], where)
        (folder := tmp_path / str(task.seed)).mkdir()
        tokens, trained = learnt(record, folder, ChatTemplate())
        said = [turn.removesuffix("<|role_end|>") for turn in turns_of(tokens, trained)]
        assert said == list(environment(name).solution(task)), "the policy's turns, and nothing that it read"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_shortest_right_answer_is_distilled(name):
    """Of two answers to each of three tasks, one of which makes a call too many and talks."""
    queries = list(tasks(TaskSource(environment=name, difficulties=(1,), count=3)))
    answers = []
    for task in queries:
        *turns, last = environment(name).solution(task)
        call = render_call({"name": task.hidden["offered"][0], "arguments": {}}, "xml")
        answers += [right(task, call, *turns, f"That is it. {last}"), right(task, *turns, last)]
    learnt_answers = prune(pick(measured(answers, STUDENT), floor_percentile=0), STUDENT)
    assert [answer.task for answer in learnt_answers] == queries
    for answer in learnt_answers:
        assert answer.turns == list(environment(name).solution(answer.task))
        assert not any(parse_either(turn, answer.task.tools).errors for turn in answer.turns)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_difficulty_out_of_range_is_refused_by_its_bounds(name):
    bounds = environment(name).DIFFICULTIES
    source = TaskSource(environment=name, difficulties=(bounds[-1] + 1,), count=3)
    with pytest.raises(ValueError, match=rf"tasks\[0\].difficulties is .*; {name} has 1 to {bounds[-1]}"):
        check_tasks(source, "tasks[0]")
