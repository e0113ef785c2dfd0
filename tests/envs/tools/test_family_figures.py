"""A thousand tasks of each family: what solves them, how they differ, how fast they are made and judged."""

import json

import pytest

from ling_jax.envs.sources import distinct_tasks
from tests.helpers.survey import check, survey

FAMILIES = ("toolkits", "service", "safety")


def steps(task):
    """Chances to slip: of each call its tool and its arguments, of each other turn what it says."""
    calls = sum(1 + len(call["arguments"]) for call in task.hidden["calls"])
    return calls + sum(turn["say"].count(",") + 1 for turn in task.hidden["turns"] if "say" in turn)


def guess(rng, task):
    return rng.choice(["A:done", "A:0", "confirm?"])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_thousand_tasks(name):
    rows = survey(name, 1000, steps, guess)
    check(rows)
    assert all(row.distinct > 0.98 * row.tasks for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_with_schemas_are_practically_endless_and_those_of_the_smallest_tasks_are_many(name):
    smallest, others = (
        {json.dumps(task.messages) for task in distinct_tasks(name, difficulty, 1000)} for difficulty in (1, 2)
    )
    print(f"\n{name}: of 1000 tasks {len(smallest)} prompts at difficulty 1, {len(others)} at difficulty 2")
    assert len(smallest) > 400 and len(others) > 990
