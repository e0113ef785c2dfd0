"""A thousand pipelines: what solvers make of them, how many differ, and how fast they are made and judged."""

import collections
import concurrent.futures
import time

import pytest

from ling_jax.envs import HELD_OUT_SEEDS, environment
from tests.helpers.coding_play import rewards_of

TASKS, NOISY, ERROR_RATE, THREADS = 1000, 40, 0.1, 4


@pytest.mark.slow
def test_a_thousand_tasks_and_solvers():
    env = environment("workflow")
    begun = time.perf_counter()
    seeds = [number + (HELD_OUT_SEEDS if number % 8 == 0 else 0) for number in range(TASKS)]
    tasks = [env.make_task(seed, 1 + number % 10) for number, seed in enumerate(seeds)]
    made = TASKS / (time.perf_counter() - begun)
    for number in range(0, TASKS, 9):
        assert env.make_task(seeds[number], 1 + number % 10).content() == tasks[number].content()
    distinct = len({task.id for task in tasks})
    policies = (env.solution, env.null_solution, env.copy_solution)
    begun = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        for policy, wanted in zip(policies, (TASKS, 0, 0), strict=True):
            found = threads.map(lambda task: rewards_of(task, policy(task))["outcome"], tasks)  # noqa: B023
            assert sum(found) == wanted, policy.__name__
        judged = len(policies) * TASKS / (time.perf_counter() - begun)
        solved = collections.Counter()
        drawn = [env.make_task(seed, difficulty) for difficulty in env.DIFFICULTIES for seed in range(NOISY)]
        noisy = threads.map(lambda task: rewards_of(task, env.solution(task, error_rate=ERROR_RATE))["outcome"], drawn)
        for task, outcome in zip(drawn, noisy, strict=True):
            solved[task.difficulty] += outcome / NOISY
    curve = ", ".join(f"{difficulty}: {solved[difficulty]:.2f}" for difficulty in env.DIFFICULTIES)
    print(f"\n{distinct} distinct, {made:.0f} made a second, {judged:.1f} episodes a second; noisy solver {curve}")
    assert distinct >= 0.98 * TASKS
    assert solved[1] > 0.75 > 0.6 > solved[10]
