"""The family of coding tasks as a whole: a thousand of them, and what solvers of several kinds make of them."""

import collections
import concurrent.futures
import itertools
import time

import pytest

from ling_jax.envs import HELD_OUT_SEEDS, environment, is_held_out
from tests.helpers.coding_play import rewards_of

NAMES = ("functions", "repositories")
TASKS = 1000  # of both environments and all difficulties; every eighth is held out
THREADS = 4
ERROR_RATE, NOISY = 0.15, 40  # of the noisy solver: for each line or mistake; tasks of a difficulty


def family():
    """So many tasks, training and held-out ones."""
    kinds = [(name, difficulty) for name in NAMES for difficulty in environment(name).DIFFICULTIES]
    for number, (name, difficulty) in zip(range(TASKS), itertools.cycle(kinds), strict=False):
        seed = number + (HELD_OUT_SEEDS if number % 8 == 0 else 0)
        yield environment(name).make_task(seed, difficulty)


@pytest.mark.slow
def test_a_thousand_tasks_are_made_in_less_than_a_minute_and_differ():
    begun = time.monotonic()
    tasks = list(family())
    seconds = time.monotonic() - begun
    assert seconds < 60
    distinct = {task.id for task in tasks}
    print(f"\n{len(distinct)} distinct of {len(tasks)} tasks, made in {seconds:.1f} s")
    assert len(distinct) >= 0.98 * len(tasks)
    for task in tasks[::7]:
        again = environment(task.environment).make_task(task.seed, task.difficulty)
        assert again.content() == task.content()


def test_what_is_held_out_is_so_by_content():
    tasks = list(family())
    sides = {task.prompt: {is_held_out(task)} for task in tasks}
    for task in tasks:
        sides[task.prompt].add(task.seed >= HELD_OUT_SEEDS)
    assert all(len(side) == 1 for side in sides.values()) and sum(map(is_held_out, tasks)) == TASKS // 8


@pytest.mark.slow
def test_the_reference_solves_a_thousand_tasks_and_doing_nothing_and_copying_none():
    solved, wrong = collections.Counter(), []
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        for task, found in threads.map(_played, family()):
            for policy, rewards in found.items():
                solved[task.environment, policy] += rewards["outcome"]
                if rewards["tests"] != _share_passing(task, policy, rewards) or rewards["suspicious"]:
                    wrong.append((task.environment, task.seed, task.difficulty, policy, rewards))
    print("\n" + "\n".join(f"{name} {policy}: {count:.0f} solved" for (name, policy), count in solved.items()))
    assert not wrong
    assert sum(solved[name, "solution"] for name in NAMES) == TASKS
    for name in NAMES:
        assert solved[name, "null_solution"] == solved[name, "copy_solution"] == 0


def _played(task):
    env = environment(task.environment)
    policies = (env.solution, env.null_solution, env.copy_solution)
    return task, {policy.__name__: rewards_of(task, policy(task)) for policy in policies}


def _share_passing(task, policy, rewards):
    """The share of the tests that should pass: of an unmended project, all but those that its mistakes break."""
    if policy == "solution":
        return 1.0
    if task.environment == "functions":
        return rewards["tests"]  # an answer that is no function has none, but nothing is promised
    passing = len(task.hidden["pass_to_pass"])
    return passing / (passing + len(task.hidden["fail_to_pass"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_solver_that_errs_solves_the_less_the_harder_a_task_is(name):
    env, shares = environment(name), []
    for difficulty in env.DIFFICULTIES:
        tasks = [env.make_task(seed, difficulty) for seed in range(NOISY)]
        outcomes = [rewards_of(task, env.solution(task, error_rate=ERROR_RATE))["outcome"] for task in tasks]
        shares.append(sum(outcomes) / len(outcomes))
    print(f"\n{name} at an error rate of {ERROR_RATE}: " + ", ".join(f"{share:.2f}" for share in shares))
    assert shares[0] > shares[-1] + 0.15 and sum(shares[:3]) > sum(shares[3:]) + 0.3
