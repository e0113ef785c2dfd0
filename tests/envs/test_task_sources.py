"""Which tasks a config means."""

import pytest

from ling_jax.envs import HELD_OUT_SEEDS
from ling_jax.envs.sources import TaskSource, check_tasks, distinct_tasks, held_out_tasks, task_of, tasks

SUMS = TaskSource(environment="running_sums", difficulties=(1, 2), count=3, seed=7)
DIGITS = TaskSource(environment="digit_sums", difficulties=(2,), count=2, seed=4)


def test_seeds_count_up_from_the_sources_own_and_difficulties_go_round():
    assert [(task.seed, task.difficulty) for task in tasks(SUMS)] == [(7, 1), (8, 2), (9, 1)]


def test_tasks_of_several_sources_are_numbered_through():
    found = [task_of([SUMS, DIGITS], number) for number in range(5)]
    assert found == [*tasks(SUMS), *tasks(DIGITS)]
    with pytest.raises(ValueError, match="task 5 was asked for; there are 5"):
        task_of([SUMS, DIGITS], 5)


def test_held_out_tasks_have_seeds_that_no_source_has():
    found = held_out_tasks("running_sums", (1, 2), 3)
    assert [(task.seed - HELD_OUT_SEEDS, task.difficulty) for task in found] == [(0, 1), (1, 2), (2, 1)]
    with pytest.raises(ValueError, match="make held-out tasks"):
        check_tasks(TaskSource(environment="running_sums", difficulties=(1,), count=2, seed=HELD_OUT_SEEDS - 1), "here")


def test_tasks_that_all_differ_are_counted_and_too_many_are_refused():
    found = distinct_tasks("lookup", 6, 50, seed=7)
    assert len({task.id for task in found}) == 50 and found[0].seed == 7
    with pytest.raises(ValueError, match=r"digit_names: .* makes 9 different tasks, and 10 were asked for"):
        distinct_tasks("tests.helpers.few_tasks:digit_names", 1, 10)
    assert len(distinct_tasks("tests.helpers.few_tasks:digit_names", 1, 9)) == 9
