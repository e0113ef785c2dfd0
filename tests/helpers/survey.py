"""A thousand tasks of an environment, played by policies that know everything, nothing, and most of it."""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ling_jax.envs import HELD_OUT_SEEDS, Task, environment, is_held_out, parse_action

SLIP = 0.02  # of the noisy solver, for each step of a solution


class Row(NamedTuple):
    """What came of the tasks of one difficulty."""

    difficulty: int
    tasks: int
    distinct: int
    made_per_second: float  # of processor time
    played_per_second: float
    turns: float
    solved: dict[str, float]  # by policy


def survey(
    name: str, count: int, steps: Callable[[Task], int], guess: Callable[[random.Random, Task], str]
) -> list[Row]:
    """`count` tasks in all. `steps(task)` is how many chances to slip there are; `guess` is what is said after one."""
    env = environment(name)
    each = -(-count // len(env.DIFFICULTIES))
    rows = [_row(env, difficulty, each, steps, guess) for difficulty in env.DIFFICULTIES]
    print(f"\n{name}: difficulty, tasks, distinct, made/s, played/s, turns, solved by", *rows[0].solved)
    for row in rows:
        rates = " ".join(f"{rate:6.1%}" for rate in row.solved.values())
        speeds = f"{row.made_per_second:8.0f} {row.played_per_second:8.0f} {row.turns:5.1f}"
        print(f"{row.difficulty:3} {row.tasks:5} {row.distinct:5} {speeds}  {rates}")
    return rows


def check(rows: Sequence[Row]) -> None:
    """What every environment promises of its tasks; the noisy solver finds the last difficulties harder."""
    assert sum(row.tasks for row in rows) >= 1000
    for row in rows:
        assert row.solved["reference"] == 1 and row.solved["null"] == row.solved["copy"] == 0
    noisy = [row.solved["noisy"] for row in rows]
    third = -(-len(noisy) // 3)
    assert sum(noisy[:third]) > sum(noisy[-third:]) + 0.2 * third


def play(env: Any, task: Task, turns: Sequence[str]) -> float:
    """The outcome of an episode in which these turns are said; 0 where it goes on after them."""
    state, result = env.reset(task, 0), None
    for turn in turns:
        state, result = env.step(state, parse_action(turn, task.tools))
        if result.rewards:
            return result.rewards["outcome"]
    return 0.0


def _row(env, difficulty, count, steps, guess) -> Row:
    begun = time.process_time()
    made = [env.make_task(seed + (HELD_OUT_SEEDS if seed % 8 == 0 else 0), difficulty) for seed in range(count)]
    made_in = time.process_time() - begun
    assert [is_held_out(task) for task in made] == [seed % 8 == 0 for seed in range(count)]
    assert [env.make_task(task.seed, difficulty).content() for task in made[:5]] == [t.content() for t in made[:5]]
    begun = time.process_time()
    solved = {"reference": _mean(play(env, task, env.solution(task)) for task in made)}
    played_in = time.process_time() - begun
    solved["null"] = _mean(play(env, task, [""]) for task in made)
    solved["copy"] = _mean(play(env, task, [task.prompt]) for task in made)
    solved["noisy"] = _mean(play(env, task, _noisy(env, task, steps, guess)) for task in made)
    turns = _mean(len(env.solution(task)) for task in made)
    return Row(difficulty, count, len({t.id for t in made}), count / made_in, count / played_in, turns, solved)


def _noisy(env, task: Task, steps, guess) -> Sequence[str]:
    rng = random.Random(task.seed)
    slips = any(rng.random() < SLIP for _ in range(steps(task)))
    return [guess(rng, task)] if slips else env.solution(task)


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)
